//! Packed units that can travel from one image to another as they are.

use std::fmt::Debug;

use crate::error::Result;

/// How a unit is packed.
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

/// A unit as it is packed in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedUnit {
    /// Where the guest sees the unit, in bytes.
    pub guest: u64,
    /// Where the packed bytes begin in the file, in bytes.
    pub host: u64,
    /// Where they begin in the buffer that was read.
    pub at: usize,
    /// How many there are at most: what follows the end of the stream is padding.
    pub len: usize,
}

/// A source that stores units packed, and can hand them out without unpacking them.
///
/// Only units that the source itself records are handed out, never those of a backing file.
pub trait PackedSource: Debug + Send + Sync {
    /// How all of them are packed.
    fn codec(&self) -> Codec;

    /// Bytes of the guest in a unit.
    fn unit(&self) -> u64;

    /// Reads the packed units from `guest`, the start of one, on: at most `limit` bytes of the guest,
    /// and as many as lie close together in the file. Appends their bytes to `buf` and one entry for
    /// each to `units`, and returns how many units that is: 0 if the one at `guest` is not packed.
    ///
    /// # Errors
    /// What reading fails with. Whether the bytes can be unpacked is not looked at.
    fn read_packed(
        &self,
        guest: u64,
        limit: u64,
        buf: &mut Vec<u8>,
        units: &mut Vec<PackedUnit>,
    ) -> Result<usize>;

    /// Unpacks a unit that was read: `packed` is its bytes, and `out` as long as a unit.
    ///
    /// # Errors
    /// What the codec fails with: the image is damaged.
    fn unpack(&self, unit: &PackedUnit, packed: &[u8], out: &mut [u8]) -> Result<()>;

    /// Where in its file the packed unit at `guest` begins, in bytes; `None` where it is not packed.
    ///
    /// # Errors
    /// What reading the tables fails with.
    fn place_of_unit(&self, guest: u64) -> Result<Option<u64>>;
}
