//! Calls that a signal does not end.
//!
//! A socket that has a deadline fails with EINTR where its process is stopped for a while
//! (`man 7 signal`), and the standard library repeats such a call only in some places.

use std::io::{self, ErrorKind};

/// Makes a call again for as long as it is interrupted. A socket's deadline begins anew
/// each time.
///
/// # Errors
///
/// Those of the call, but for [`ErrorKind::Interrupted`].
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_an_interrupted_call_again() {
        let mut results = [
            Err(ErrorKind::Interrupted),
            Err(ErrorKind::Interrupted),
            Ok(5),
        ]
        .into_iter();
        let number = uninterrupted(|| Ok(results.next().expect("one call too many")?));
        assert_eq!(number.ok(), Some(5));
    }

    #[test]
    fn leaves_other_failures_to_the_caller() {
        let mut calls = 0;
        let result = uninterrupted(|| {
            calls += 1;
            Err::<(), _>(ErrorKind::WouldBlock.into())
        });
        assert_eq!(
            result.err().map(|error| error.kind()),
            Some(ErrorKind::WouldBlock)
        );
        assert_eq!(calls, 1);
    }
}
