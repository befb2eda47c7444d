//! How far long work is, and how it is stopped.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is called with news of the work.
pub(crate) type ProgressFn = Arc<dyn Fn(Progress) -> ControlFlow<()> + Send + Sync>;

/// Stops work from outside; all clones stop the same.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// One that has not been used yet.
    pub fn new() -> Self {
        Cancel::default()
    }

    /// Stops it: it returns [`Error::Cancelled`](crate::Error::Cancelled) soon, and leaves nothing. It may be called from a signal handler's thread, and more than once.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was stopped.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How far the work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// How much of the disk has been dealt with, in bytes. It never goes back.
    pub done: u64,
    /// Virtual size in bytes.
    pub total: u64,
    /// How long it has taken until now.
    pub elapsed: Duration,
}

impl Progress {
    /// How much of the disk was dealt with in a second, in bytes, on the whole; 0 at the start.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        match seconds > 0.0 {
            true => self.done as f64 / seconds,
            false => 0.0,
        }
    }
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The disk is read and written, or read and compared.
    Copying,
    /// The last tables and the header are written, and everything is brought to stable storage.
    Finishing,
    /// The result is read back and compared.
    Verifying,
    /// The result is whole, but for its name.
    Done,
}

/// Who is told of progress, and what a break stops.
#[derive(Clone)]
pub(crate) struct Report {
    tell: Option<ProgressFn>,
    /// Of this one piece of work: the options may be used for another.
    pub(crate) broken: Cancel,
    start: Instant,
}

impl Report {
    pub(crate) fn new(tell: Option<ProgressFn>) -> Self {
        Report {
            tell,
            broken: Cancel::new(),
            start: Instant::now(),
        }
    }

    pub(crate) fn tell(&self, phase: Phase, done: u64, total: u64) {
        let Some(tell) = &self.tell else {
            return;
        };
        let progress = Progress {
            phase,
            done,
            total,
            elapsed: self.start.elapsed(),
        };
        if tell(progress).is_break() {
            self.broken.cancel();
        }
    }
}
