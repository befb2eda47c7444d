//! Entries of the L1, L2, refcount and bitmap tables.

use std::fmt;

use crate::ondisk::{FieldType, Order, be, table_entry};

use super::header::Header;

/// Bits of an entry that are a host offset (section "Cluster mapping").
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The reference count of what the entry points to is exactly one (L1 and L2).
const COPIED: u64 = 1 << 63;
/// The cluster is compressed (L2).
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zero (L2, version 3, not with subclusters).
const ZERO: u64 = 1;
/// Subclusters in a cluster of an image with extended L2 entries.
pub(super) const SUBCLUSTERS: u32 = 32;

table_entry! {
    /// An entry of an L1 table (section "Cluster mapping").
    pub(super) struct L1Entry(u64), Big;
}

impl L1Entry {
    const RESERVED: u64 = !(OFFSET | COPIED);

    /// The entry of the L2 table at `host`, to which nothing else refers.
    pub(super) fn of(host: u64) -> Self {
        L1Entry(host | COPIED)
    }

    /// Host offset of the L2 table, or 0.
    pub(super) fn offset(self) -> u64 {
        self.0 & OFFSET
    }

    pub(super) fn has_reserved_bits(self) -> bool {
        self.0 & Self::RESERVED != 0
    }
}

table_entry! {
    /// An entry of the refcount table (section "Host cluster management").
    pub(super) struct RefcountTableEntry(u64), Big;
}

impl RefcountTableEntry {
    const RESERVED: u64 = 0x1ff;

    /// Host offset of the refcount block, or 0.
    pub(super) fn offset(self) -> u64 {
        self.0 & !Self::RESERVED
    }

    pub(super) fn has_reserved_bits(self) -> bool {
        self.0 & Self::RESERVED != 0
    }
}

table_entry! {
    /// An entry of a bitmap table (section "Bitmap table").
    pub(super) struct BitmapTableEntry(u64), Big;
}

impl BitmapTableEntry {
    /// All bits of the bitmap that the entry is about are set, where it has no offset.
    const ALL_ONES: u64 = 1;

    /// Host offset of the cluster, or 0.
    pub(super) fn offset(self) -> u64 {
        self.0 & OFFSET
    }

    /// Returns whether a bit is set that has no meaning, or none beside an offset.
    pub(super) fn has_reserved_bits(self) -> bool {
        let meant = match self.offset() {
            0 => Self::ALL_ONES,
            offset => offset,
        };
        self.0 & !meant != 0
    }
}

/// An entry with a flag that the refcount of what it points to is exactly one.
pub(super) trait Copied: fmt::LowerHex {
    fn is_copied(&self) -> bool;
}

impl Copied for L1Entry {
    fn is_copied(&self) -> bool {
        self.0 & COPIED != 0
    }
}

impl Copied for L2Entry {
    fn is_copied(&self) -> bool {
        self.raw & COPIED != 0
    }
}

impl fmt::LowerHex for L2Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.raw, f)
    }
}

/// Sets or clears that flag in the bytes of an L1 or L2 entry.
pub(super) fn set_copied(entry: &mut [u8], copied: bool) {
    if let Some(byte) = entry.first_mut() {
        *byte = *byte & 0x7f | u8::from(copied) << 7;
    }
}

/// An L2 entry (sections "Cluster mapping" and "Extended L2 Entries").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct L2Entry {
    raw: u64,
    /// Subclusters that are allocated in the lower half, and that read as zero in the upper one; 0 where
    /// entries are not extended.
    pub(super) bitmap: u64,
}

impl L2Entry {
    /// A cluster that reads as zero.
    pub(super) const ZERO: Self = L2Entry {
        raw: ZERO,
        bitmap: 0,
    };

    /// The entry of the cluster at `host`, to which nothing else refers.
    pub(super) fn of(host: u64) -> Self {
        L2Entry {
            raw: host | COPIED,
            bitmap: 0,
        }
    }

    /// The same entry with these subclusters.
    pub(super) fn with_bitmap(self, bitmap: u64) -> Self {
        L2Entry { bitmap, ..self }
    }

    pub(super) fn is_empty(self) -> bool {
        self == L2Entry::default()
    }

    /// Host offset of a cluster that is not compressed, or 0.
    pub(super) fn offset(self) -> u64 {
        self.raw & OFFSET
    }

    /// The descriptor of a compressed cluster, if the entry has one.
    pub(super) fn descriptor(self) -> Option<Descriptor> {
        let is_compressed = self.raw & COMPRESSED != 0;
        is_compressed.then_some(Descriptor(self.raw & (COMPRESSED - 1)))
    }

    /// Bits of the subclusters that are allocated, and of those that read as zero.
    pub(super) fn subclusters(self) -> [u64; 2] {
        [self.bitmap & 0xffff_ffff, self.bitmap >> SUBCLUSTERS]
    }
}

/// A compressed cluster descriptor, as an [`L2Layout`] divides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor(u64);

/// The form of an image's L2 entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct L2Layout {
    cluster_bits: u32,
    extended: bool,
    /// The bit of a cluster that reads as zero, or 0 if there is none.
    zero: u64,
}

impl L2Layout {
    pub(super) fn new(cluster_bits: u32, extended: bool, version: u32) -> Self {
        L2Layout {
            cluster_bits,
            extended,
            zero: if extended || version < 3 { 0 } else { ZERO },
        }
    }

    pub(super) fn of(header: &Header) -> Self {
        Self::new(
            header.cluster_bits,
            header.has_extended_l2(),
            header.version,
        )
    }

