//! Reference counts as they stand in the file (section "Host cluster management").

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::map::TableCache;
use crate::ondisk::TableEntry;
use crate::source::{BlockSource, BlockSourceExt};

use super::QCOW2;
use super::entry::RefcountTableEntry;
use super::header::Header;

/// Layout of a refcount block for one width of counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CountLayout {
    bits: u32,
}

impl CountLayout {
    /// Counts of so many bits, a power of two up to 64.
    pub(super) fn new(bits: u32) -> Self {
        CountLayout { bits }
    }

    /// Bits of a count.
    pub(super) fn bits(self) -> u32 {
        self.bits
    }

    /// Counts in a block of so many bytes.
    pub(super) fn per_block(self, bytes: u64) -> u64 {
        bytes * 8 / u64::from(self.bits)
    }

    /// The largest count that can be told.
    pub(super) fn most(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// Bytes of a block that hold a count, and the count's place in them, in bits from the least
    /// significant.
    pub(super) fn place(self, index: u64) -> (Range<usize>, u32) {
        let bit = index.saturating_mul(u64::from(self.bits));
        let byte = usize::try_from(bit / 8).unwrap_or(usize::MAX);
        let shift = u32::try_from(bit % 8).unwrap_or(0);
        let width = usize::try_from(self.bits.div_ceil(8)).unwrap_or(1);
        (byte..byte.saturating_add(width), shift)
    }

    /// The count at a place in a block: counts of less than a byte start at its lowest bit, others are
    /// big-endian.
    pub(super) fn read(self, block: &[u8], index: u64) -> u64 {
        let (place, shift) = self.place(index);
        let bytes = block.get(place).unwrap_or_default();
        let value = bytes
            .iter()
            .fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
        (value >> shift) & self.most()
    }

    /// Writes a count to its place in a block.
    pub(super) fn write(self, block: &mut [u8], index: u64, count: u64) {
        let (place, shift) = self.place(index);
        let Some(bytes) = block.get_mut(place) else {
            return;
        };
        if let [byte] = bytes {
            let kept = u64::from(*byte) & !(self.most() << shift);
            *byte = u8::try_from(kept | (count << shift)).unwrap_or(u8::MAX);
        } else if let Some(low) = count.to_be_bytes().get(8 - bytes.len()..) {
            bytes.copy_from_slice(low);
        }
    }
}

/// Reads the refcount table as it stands in the file.
///
/// # Errors
/// [`Error::LimitExceeded`], and [`Error::Malformed`] if it is not in the file whole.
pub(super) fn read_table(
    header: &Header,
    file: &dyn BlockSource,
    limits: &Limits,
) -> Result<Vec<u8>> {
    let start = header.refcount_table_offset;
    let len = u64::from(header.refcount_table_clusters).saturating_mul(header.cluster_size());
    let end = start.checked_add(len);
    if start % header.cluster_size() != 0 || end.is_none_or(|end| end > file.size()) {
        let problem = format!(
            "{len} bytes long, is not at the start of a cluster or not in the file, which ends at {}",
            file.size()
        );
        return Err(Error::malformed(QCOW2, "refcount table", start, problem));
    }
    limits.check_metadata("the refcount table", len)?;
    let mut table = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut table, start)?;
    Ok(table)
}

/// Bytes of a refcount block that are read and kept at once.
const PIECE: u64 = 4096;

/// The counts of the file, looked up one by one.
#[derive(Debug)]
pub(super) struct StoredCounts {
    file: Arc<dyn BlockSource>,
    table: Vec<u8>,
    cluster_bits: u32,
    layout: CountLayout,
    cache: TableCache,
    /// The piece that was asked for last, by its host offset.
    last: Option<(u64, Arc<Vec<u8>>)>,
}

impl StoredCounts {
    /// The counts to which this refcount table leads.
    pub(super) fn new(
        header: &Header,
        file: &Arc<dyn BlockSource>,
        table: Vec<u8>,
        limits: &Limits,
    ) -> Self {
        StoredCounts {
            file: Arc::clone(file),
            table,
            cluster_bits: header.cluster_bits,
            layout: CountLayout::new(1 << header.refcount_order),
            cache: TableCache::new(limits.cache_bytes),
            last: None,
        }
    }

    /// Returns the layout of the refcount blocks.
    pub(super) fn layout(&self) -> CountLayout {
        self.layout
    }

    /// Clusters that one block counts.
    pub(super) fn per_block(&self) -> u64 {
        self.layout.per_block(1 << self.cluster_bits)
    }

    /// Entries of the refcount table.
    pub(super) fn ranges(&self) -> u64 {
        self.table.len() as u64 / 8
    }

    /// Reads an entry of the refcount table; an empty one beyond its end.
    pub(super) fn entry(&self, range: u64) -> RefcountTableEntry {
        RefcountTableEntry::decode(&self.table, range).unwrap_or_default()
    }

    /// Host offset of the block of a range, if it has one that can be read.
    pub(super) fn block_at(&self, range: u64) -> Option<u64> {
        let offset = self.entry(range).offset();
        let aligned = offset % (1 << self.cluster_bits) == 0;
        (offset != 0 && aligned && offset < self.file.size()).then_some(offset)
    }

    /// The count of a cluster: 0 where nothing says another.
    pub(super) fn of(&mut self, cluster: u64) -> Result<u64> {
        let per_block = self.per_block();
        let Some(block) = self.block_at(cluster / per_block) else {
            return Ok(0);
        };
        let per_piece = self.layout.per_block(PIECE.min(1 << self.cluster_bits));
        let index = cluster % per_block;
        let at = block + index / per_piece * PIECE;
        let piece = match &self.last {
            Some((kept, piece)) if *kept == at => Arc::clone(piece),
            _ => {
                let piece = self.cache.table(at, || {
                    let len = PIECE.min(1 << self.cluster_bits);
                    Ok(Arc::new(read_padded(&*self.file, at, len)?))
                })?;
                self.last = Some((at, Arc::clone(&piece)));
                piece
            }
        };
        Ok(self.layout.read(&piece, index % per_piece))
    }
}

/// Reads `len` bytes; what the file no longer has is zero: its last cluster need not be whole.
pub(super) fn read_padded(file: &dyn BlockSource, at: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}
