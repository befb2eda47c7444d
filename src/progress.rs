//! Progress of long work, and its cancellation.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Callback with the progress of the work.
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

    /// Returns true if it was stopped.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Progress of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Phase of the work.
    pub phase: Phase,
    /// Bytes of the disk that are done. The number never decreases.
    pub done: u64,
    /// Virtual size in bytes.
    pub total: u64,
    /// Time since the start.
    pub elapsed: Duration,
}

impl Progress {
    /// Mean number of bytes of the disk done in a second; 0 at the start.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        match seconds > 0.0 {
            true => self.done as f64 / seconds,
            false => 0.0,
        }
    }
}

/// Phase of the work.
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

/// Threads, progress and cancellation of work.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) threads: Option<NonZeroUsize>,
    pub(crate) memory: u64,
    pub(crate) cancel: Cancel,
    pub(crate) progress: Option<ProgressFn>,
}

impl Default for Work {
    fn default() -> Self {
        Work {
            threads: None,
            memory: 64 << 20,
            cancel: Cancel::new(),
            progress: None,
        }
    }
}

impl Work {
    /// The number of threads: that of the processors by default.
    pub(crate) fn threads(&self) -> usize {
        match self.threads {
            Some(threads) => threads.get(),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Makes the methods that set the [`Work`] at a place, but for its progress.
macro_rules! work_setters {
    (|$self:ident| $work:expr) => {
        /// Sets the number of threads: that of the processors by default. The result is the same for any
        /// number.
        #[must_use]
        pub fn threads(mut $self, threads: std::num::NonZeroUsize) -> Self {
            $work.threads = Some(threads);
            $self
        }

        /// Sets the most bytes of buffers, about: 64 MiB by default. A few MiB are always used. The result is
        /// the same for any number.
        #[must_use]
        pub fn memory(mut $self, bytes: u64) -> Self {
            $work.memory = bytes;
            $self
        }

        /// Sets a handle that stops the work from another thread.
        #[must_use]
        pub fn cancel(mut $self, cancel: $crate::progress::Cancel) -> Self {
            $work.cancel = cancel;
            $self
        }
    };
}

/// Makes the method that sets the progress of the [`Work`] at a place.
macro_rules! progress_setter {
    (|$self:ident| $work:expr) => {
        /// Sets a function that is called now and then, from any thread.
        /// [`ControlFlow::Break`](std::ops::ControlFlow::Break) stops the work as [`cancel`](Self::cancel)
        /// does.
        #[must_use]
        pub fn progress(
            mut $self,
            report: impl Fn($crate::progress::Progress) -> std::ops::ControlFlow<()>
            + Send
            + Sync
            + 'static,
        ) -> Self {
            $work.progress = Some(std::sync::Arc::new(report));
            $self
        }
    };
}

pub(crate) use {progress_setter, work_setters};

/// Receiver of progress, and the cancellation of one piece of work.
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
