//! What lies between a driver and its device: notifications in both directions.

use std::time::Duration;

use crate::Error;

/// How a guest notifies its device, and waits to be notified.
pub trait Transport {
    /// Tells the device of new buffers in `queue`.
    ///
    /// # Errors
    ///
    /// [`Error`] when the device cannot be told.
    fn kick(&mut self, queue: usize) -> Result<(), Error>;

    /// Waits until the device notifies of a used buffer in any queue, at most for
    /// `timeout`. May return early.
    ///
    /// # Errors
    ///
    /// [`Error`] when the device cannot be waited for.
    fn wait(&mut self, timeout: Duration) -> Result<(), Error>;
}

/// A device in the same thread, that works on the guest's rings over plain memory.
///
/// Nothing is notified: the device runs whenever the guest waits.
#[derive(Debug)]
pub struct Plain<F> {
    run: F,
}

impl<F: FnMut() -> Result<(), Error>> Plain<F> {
    /// A device that does some of its work each time `run` is called.
    pub fn new(run: F) -> Self {
        Self { run }
    }
}

impl<F: FnMut() -> Result<(), Error>> Transport for Plain<F> {
    fn kick(&mut self, _queue: usize) -> Result<(), Error> {
        Ok(())
    }

    fn wait(&mut self, _timeout: Duration) -> Result<(), Error> {
        (self.run)()
    }
}