    /// Length of an entry in bytes.
    pub(super) fn entry_len(self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Guest bytes for which one L2 table answers.
    pub(super) fn table_span(self) -> u64 {
        ((1 << self.cluster_bits) / self.entry_len()) << self.cluster_bits
    }

    /// Reads the entry number `index` of a table; `None` past its end.
    pub(super) fn decode(self, table: &[u8], index: u64) -> Option<L2Entry> {
        let at = usize::try_from(index.checked_mul(self.entry_len())?).ok()?;
        Some(L2Entry {
            raw: be(table, at)?,
            bitmap: match self.extended {
                true => be(table, at.checked_add(8)?)?,
                false => 0,
            },
        })
    }

    /// Reads all entries of a table.
    pub(super) fn all(self, table: &[u8]) -> impl Iterator<Item = L2Entry> {
        let len = if self.extended { 16 } else { 8 };
        let entries = table.chunks_exact(len);
        entries.filter_map(move |raw| self.decode(raw, 0))
    }

    /// Writes the entry number `index` of a table, or nothing past its end.
    pub(super) fn put(self, entry: L2Entry, table: &mut [u8], index: u64) {
        let at = index.checked_mul(self.entry_len());
        let Some(at) = at.and_then(|at| usize::try_from(at).ok()) else {
            return;
        };
        entry.raw.put(table, at, Order::Big);
        if self.extended {
            entry.bitmap.put(table, at.saturating_add(8), Order::Big);
        }
    }

    /// Returns whether the cluster reads as zero by its flag.
    pub(super) fn is_zero(self, entry: L2Entry) -> bool {
        entry.raw & self.zero != 0
    }

    /// Returns whether reserved bits of an entry that is not compressed are set.
    pub(super) fn has_reserved_bits(self, entry: L2Entry) -> bool {
        entry.raw & !(OFFSET | COPIED | COMPRESSED | self.zero) != 0
    }

    /// Bits of a descriptor that are the host offset, from bit 0 up (section "Compressed Clusters
    /// Descriptor").
    fn offset_bits(self) -> u32 {
        62 - (self.cluster_bits - 8)
    }

    /// Host offset of compressed data, and its greatest length: up to the end of the last 512-byte sector
    /// that it touches.
    pub(super) fn data(self, descriptor: Descriptor) -> (u64, u64) {
        let host = descriptor.0 & ((1 << self.offset_bits()) - 1);
        let more_sectors = descriptor.0 >> self.offset_bits();
        (host, (more_sectors + 1) * 512 - host % 512)
    }

    /// The entry of `len` compressed bytes at `host`.
    pub(super) fn compressed(self, host: u64, len: u64) -> L2Entry {
        let more_sectors = (host % 512 + len).div_ceil(512) - 1;
        L2Entry {
            raw: COMPRESSED | (more_sectors << self.offset_bits()) | host,
            bitmap: 0,
        }
    }

    /// First host offset that a descriptor has no room for.
    pub(super) fn compressed_limit(self) -> u64 {
        1 << self.offset_bits().min(56)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_counts_sectors_beyond_the_first() {
        let layout = L2Layout::new(16, false, 3);
        let raw = |len| format!("{:#x}", layout.compressed(0x5_0100, len));
        // 54 offset bits for 64 KiB clusters: the example of the specification.
        assert_eq!(raw(300), "0x4040000000050100");
        assert_eq!(raw(256), "0x4000000000050100");
        let data = |host, len| layout.data(layout.compressed(host, len).descriptor().unwrap());
        assert_eq!(data(0x5_0100, 300), (0x5_0100, 768));
        assert_eq!(data(0x5_0000, 512), (0x5_0000, 512));
    }

    #[test]
    fn an_entry_is_written_as_it_is_read() {
        let entry = L2Entry::of(0x5_0000).with_bitmap(0x0000_0002_0000_0001);
        for (extended, len, bitmap) in [(false, 8, 0), (true, 16, entry.bitmap)] {
            let layout = L2Layout::new(16, extended, 3);
            let mut table = vec![0; 3 * len + 7];
            layout.put(entry, &mut table, 1);
            layout.put(entry, &mut table, u64::MAX);
            let read = entry.with_bitmap(bitmap);
            assert_eq!(layout.decode(&table, 1), Some(read));
            assert_eq!(layout.decode(&table, u64::MAX), None);
            let all: Vec<L2Entry> = layout.all(&table).collect();
            assert_eq!(all, [L2Entry::default(), read, L2Entry::default()]);
            assert!(read.is_copied() && read.offset() == 0x5_0000);
            set_copied(&mut table[len..], false);
            assert_eq!(table[len], 0);
        }
    }

    #[test]
    fn bits_without_a_meaning_are_found() {
        let zero = |extended, version| {
            let layout = L2Layout::new(16, extended, version);
            (
                layout.is_zero(L2Entry::ZERO),
                layout.has_reserved_bits(L2Entry::ZERO),
            )
        };
        assert_eq!(zero(false, 3), (true, false));
        assert_eq!(zero(false, 2), (false, true));
        assert_eq!(zero(true, 3), (false, true));
        let bitmap = |raw| BitmapTableEntry(raw).has_reserved_bits();
        assert_eq!(
            [0, 1, 0x200, 0x201, 2, 1 << 63].map(bitmap),
            [false, false, false, true, true, true]
        );
        assert!(L1Entry(1).has_reserved_bits() && L1Entry(1 << 62).has_reserved_bits());
        assert!(!L1Entry::of(0x200).has_reserved_bits());
        assert!(RefcountTableEntry(0x201).has_reserved_bits());
    }
}
