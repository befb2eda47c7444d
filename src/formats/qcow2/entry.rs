//! The entries of the L1, L2 and refcount tables.

/// Bits of an L1 entry that are the offset of an L2 table (section "Cluster mapping").
pub(super) const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that have to be 0.
pub(super) const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits of an L2 entry of a cluster that is not compressed that have to be 0; bit 0 is [`ZERO`].
pub(super) const L2_RESERVED: u64 = 0x3f00_0000_0000_01ff;
/// Bits of a standard L2 entry that are the offset of a cluster.
pub(super) const L2_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of a refcount table entry that are the offset of a refcount block.
pub(super) const REFCOUNT_OFFSET: u64 = 0xffff_ffff_ffff_fe00;
/// Bits of a refcount table entry that have to be 0.
pub(super) const REFCOUNT_RESERVED: u64 = 0x1ff;
/// Bits of a bitmap table entry that are the offset of a cluster (section "Bitmap table").
pub(super) const BITMAP_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of a bitmap table entry that have to be 0. Bit 0 has a meaning where there is no offset.
pub(super) const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;
/// All bits of the bitmap that the entry is about are set, where it has no offset.
pub(super) const BITMAP_ALL_ONES: u64 = 1;
/// The reference count of what the entry points to is exactly one (L1 and L2).
pub(super) const COPIED: u64 = 1 << 63;
/// The cluster is compressed (L2).
pub(super) const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zero (L2, version 3, not with subclusters).
pub(super) const ZERO: u64 = 1;
/// Subclusters in a cluster of an image with extended L2 entries.
pub(super) const SUBCLUSTERS: u32 = 32;

/// How a compressed cluster descriptor divides its bits (section "Compressed Clusters Descriptor").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CompressedLayout {
    /// Number of bits that are the host offset, from bit 0 up.
    offset_bits: u32,
}

impl CompressedLayout {
    pub(super) fn new(cluster_bits: u32) -> Self {
        CompressedLayout {
            offset_bits: 62 - (cluster_bits - 8),
        }
    }

    /// Host offset in bytes, and the most that the packed bytes are long: up to the end of the last
    /// 512-byte sector that they touch.
    pub(super) fn decode(self, entry: u64) -> (u64, u64) {
        let descriptor = entry & (COMPRESSED - 1);
        let host = descriptor & ((1 << self.offset_bits) - 1);
        let more_sectors = descriptor >> self.offset_bits;
        (host, (more_sectors + 1) * 512 - host % 512)
    }

    /// The entry of `len` packed bytes at `host`.
    pub(super) fn encode(self, host: u64, len: u64) -> u64 {
        let more_sectors = (host % 512 + len).div_ceil(512) - 1;
        COMPRESSED | (more_sectors << self.offset_bits) | host
    }

    /// How far host offsets reach: the first that does not fit, in bytes.
    pub(super) fn limit(self) -> u64 {
        1 << self.offset_bits.min(56)
    }
}

/// The `index`th big-endian number of a table.
pub(super) fn be_u64(table: &[u8], index: usize) -> Option<u64> {
    let raw = table.get(index.checked_mul(8)?..)?.first_chunk()?;
    Some(u64::from_be_bytes(*raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_counts_sectors_beyond_the_first() {
        let layout = CompressedLayout::new(16);
        // 54 offset bits for 64 KiB clusters: the example of the specification.
        assert_eq!(
            layout.encode(0x5_0100, 300),
            COMPRESSED | (1 << 54) | 0x5_0100
        );
        assert_eq!(layout.encode(0x5_0100, 256), COMPRESSED | 0x5_0100);
        assert_eq!(layout.decode(layout.encode(0x5_0100, 300)), (0x5_0100, 768));
        assert_eq!(layout.decode(layout.encode(0x5_0000, 512)), (0x5_0000, 512));
    }
}
