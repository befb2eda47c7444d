//! What an image may demand.

use crate::error::{Error, Result};

/// What an image may demand of whoever opens it. Every open has limits; these defaults pass every
/// image that a real tool makes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of one metadata table or structure that must be in memory at once. 32 MiB, which is
    /// also the cap that QEMU puts on a qcow2 L1 table.
    pub metadata_bytes: u64,
    /// Bytes of tables kept in memory by one open image so as not to read them again. 4 MiB, which
    /// is what 32 GiB of a qcow2 image with the usual clusters need.
    pub cache_bytes: u64,
    /// Images in a backing chain, the first one included. 64.
    pub chain_depth: u64,
    /// Internal snapshots in one image. 65,536.
    pub snapshots: u64,
    /// Bytes that a packed file may unpack to beyond 64 times its own length. 1 GiB.
    pub inflated_bytes: u64,
    /// Virtual size in bytes. 2^63 - 1, the largest offset of a file.
    pub virtual_size: u64,
    /// Bytes that a [stream's inspector](crate::stream::StreamInspector) keeps of what went by: its
    /// start, its end, and the tables in between. 16 MiB; it never works with less than 80 KiB. A packed
    /// stream has it twice, for what arrives and for what that unpacks to.
    pub stream_bytes: u64,
    /// Bytes of the window (the dictionary) that a packed stream may ask for. 64 MiB, which is what
    /// `xz -9` asks for.
    pub window_bytes: u64,
    /// Bytes that a packed stream may unpack to. 1 TiB.
    pub unpacked_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            metadata_bytes: 32 << 20,
            cache_bytes: 4 << 20,
            chain_depth: 64,
            snapshots: 65_536,
            inflated_bytes: 1 << 30,
            virtual_size: i64::MAX as u64,
            stream_bytes: 16 << 20,
            window_bytes: 64 << 20,
            unpacked_bytes: 1 << 40,
        }
    }
}

impl Limits {
    /// Checks a size that one structure demands, in bytes.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] with `what` as the thing that was too large.
    pub fn check_metadata(&self, what: &'static str, bytes: u64) -> Result<()> {
        check("metadata_bytes", what, bytes, self.metadata_bytes)
    }

    /// Checks the number of internal snapshots.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`].
    pub fn check_snapshots(&self, count: u64) -> Result<()> {
        check(
            "snapshots",
            "the number of snapshots",
            count,
            self.snapshots,
        )
    }

    /// Checks a virtual size in bytes.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`].
    pub fn check_virtual_size(&self, bytes: u64) -> Result<()> {
        check("virtual_size", "the virtual size", bytes, self.virtual_size)
    }

    /// Checks the number of images in a backing chain.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`].
    pub fn check_chain_depth(&self, images: u64) -> Result<()> {
        check(
            "chain_depth",
            "the length of the backing chain",
            images,
            self.chain_depth,
        )
    }
}

fn check(limit: &'static str, what: &'static str, value: u64, maximum: u64) -> Result<()> {
    if value > maximum {
        return Err(Error::LimitExceeded {
            limit,
            what,
            value,
            maximum,
        });
    }
    Ok(())
}
