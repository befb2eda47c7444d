//! The feature bits of version 3 and the table in which an image names them.

use bitflags::bitflags;

use crate::name::ImageName;
use crate::ondisk::{on_disk, until_nul};

use super::QCOW2;

bitflags! {
    /// Bits that a reader has to know to read the image (section "Header", bytes 72 to 79).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Incompatible: u64 {
        /// The reference counts may be wrong: the image was not closed.
        const DIRTY = 1 << 0;
        /// Some structure is known to be wrong.
        const CORRUPT = 1 << 1;
        /// The guest's data is in an external data file.
        const DATA_FILE = 1 << 2;
        /// Clusters are compressed by another codec than deflate.
        const COMPRESSION_TYPE = 1 << 3;
        /// L2 entries are 16 bytes long and have bitmaps of subclusters.
        const EXTENDED_L2 = 1 << 4;
    }
}

bitflags! {
    /// Bits that a reader may ignore (bytes 80 to 87).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Compatible: u64 {
        /// Reference counts are written late.
        const LAZY_REFCOUNTS = 1 << 0;
    }
}

bitflags! {
    /// Bits that a writer has to clear if it does not know them (bytes 88 to 95).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Autoclear: u64 {
        /// The bitmaps extension is consistent with the guest's data.
        const BITMAPS = 1 << 0;
        /// The external data file read alone is the guest's disk.
        const RAW_EXTERNAL_DATA = 1 << 1;
    }
}

on_disk! {
    /// Section "Feature name table": one entry.
    pub(super) struct FeatureName in QCOW2, "feature name table", Big, 48 bytes {
        feature_type: u8 = 0,
        bit: u8 = 1,
        name: [u8; 46] = 2,
    }
}

/// The `feature_type` of an incompatible, compatible and autoclear feature.
pub(super) const INCOMPATIBLE: u8 = 0;
pub(super) const COMPATIBLE: u8 = 1;
pub(super) const AUTOCLEAR: u8 = 2;

/// The names that this crate writes, those of QEMU: feature type, bit and name.
pub(super) const NAMES: [(u8, u8, &str); 8] = [
    (INCOMPATIBLE, 0, "dirty bit"),
    (INCOMPATIBLE, 1, "corrupt bit"),
    (INCOMPATIBLE, 2, "external data file"),
    (INCOMPATIBLE, 3, "compression type"),
    (INCOMPATIBLE, 4, "extended L2 entries"),
    (COMPATIBLE, 0, "lazy refcounts"),
    (AUTOCLEAR, 0, "bitmaps"),
    (AUTOCLEAR, 1, "raw external data"),
];

/// The unknown incompatible features in the words of the image's own table, which is untrusted text.
pub(super) fn describe_unknown(bits: u64, table: &[u8]) -> String {
    let name_of = |bit: u32| {
        let entries = table.chunks_exact(FeatureName::LEN);
        let mut entries = entries.filter_map(|entry| FeatureName::parse(entry, 0).ok());
        let entry = entries.find(|e| e.feature_type == INCOMPATIBLE && u32::from(e.bit) == bit)?;
        let text = until_nul(&entry.name);
        (!text.is_empty()).then(|| ImageName::from(text).quoted().to_string())
    };
    let unknown = (0..64).filter(|bit| bits & (1 << bit) != 0);
    let names = unknown.map(|bit| match name_of(bit) {
        Some(name) => format!("{name} (bit {bit})"),
        None => format!("bit {bit}"),
    });
    format!(
        "incompatible feature {}",
        names.collect::<Vec<_>>().join(", ")
    )
}
