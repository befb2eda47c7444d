//! How a conversion is done.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::image::{Backing, CreateOptions, Image};

/// What to convert to, and how.
///
/// ```no_run
/// use blockform::{OpenOptions, convert::ConvertOptions};
///
/// let source = OpenOptions::new().open_path("disk.qcow2")?;
/// ConvertOptions::to("qcow2").compress(true).option("compression_type", "zstd")
///     .convert_to_path(&source, "smaller.qcow2")?;
/// # Ok::<(), blockform::Error>(())
/// ```
#[derive(Clone)]
pub struct ConvertOptions {
    pub(super) format: String,
    pub(super) create: CreateOptions,
    pub(super) overlay: Option<Arc<dyn Image>>,
    pub(super) threads: Option<NonZeroUsize>,
    pub(super) memory: u64,
    pub(super) sparse_size: u64,
    pub(super) target_is_zero: bool,
    pub(super) sync: bool,
    pub(super) cancel: Cancel,
    pub(super) progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

impl fmt::Debug for ConvertOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConvertOptions")
            .field("format", &self.format)
            .field("create", &self.create)
            .finish_non_exhaustive()
    }
}

impl ConvertOptions {
    /// A conversion into `format`, by its id or another name that it is known by, with every option
    /// at its default.
    pub fn to(format: impl Into<String>) -> Self {
        ConvertOptions {
            format: format.into(),
            create: CreateOptions::new(0),
            overlay: None,
            threads: None,
            memory: 64 << 20,
            sparse_size: 4096,
            target_is_zero: false,
            sync: true,
            cancel: Cancel::new(),
            progress: None,
        }
    }

    /// Sets an option of the format, as people know it from `qemu-img convert -o`.
    #[must_use]
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.create.options.push((name.into(), value.into()));
        self
    }

    /// Whether to pack the data.
    #[must_use]
    pub fn compress(mut self, compress: bool) -> Self {
        self.create.compress = compress;
        self
    }

    /// Writes an overlay: an image that names `backing` as its backing file and records only what
    /// differs from `image`, which is that file, opened.
    #[must_use]
    pub fn overlay(mut self, mut backing: Backing, image: Arc<dyn Image>) -> Self {
        backing.ids = image.info().ids.clone();
        self.create.backing = Some(backing);
        self.overlay = Some(image);
        self
    }

    /// How many threads work; as many as there are processors unless told otherwise. The result is
    /// the same for any number.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// About how many bytes of buffers to use at most; 64 MiB unless told otherwise. The result is
    /// the same for any number.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// The shortest run of zeros that becomes a hole, in bytes: 4096 unless told otherwise. With 0
    /// no zeros are searched for, and what reads as zero is written out or recorded as zero.
    #[must_use]
    pub fn sparse_size(mut self, bytes: u64) -> Self {
        self.sparse_size = bytes;
        self
    }

    /// Takes the caller's word that an existing target reads as zero.
    #[must_use]
    pub fn target_is_zero(mut self, zero: bool) -> Self {
        self.target_is_zero = zero;
        self
    }

    /// Whether the result is on stable storage when the conversion returns; so unless told otherwise.
    #[must_use]
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// What stops the conversion from another thread.
    #[must_use]
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Is called now and then, from whatever thread has news.
    #[must_use]
    pub fn progress(mut self, report: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }
}

/// Stops a conversion from outside; all clones stop the same one.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// One that has not been used yet.
    pub fn new() -> Self {
        Cancel::default()
    }

    /// Stops the conversion: it returns [`Error::Cancelled`](crate::Error::Cancelled) soon, and
    /// leaves nothing. It may be called from a signal handler's thread, and more than once.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was stopped.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// How much of the disk has been dealt with, in bytes. It never goes back.
    pub done: u64,
    /// Virtual size in bytes.
    pub total: u64,
}

/// What a conversion did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Virtual size of the result in bytes.
    pub virtual_size: u64,
    /// Bytes of the source that were read.
    pub bytes_read: u64,
    /// Bytes of the guest's data that were written, packed or not.
    pub bytes_written: u64,
}
