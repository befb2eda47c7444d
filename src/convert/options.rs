//! Options of a conversion.

use std::fmt;
use std::sync::Arc;

use crate::convert::spec::{ImageSpec, image_setters};
use crate::digest::{Algorithm, ContentDigest, Digest};
use crate::limits::Limits;
use crate::progress::{Work, progress_setter};
use crate::source::BlockSource;

/// A conversion into one image.
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
    pub(super) image: ImageSpec,
    pub(super) job: JobOptions,
}

/// The options of a conversion as a whole, whatever its targets.
#[derive(Clone)]
pub(super) struct JobOptions {
    pub(super) work: Work,
    pub(super) limits: Limits,
    pub(super) sync: bool,
    pub(super) content: Option<Algorithm>,
    pub(super) expected: Option<ContentDigest>,
    pub(super) check_packed: bool,
    /// Files whose bytes are digested meanwhile, and the digests that are expected.
    pub(super) file_digests: Vec<(Arc<dyn BlockSource>, Algorithm, Option<Digest>)>,
    /// Bytes of the disk between two checkpoints.
    pub(super) resumable: Option<u64>,
}

impl Default for JobOptions {
    fn default() -> Self {
        JobOptions {
            work: Work::default(),
            limits: Limits::default(),
            sync: true,
            content: None,
            expected: None,
            check_packed: false,
            file_digests: Vec::new(),
            resumable: None,
        }
    }
}

impl fmt::Debug for ConvertOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("ConvertOptions");
        debug.field("image", &self.image).finish_non_exhaustive()
    }
}

impl From<ImageSpec> for ConvertOptions {
    fn from(image: ImageSpec) -> Self {
        let job = JobOptions::default();
        ConvertOptions { image, job }
    }
}

/// Makes the methods that set the [`JobOptions`] at a place, but for its progress.
macro_rules! job_setters {
    (|$self:ident| $job:expr) => {
        $crate::progress::work_setters!(|$self| $job.work);

        /// Sets what the source may demand of a conversion:
        /// [`Limits::output_bytes`](crate::Limits::output_bytes). The other limits are for
        /// [opening](crate::OpenOptions::limits) it.
        #[must_use]
        pub fn limits(mut $self, limits: $crate::Limits) -> Self {
            $job.limits = limits;
            $self
        }

        /// Brings the result to stable storage before the conversion returns: on by default.
        #[must_use]
        pub fn sync(mut $self, sync: bool) -> Self {
            $job.sync = sync;
            $self
        }

        /// Computes the digest of the disk's content on the way.
        #[must_use]
        pub fn content_digest(mut $self, algorithm: $crate::digest::Algorithm) -> Self {
            $job.content = Some(algorithm);
            $self
        }

        /// Fails with [`Error::DigestMismatch`](crate::Error::DigestMismatch), and leaves nothing, if the
        /// disk's content has another digest.
        #[must_use]
        pub fn expect_content(mut $self, digest: $crate::digest::ContentDigest) -> Self {
            $job.content = Some(digest.digest().algorithm());
            $job.expected = Some(digest);
            $self
        }

        /// Computes the digest of the bytes of `file`, as that of the source, in one more read meanwhile, on a
        /// thread of its own.
        #[must_use]
        pub fn file_digest(
            mut $self,
            file: std::sync::Arc<dyn $crate::BlockSource>,
            algorithm: $crate::digest::Algorithm,
        ) -> Self {
            $job.file_digests.push((file, algorithm, None));
            $self
        }

        /// As [`file_digest`](Self::file_digest), and fails with
        /// [`Error::DigestMismatch`](crate::Error::DigestMismatch), leaving nothing, if it is another one: for
        /// uploads whose digest is known.
        #[must_use]
        pub fn expect_file(
            mut $self,
            file: std::sync::Arc<dyn $crate::BlockSource>,
            digest: $crate::digest::Digest,
        ) -> Self {
            $job.file_digests.push((file, digest.algorithm(), Some(digest)));
            $self
        }

        /// Decompresses compressed units that can be copied as they are, from one qcow2 image into another for
        /// example, to prove that they can be read.
        #[must_use]
        pub fn check_packed(mut $self, check: bool) -> Self {
            $job.check_packed = check;
            $self
        }
    };
}
pub(super) use job_setters;

impl ConvertOptions {
    /// A conversion into `format`, by its id or an alias, with every option at its default.
    pub fn to(format: impl Into<String>) -> Self {
        ImageSpec::new(format).into()
    }

    image_setters!(|self| self.image);
    job_setters!(|self| self.job);
    progress_setter!(|self| self.job.work);

    /// Makes [`convert_to_path`](Self::convert_to_path) continue where an earlier call with the same source,
    /// options and path was stopped or failed, or its machine did. The result has the same bytes as one that
    /// was never interrupted.
    ///
    /// An unfinished result is kept beside the destination, in `.NAME.part` and `.NAME.journal`, until a later
    /// call finishes it. About every `checkpoint` bytes of the disk, and every ten seconds, the result is
    /// brought to stable storage; [`CHECKPOINT`](Self::CHECKPOINT) is a good value.
    ///
    /// The source must not change in between. It is recognized by its size, the identity of its file, and its
    /// first and last 64 KiB.
    #[must_use]
    pub fn resumable(mut self, checkpoint: u64) -> Self {
        self.job.resumable = Some(checkpoint);
        self
    }

    /// A distance of checkpoints that costs hardly anything, in bytes.
    pub const CHECKPOINT: u64 = crate::convert::journal::CHECKPOINT;
}

/// Result of a conversion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Virtual size of the result in bytes.
    pub virtual_size: u64,
    /// Bytes of the source that were read; those of compressed units count as the guest sees them.
    pub bytes_read: u64,
    /// Bytes of the guest's data that were written, compressed or not.
    pub bytes_written: u64,
    /// The digest of the disk's content, if one was asked for.
    pub content: Option<ContentDigest>,
    /// The digests of files that were asked for, in that order.
    pub file_digests: Vec<Digest>,
    /// The digests of the image that was written, in the order in which they were asked for.
    pub target_digests: Vec<Digest>,
}
