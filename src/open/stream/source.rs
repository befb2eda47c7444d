//! The place that a stream comes from, and what may be kept of it.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::digest::{Algorithm, Digest};
use crate::progress::Cancel;
use crate::source::FileIdentity;

/// A pipe, a socket, a download: any [`Read`] that an image comes from.
///
/// ```
/// use blockform::{OpenOptions, StreamSource};
/// use blockform::convert::ConvertOptions;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let destination = folder.path().join("disk.raw");
/// let download = std::fs::File::open("testdata/qcow2/good/plain.qcow2").unwrap();
/// let image = OpenOptions::new().format("qcow2").open_stream(StreamSource::new(download))?;
/// ConvertOptions::to("raw").convert_to_path(&image, &destination)?;
/// # Ok::<(), blockform::Error>(())
/// ```
pub struct StreamSource {
    pub(super) reader: Box<dyn Read + Send>,
    pub(super) size: Option<u64>,
    pub(super) window: u64,
    pub(super) digests: Vec<(Algorithm, Option<Digest>)>,
    pub(super) spill: Option<(PathBuf, u64)>,
    pub(super) path: Option<PathBuf>,
    pub(super) file: Option<FileIdentity>,
    pub(super) cancel: Cancel,
}

impl fmt::Debug for StreamSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSource")
            .field("size", &self.size)
            .field("window", &self.window)
            .field("spill", &self.spill)
            .finish_non_exhaustive()
    }
}

impl StreamSource {
    /// The stream that `reader` is, from where it is. It is read to its end.
    pub fn new(reader: impl Read + Send + 'static) -> Self {
        StreamSource {
            reader: Box::new(reader),
            size: None,
            window: 16 << 20,
            digests: Vec::new(),
            spill: None,
            path: None,
            file: None,
            cancel: Cancel::new(),
        }
    }

    /// The disk's virtual size in bytes, for an image that tells it only by its end: a raw disk, a fixed
    /// VHD. Without it these can be written only to where the size need not be known beforehand.
    /// If it turns out to be another one, the conversion fails.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// Number of bytes that stay at hand after they arrived, 16 MiB by default and never less than
    /// 4 MiB: by how much an image may be out of order. The memory is 4 MiB more; it is a part of what
    /// a conversion [may use](crate::convert::ConvertOptions::memory).
    #[must_use]
    pub fn window(mut self, bytes: u64) -> Self {
        self.window = bytes;
        self
    }

    /// Makes the digest of the bytes of the stream while they arrive; it is among
    /// [`Summary::file_digests`](crate::convert::Summary::file_digests).
    #[must_use]
    pub fn digest(mut self, algorithm: Algorithm) -> Self {
        self.digests.push((algorithm, None));
        self
    }

    /// As [`digest`](Self::digest), and fails with [`Error::DigestMismatch`](crate::Error::DigestMismatch) if it is another one.
    #[must_use]
    pub fn expect(mut self, digest: Digest) -> Self {
        self.digests.push((digest.algorithm(), Some(digest)));
        self
    }

    /// Allows a file in `folder`, without a name and of no more than so many bytes, for what comes before
    /// it is needed. Without it an image whose data comes before its tables, or not in the order of the
    /// disk, is an [`Error::OutOfOrder`](crate::Error::OutOfOrder). What arrives in order is not written there.
    #[must_use]
    pub fn spill(mut self, folder: impl AsRef<Path>, bytes: u64) -> Self {
        self.spill = Some((folder.as_ref().to_owned(), bytes));
        self
    }

    /// Path that the stream came from: names in the image are relative to its directory.
    #[must_use]
    pub fn path(mut self, path: impl AsRef<Path>) -> Self {
        self.path = Some(path.as_ref().to_owned());
        self
    }

    /// The file that is read, if the reader is one: it is not to be written to.
    #[must_use]
    pub fn file(mut self, file: FileIdentity) -> Self {
        self.file = Some(file);
        self
    }

    /// Cancels waiting for the stream, between two reads.
    #[must_use]
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }
}
