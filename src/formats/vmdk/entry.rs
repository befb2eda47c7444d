//! Entries of grain directories and grain tables.

use crate::ondisk::table_entry;

use super::header::SECTOR;

/// State of a grain, as its entry gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    /// Not in this extent: the parent's, or zeros.
    Unallocated,
    Zero,
    /// Stored at this host offset.
    At(u64),
}

table_entry! {
    /// An entry of the grain directory of a hosted sparse or COWD extent: the sector of a grain table,
    /// or 0.
    pub(super) struct GrainDirectoryEntry(u32), Little;
}

impl GrainDirectoryEntry {
    /// Host offset of the grain table, if there is one.
    pub(super) fn table(self) -> Option<u64> {
        (self.0 != 0).then(|| u64::from(self.0) * SECTOR)
    }
}

table_entry! {
    /// An entry of a grain table of such an extent: the sector of a grain, or 0; 1 is a grain of zeros in
    /// an extent with that flag.
    pub(super) struct GrainEntry(u32), Little;
}

impl GrainEntry {
    /// A grain of zeros.
    pub(super) const ZERO: Self = GrainEntry(1);

    pub(super) fn grain(self, zeroed_grains: bool) -> Grain {
        match self.0 {
            0 => Grain::Unallocated,
            1 if zeroed_grains => Grain::Zero,
            sector => Grain::At(u64::from(sector) * SECTOR),
        }
    }
}

table_entry! {
    /// An entry of the grain directory of a space-efficient sparse extent.
    pub(super) struct SeDirectoryEntry(u64), Little;
}

impl SeDirectoryEntry {
    /// The upper half of an entry that is in use.
    const IN_USE: u64 = 0x1000_0000;

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of the grain table; `None` for an entry that means nothing.
    pub(super) fn table(self) -> Option<u64> {
        (self.0 >> 32 == Self::IN_USE).then_some(self.0 & 0xffff_ffff)
    }
}

table_entry! {
    /// An entry of a grain table of such an extent.
    pub(super) struct SeGrainEntry(u64), Little;
}

impl SeGrainEntry {
    /// State of the grain, where grains of `size` bytes begin at byte `start`; `None` for an entry that
    /// means nothing.
    pub(super) fn grain(self, start: u64, size: u64) -> Option<Grain> {
        match self.0 >> 60 {
            0 if self.0 == 0 => Some(Grain::Unallocated),
            // 1 is a grain that the guest unmapped, 2 one that it zeroed.
            1 | 2 => Some(Grain::Zero),
            3 => {
                let number = ((self.0 >> 48) & 0xfff) | ((self.0 & 0xffff_ffff_ffff) << 12);
                number.checked_mul(size)?.checked_add(start).map(Grain::At)
            }
            _ => None,
        }
    }
}
