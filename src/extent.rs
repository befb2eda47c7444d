//! Runs of one status.

/// A run of bytes of one status, as a [`BlockSource`](crate::BlockSource) reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Start of the run, in bytes from the start of the source (a guest offset, for an image).
    pub start: u64,
    /// Length of the run in bytes; never 0.
    pub len: u64,
    /// Status of the run.
    pub kind: ExtentKind,
    /// Depth in the backing chain of the layer that answered: 0 is the image itself, 1 its backing
    /// file.
    pub depth: u16,
    /// Host offset of the run in the file at `depth`, in bytes, if the run lies there in one piece
    /// and as it is.
    pub host_offset: Option<u64>,
}

impl Extent {
    /// A run of the source itself without a place in a file.
    pub fn new(start: u64, len: u64, kind: ExtentKind) -> Self {
        Extent {
            start,
            len,
            kind,
            depth: 0,
            host_offset: None,
        }
    }

    /// The offset of the first byte after the run.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// This run cut to `limit` bytes.
    #[must_use]
    pub fn limited(mut self, limit: u64) -> Self {
        self.len = self.len.min(limit);
        self
    }
}

/// The status of a run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Stored as it is. The bytes may still be zero.
    Data,
    /// Stored in compressed units.
    Compressed,
    /// Reads as zero by an entry that says so, which masks the backing file.
    Zero,
    /// Reads as zero because no layer of the chain records it.
    Hole,
}

impl ExtentKind {
    /// Returns true if the run is known to read as zero without reading it.
    pub fn reads_as_zero(self) -> bool {
        matches!(self, ExtentKind::Zero | ExtentKind::Hole)
    }
}
