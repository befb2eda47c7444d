//! How a conversion is done.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::digest::{Algorithm, ContentDigest, Digest};
use crate::image::{Backing, CreateOptions, Image};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::progress::{Cancel, Progress, ProgressFn};
use crate::source::BlockSource;

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
    pub(super) limits: Limits,
    pub(super) sparse_size: u64,
    pub(super) target_is_zero: bool,
    pub(super) sync: bool,
    pub(super) cancel: Cancel,
    pub(super) progress: Option<ProgressFn>,
    pub(super) content: Option<Algorithm>,
    pub(super) expected: Option<ContentDigest>,
    pub(super) check_packed: bool,
    pub(super) verify: bool,
    /// The file whose bytes are digested meanwhile, and what is expected of it.
    pub(super) file_digests: Vec<(Arc<dyn BlockSource>, Algorithm, Option<Digest>)>,
    /// Of the image file that is written.
    pub(super) target_digests: Vec<Algorithm>,
    /// Bytes of the disk between two checkpoints.
    pub(super) resumable: Option<u64>,
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
            limits: Limits::default(),
            sparse_size: 4096,
            target_is_zero: false,
            sync: true,
            cancel: Cancel::new(),
            progress: None,
            content: None,
            expected: None,
            check_packed: false,
            verify: false,
            file_digests: Vec::new(),
            target_digests: Vec::new(),
            resumable: None,
        }
    }

    /// Sets an option of the format, as people know it from `qemu-img convert -o`.
    #[must_use]
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.create.options.push((name.into(), value.into()));
        self
    }

    /// What the image will be called, where its target does not say: a VMDK names its own file, and some
    /// readers look for that name. `disk.vmdk` unless told otherwise.
    #[must_use]
    pub fn file_name(mut self, name: impl Into<ImageName>) -> Self {
        self.create.file_name = Some(name.into());
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

    /// What the source may demand of a conversion: [`Limits::output_bytes`]. The other limits are for
    /// [opening](crate::OpenOptions::limits) it.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
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

    /// Is called now and then, from whatever thread has news. [`ControlFlow::Break`] stops the
    /// conversion, as [`Cancel::cancel`] does.
    #[must_use]
    pub fn progress(
        mut self,
        report: impl Fn(Progress) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }

    /// Makes the digest of the disk's content on the way: [`Summary::content`].
    #[must_use]
    pub fn content_digest(mut self, algorithm: Algorithm) -> Self {
        self.content = Some(algorithm);
        self
    }

    /// Fails with [`Error::DigestMismatch`](crate::Error::DigestMismatch), and leaves nothing, if the
    /// disk's content has another digest.
    #[must_use]
    pub fn expect_content(mut self, digest: ContentDigest) -> Self {
        self.content = Some(digest.digest().algorithm());
        self.expected = Some(digest);
        self
    }

    /// Makes the digest of the bytes of `file`, that of the source say, in one more read meanwhile, on a
    /// thread of its own: [`Summary::file_digests`].
    #[must_use]
    pub fn file_digest(mut self, file: Arc<dyn BlockSource>, algorithm: Algorithm) -> Self {
        self.file_digests.push((file, algorithm, None));
        self
    }

    /// As [`file_digest`](Self::file_digest), and fails with
    /// [`Error::DigestMismatch`](crate::Error::DigestMismatch), leaving nothing, if it is another one:
    /// for uploads whose digest is known.
    #[must_use]
    pub fn expect_file(mut self, file: Arc<dyn BlockSource>, digest: Digest) -> Self {
        self.file_digests
            .push((file, digest.algorithm(), Some(digest)));
        self
    }

    /// Makes the digest of the bytes of the image file that [`convert_to_path`](Self::convert_to_path)
    /// writes, in one more read when it is whole, or that of the stream that
    /// [`convert_to_writer`](Self::convert_to_writer) writes, on its way: [`Summary::target_digests`].
    #[must_use]
    pub fn target_digest(mut self, algorithm: Algorithm) -> Self {
        self.target_digests.push(algorithm);
        self
    }

    /// Makes [`convert_to_path`](Self::convert_to_path) go on where an earlier call with the same
    /// source, options and path was stopped or failed, or its machine did. The result has the same
    /// bytes as one that was never interrupted.
    ///
    /// What is unfinished is kept beside the destination then, `.NAME.part` and `.NAME.journal`, until
    /// a later call finishes it. About every `checkpoint` bytes of the disk, and every ten seconds,
    /// the result is brought to stable storage; [`CHECKPOINT`](Self::CHECKPOINT) is a good value.
    ///
    /// The source must not change in between. That it is the same is told by its size, its file's
    /// identity, and its first and last 64 KiB.
    #[must_use]
    pub fn resumable(mut self, checkpoint: u64) -> Self {
        self.resumable = Some(checkpoint);
        self
    }

    /// A distance of checkpoints that hardly costs anything, in bytes.
    pub const CHECKPOINT: u64 = crate::convert::journal::CHECKPOINT;

    /// Whether the image that [`convert_to_path`](Self::convert_to_path) writes is read back and
    /// compared with the source before it gets its name. It is not unless told otherwise; what is read
    /// back comes from the system's cache as a rule, not from the disk.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Whether packed units that can travel as they are, from one qcow2 image into another say, are
    /// unpacked to see that they can be. They are not unless told otherwise.
    #[must_use]
    pub fn check_packed(mut self, check: bool) -> Self {
        self.check_packed = check;
        self
    }
}

/// What a conversion did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Virtual size of the result in bytes.
    pub virtual_size: u64,
    /// Bytes of the source that were read; those of packed units count as the guest sees them.
    pub bytes_read: u64,
    /// Bytes of the guest's data that were written, packed or not.
    pub bytes_written: u64,
    /// The digest of the disk's content, if one was asked for.
    pub content: Option<ContentDigest>,
    /// The digests of files that were asked for, in that order.
    pub file_digests: Vec<Digest>,
    /// The digests of the image that was written, in the order in which they were asked for.
    pub target_digests: Vec<Digest>,
}
