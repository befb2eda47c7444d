//! The entries of the block allocation table, and how they are counted (MS-VHDX 2.5).

use crate::ondisk::table_entry;

use super::header::MIB;

/// Sectors of one chunk: as many as a sector bitmap block has bits.
pub(super) const CHUNK_SECTORS: u64 = 1 << 23;
/// Bytes of a sector bitmap block.
pub(super) const BITMAP_BLOCK: u64 = MIB;

/// The state of a payload block. That of a sector bitmap block is 0 or 6 of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is known of it: the parent's, or zeros.
    NotPresent,
    /// Zeros, whatever a parent has: `ZERO`, `UNDEFINED` and both numbers of `UNMAPPED`.
    Zero,
    /// In the file whole.
    FullyPresent,
    /// In the file where the sector bitmap says so.
    PartiallyPresent,
}

table_entry! {
    /// An entry of the block allocation table.
    pub(super) struct BatEntry(u64), Little;
}

impl BatEntry {
    const STATE: u64 = 7;
    const RESERVED: u64 = 0x000f_fff8;

    /// The entry of a block in the state `ZERO`.
    pub(super) const ZERO: Self = BatEntry(2);

    /// The entry of a block in the file.
    pub(super) fn present(host: u64) -> Self {
        BatEntry(host | 6)
    }

    /// The entry of a block in the file of which the parent may have parts.
    pub(super) fn partial(host: u64) -> Self {
        BatEntry(host | 7)
    }

    /// State of the block; `None` if the number means no state.
    pub(super) fn state(self) -> Option<State> {
        Some(match self.0 & Self::STATE {
            0 => State::NotPresent,
            // 5 is the unmapped of version 0.95.
            1..=3 | 5 => State::Zero,
            6 => State::FullyPresent,
            7 => State::PartiallyPresent,
            _ => return None,
        })
    }

    /// Host offset of the block.
    pub(super) fn host(self) -> u64 {
        self.0 & !(MIB - 1)
    }

    pub(super) fn has_reserved_bits(self) -> bool {
        self.0 & Self::RESERVED != 0
    }
}

/// Numbering of the blocks of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) virtual_size: u64,
    pub(super) block_size: u64,
    pub(super) sector_size: u64,
    pub(super) has_parent: bool,
}

impl Geometry {
    /// Payload blocks that one sector bitmap block is about. A power of two, and at least 16.
    pub(super) fn chunk_ratio(&self) -> u64 {
        CHUNK_SECTORS * self.sector_size / self.block_size
    }

    /// Payload blocks of the disk.
    pub(super) fn blocks(&self) -> u64 {
        self.virtual_size.div_ceil(self.block_size)
    }

    /// Entries that the table has to have.
    pub(super) fn entries(&self) -> u64 {
        let (blocks, ratio) = (self.blocks(), self.chunk_ratio());
        if self.has_parent {
            blocks.div_ceil(ratio) * (ratio + 1)
        } else {
            blocks + blocks.saturating_sub(1) / ratio
        }
    }

    /// The entry of a payload block.
    pub(super) fn payload_entry(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio()
    }

    /// The entry of the sector bitmap block of a chunk.
    pub(super) fn bitmap_entry(&self, chunk: u64) -> u64 {
        chunk * (self.chunk_ratio() + 1) + self.chunk_ratio()
    }

    /// Returns whether an entry is that of a sector bitmap block.
    pub(super) fn is_bitmap(&self, entry: u64) -> bool {
        entry % (self.chunk_ratio() + 1) == self.chunk_ratio()
    }

    /// Payload blocks whose entries come before that one.
    pub(super) fn blocks_before(&self, entry: u64) -> u64 {
        entry - entry / (self.chunk_ratio() + 1)
    }

    /// Number of bytes of a payload block that the disk has.
    pub(super) fn used(&self, block: u64) -> u64 {
        let start = block.saturating_mul(self.block_size);
        self.virtual_size.saturating_sub(start).min(self.block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_entries_stand_between_chunks() {
        let geometry = Geometry {
            virtual_size: (64 << 30) + 1,
            block_size: 256 << 20,
            sector_size: 512,
            has_parent: false,
        };
        assert_eq!(geometry.chunk_ratio(), 16);
        assert_eq!((geometry.blocks(), geometry.entries()), (257, 273));
        assert_eq!(geometry.payload_entry(15), 15);
        assert_eq!(geometry.payload_entry(16), 17);
        assert_eq!(geometry.bitmap_entry(0), 16);
        assert!(geometry.is_bitmap(16) && !geometry.is_bitmap(17));
        assert_eq!(geometry.payload_entry(256), 272);
        for block in 0..257 {
            let entry = geometry.payload_entry(block);
            assert_eq!(geometry.blocks_before(entry), block);
            assert!(!geometry.is_bitmap(entry));
        }
        let child = Geometry {
            has_parent: true,
            ..geometry
        };
        assert_eq!(child.entries(), 17 * 17);
        assert_eq!(geometry.used(256), 1);
        assert_eq!(geometry.used(0), 256 << 20);
    }
}
