//! What other threads have a guest's worker do.
//!
//! A worker alone touches its connections. Whoever wants something of them leaves a
//! question; the worker answers it in its next turn. One that has ended answers none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::bounded;

use crate::backend::lock;
use crate::poller::Waker;
use crate::worker::Worker;

/// How long a worker may take to come to a question. A turn takes far less, so one that
/// does not come is stuck.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) type Question = Box<dyn FnOnce(&mut Worker) + Send>;

/// Questions for a worker.
pub(crate) struct Inbox {
    /// `None` when nobody is there to answer any more.
    questions: Mutex<Option<Vec<Question>>>,
    waker: Waker,
}

impl Inbox {
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            questions: Mutex::new(Some(Vec::new())),
            waker,
        }
    }

    /// Has the worker answer `question`. `None` when it did not come to it, and will not.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Worker) -> R + Send + 'static,
    ) -> Option<R> {
        let (answer, answers) = bounded(1);
        // Whoever is first to take it decides: the worker, or the end of patience.
        let taken = Arc::new(AtomicBool::new(false));
        let takes = Arc::clone(&taken);
        let question: Question = Box::new(move |worker| {
            if !takes.swap(true, Ordering::AcqRel) {
                let _ = answer.send(question(worker));
            }
        });
        lock(&self.questions).as_mut()?.push(question);
        self.waker.wake();
        if let Ok(answer) = answers.recv_timeout(PATIENCE) {
            return Some(answer);
        }
        if taken.swap(true, Ordering::AcqRel) {
            // It is being answered, or the worker has ended meanwhile.
            return answers.recv().ok();
        }
        None
    }

    /// What there is to answer.
    pub(crate) fn take(&self) -> Vec<Question> {
        let mut questions = lock(&self.questions);
        questions.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The worker has ended: who waits for an answer, or comes now, learns it at once.
    pub(crate) fn close(&self) {
        let unanswered = lock(&self.questions).take();
        drop(unanswered);
    }
}
