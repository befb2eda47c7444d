//! Compressed units that are copied from one image to another as they are.

use std::fmt::Debug;

use crate::error::Result;

/// Compression of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// Deflate (RFC 1951) with a window of 4 KiB, without a header: qcow and qcow2.
    Deflate,
    /// A zlib stream (RFC 1950): VMDK.
    Zlib,
    /// Zstandard frames (RFC 8878): qcow2.
    Zstd,
}

/// Compressed unit in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedUnit {
    /// Guest offset of the unit in bytes.
    pub guest: u64,
    /// Host offset of the compressed bytes.
    pub host: u64,
    /// Start of the compressed bytes in the buffer that was read.
    pub at: usize,
    /// Length of the compressed bytes at most: padding may follow the end of the stream.
    pub len: usize,
}

/// Source that stores compressed units, and can hand them out as they are.
///
/// Only units that the source itself records are handed out, never those of a backing file.
pub trait PackedSource: Debug + Send + Sync {
    /// Codec of all units.
    fn codec(&self) -> Codec;

    /// Guest bytes in a unit.
    fn unit(&self) -> u64;

    /// Reads the compressed units from `guest` on, the start of one: at most `limit` bytes of the
    /// guest, and as many as lie close together in the file. Appends their bytes to `buf` and one
    /// entry for each to `units`. Returns the count of units: 0 if the one at `guest` is not
    /// compressed.
    ///
    /// # Errors
    /// Errors of reading. Errors of the codec are left to [`unpack`](Self::unpack).
    fn read_packed(
        &self,
        guest: u64,
        limit: u64,
        buf: &mut Vec<u8>,
        units: &mut Vec<PackedUnit>,
    ) -> Result<usize>;

    /// Decompresses a unit that was read: `packed` is its bytes, and `out` as long as a unit.
    ///
    /// # Errors
    /// Errors of the codec: the image is damaged.
    fn unpack(&self, unit: &PackedUnit, packed: &[u8], out: &mut [u8]) -> Result<()>;

    /// Host offset of the compressed unit at `guest`, in bytes; `None` where it is not compressed.
    ///
    /// # Errors
    /// Errors of reading the tables.
    fn place_of_unit(&self, guest: u64) -> Result<Option<u64>>;
}
