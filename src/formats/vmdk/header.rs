//! The headers of sparse extents, and the markers of streams.
//!
//! VMware's "Virtual Disk Format 5.0", sections "Hosted Sparse Extents", "ESXi Host Sparse Extents" and
//! "Stream-Optimized Compressed Sparse Extents". Its names are kept, in this language's spelling.

use bitflags::bitflags;

use crate::error::{Error, Result};
use crate::ondisk::on_disk;
use crate::source::BlockSource;

use super::VMDK;

/// Bytes of a sector: everything in a VMDK counts in these.
pub(super) const SECTOR: u64 = 512;
/// Bytes of a sector.
pub(super) const SECTOR_LEN: usize = 512;

/// `KDMV`, the magic of a hosted sparse extent.
pub(super) const SPARSE_MAGIC: [u8; 4] = *b"KDMV";
/// `COWD`, the magic of an ESXi host's sparse extent.
pub(super) const COWD_MAGIC: [u8; 4] = *b"COWD";
/// The first eight bytes of a space-efficient sparse extent.
pub(super) const SE_SPARSE_MAGIC: [u8; 8] = [0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0];
/// The first bytes of a file that tracks which blocks change (`-ctk.vmdk`).
pub(super) const CHANGE_TRACKING_MAGIC: [u8; 4] = [0xa2, 0x72, 0x19, 0xf6];

/// `gdOffset` of a stream whose grain directory is at its end, where a footer says so.
pub(super) const GD_AT_END: u64 = u64::MAX;
/// `compressAlgorithm` of grains that are zlib streams.
pub(super) const COMPRESSION_DEFLATE: u16 = 1;
/// `singleEndLineChar` and those that follow: a transfer as text damages them.
pub(super) const END_LINE_CHARS: [u8; 4] = *b"\n \r\n";

on_disk! {
    /// `SparseExtentHeader`.
    pub(super) struct SparseExtentHeader in VMDK, "sparse extent header", Little, 512 bytes {
        magic_number: [u8; 4] = 0,
        version: u32 = 4,
        flags: u32 = 8,
        /// Size of the extent in sectors.
        capacity: u64 = 12,
        /// Size of a grain in sectors.
        grain_size: u64 = 20,
        descriptor_offset: u64 = 28,
        descriptor_size: u64 = 36,
        num_gtes_per_gt: u32 = 44,
        rgd_offset: u64 = 48,
        gd_offset: u64 = 56,
        /// Sectors of metadata before the first grain.
        over_head: u64 = 64,
        unclean_shutdown: u8 = 72,
        /// `singleEndLineChar`, `nonEndLineChar`, `doubleEndLineChar1`, `doubleEndLineChar2`.
        end_line_chars: [u8; 4] = 73,
        compress_algorithm: u16 = 77,
    }
}

bitflags! {
    /// `flags` of a hosted sparse extent.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Flags: u32 {
        /// The newline detection test is valid.
        const NEWLINE_TEST = 1;
        /// The redundant grain directory is used.
        const REDUNDANT_DIRECTORY = 1 << 1;
        /// A grain table entry of 1 means a grain of zeros.
        const ZEROED_GRAINS = 1 << 2;
        /// The grains are compressed.
        const COMPRESSED = 1 << 16;
        /// There are markers in the extent.
        const MARKERS = 1 << 17;
    }
}

on_disk! {
    /// `Marker`, and what a grain is preceded by: a `size` other than 0 is that of a grain's data,
    /// which begins where the `type` would stand.
    pub(super) struct Marker in VMDK, "marker", Little, 16 bytes {
        /// Sectors that follow, or the grain's first sector in the disk.
        val: u64 = 0,
        size: u32 = 8,
        kind: u32 = 12,
    }
}

/// Bytes before the data of a grain in a stream: a marker without its type.
pub(super) const GRAIN_MARKER_LEN: usize = Marker::kind.offset;
/// `type` of the marker after which nothing follows.
pub(super) const MARKER_EOS: u32 = 0;
/// `type` of the marker before a grain table.
pub(super) const MARKER_GT: u32 = 1;
/// `type` of the marker before the grain directory.
pub(super) const MARKER_GD: u32 = 2;
/// `type` of the marker before the footer.
pub(super) const MARKER_FOOTER: u32 = 3;
/// `type` of a marker that tells how far the writer was.
pub(super) const MARKER_PROGRESS: u32 = 4;

on_disk! {
    /// `COWDisk_Header`, as far as reading needs it.
    pub(super) struct CowdHeader in VMDK, "COWD header", Little, 2048 bytes {
        magic_number: [u8; 4] = 0,
        version: u32 = 4,
        flags: u32 = 8,
        /// Size of the extent in sectors.
        num_sectors: u32 = 12,
        /// Size of a grain in sectors.
        grain_size: u32 = 16,
        gd_offset: u32 = 20,
        num_gd_entries: u32 = 24,
        free_sector: u32 = 28,
        /// The geometry of a root disk, or a child's name for its parent.
        cylinders: u32 = 32,
        heads: u32 = 36,
        sectors: u32 = 40,
        parent_rest: [u8; 1012] = 44,
    }
}

/// Entries of a grain table of a COWD extent.
pub(super) const COWD_TABLE_ENTRIES: u64 = 4096;

on_disk! {
    /// The constant header of a space-efficient sparse extent. VMware never published it: these are
    /// QEMU's names for what it found.
    pub(super) struct SeSparseConstHeader in VMDK, "seSparse constant header", Little, 512 bytes {
        magic: u64 = 0,
        version: u64 = 8,
        capacity: u64 = 16,
        grain_size: u64 = 24,
        grain_table_size: u64 = 32,
        flags: u64 = 40,
        reserved1: u64 = 48,
        reserved2: u64 = 56,
        reserved3: u64 = 64,
        reserved4: u64 = 72,
        volatile_header_offset: u64 = 80,
        volatile_header_size: u64 = 88,
        journal_header_offset: u64 = 96,
        journal_header_size: u64 = 104,
        journal_offset: u64 = 112,
        journal_size: u64 = 120,
        grain_dir_offset: u64 = 128,
        grain_dir_size: u64 = 136,
        grain_tables_offset: u64 = 144,
        grain_tables_size: u64 = 152,
        free_bitmap_offset: u64 = 160,
        free_bitmap_size: u64 = 168,
        backmap_offset: u64 = 176,
        backmap_size: u64 = 184,
        grains_offset: u64 = 192,
        grains_size: u64 = 200,
        pad: [u8; 304] = 208,
    }
}

on_disk! {
    /// The volatile header of a space-efficient sparse extent, likewise.
    pub(super) struct SeSparseVolatileHeader in VMDK, "seSparse volatile header", Little, 512 bytes {
        magic: u64 = 0,
        free_gt_number: u64 = 8,
        next_txn_seq_number: u64 = 16,
        replay_journal: u64 = 24,
        pad: [u8; 480] = 32,
    }
}

pub(super) const SE_SPARSE_VERSION: u64 = 0x2_0000_0001;
pub(super) const SE_SPARSE_VOLATILE_MAGIC: u64 = 0xcafe_cafe;

/// The largest grain that is taken for real: 1 GiB, as QEMU has it.
const MAX_GRAIN_SECTORS: u64 = 0x20_0000;
/// The most entries of a grain table; the specification knows no other number.
const MAX_TABLE_ENTRIES: u32 = 512;
/// The largest capacity whose size in bytes is an offset of a file.
const MAX_SECTORS: u64 = (i64::MAX as u64) / SECTOR;

impl SparseExtentHeader {
    /// The flags that this crate knows; what others mean does not change how the extent is read.
    pub(super) fn flag_set(&self) -> Flags {
        Flags::from_bits_truncate(self.flags)
    }

    /// Returns `true` if the grains are compressed.
    pub(super) fn is_compressed(&self) -> bool {
        self.compress_algorithm == COMPRESSION_DEFLATE
    }

    /// Returns `true` if the tables come after the grains, and each grain's marker gives its place.
    pub(super) fn is_walkable(&self) -> bool {
        let marked = self.flag_set().contains(Flags::MARKERS);
        self.gd_offset == GD_AT_END && self.is_compressed() && marked
    }

    /// Checks what can be checked without the rest of the file. `at` is where the header starts.
    ///
    /// # Errors
    /// [`Error::Malformed`], and [`Error::Unsupported`] for a version that is not known.
    pub(super) fn check(&self, at: u64) -> Result<()> {
        if !(1..=3).contains(&self.version) {
            return Err(unsupported(format!("version {}", self.version)));
        }
        if self.flag_set().contains(Flags::NEWLINE_TEST) && self.end_line_chars != END_LINE_CHARS {
            let problem = "are changed: the file was transferred as if it were text";
            return Err(Self::malformed(at, "end_line_chars", problem));
        }
        check_grain_size(self.grain_size)
            .map_err(|problem| Self::malformed(at, "grain_size", problem))?;
        if !(1..=MAX_TABLE_ENTRIES).contains(&self.num_gtes_per_gt) {
            let problem = format!("is {}, not 1 to 512", self.num_gtes_per_gt);
            return Err(Self::malformed(at, "num_gtes_per_gt", problem));
        }
        if self.capacity > MAX_SECTORS {
            let problem = format!("is {} sectors, more than a file can have", self.capacity);
            return Err(Self::malformed(at, "capacity", problem));
        }
        match self.compress_algorithm {
            0 if self.flag_set().contains(Flags::COMPRESSED) => {
                let problem = "is 0, and the flags say that the grains are compressed";
                Err(Self::malformed(at, "compress_algorithm", problem))
            }
            0 | COMPRESSION_DEFLATE => Ok(()),
            other => Err(unsupported(format!("compression algorithm {other}"))),
        }
    }
}

impl CowdHeader {
    /// Checks what can be checked without the rest of the file.
    ///
    /// # Errors
    /// As [`SparseExtentHeader::check`].
    pub(super) fn check(&self) -> Result<()> {
        if self.version != 1 {
            return Err(unsupported(format!("COWD version {}", self.version)));
        }
        check_grain_size(self.grain_size.into())
            .map_err(|problem| Self::malformed(0, "grain_size", problem))
    }

    /// Returns `true` if the header names a parent in the place of a root disk's geometry.
    pub(super) fn names_parent(&self) -> bool {
        let geometry = [self.cylinders, self.heads, self.sectors];
        // A name of four letters or more makes numbers that no geometry has.
        geometry.iter().any(|n| *n > 0x00ff_ffff)
    }
}

impl SeSparseConstHeader {
    /// Checks what can be checked without the rest of the file.
    ///
    /// # Errors
    /// As [`SparseExtentHeader::check`].
    pub(super) fn check(&self) -> Result<()> {
        if self.version != SE_SPARSE_VERSION {
            return Err(unsupported(format!("seSparse version {:#x}", self.version)));
        }
        let reserved = [
            self.reserved1,
            self.reserved2,
            self.reserved3,
            self.reserved4,
        ];
        let pad = self.pad.iter().any(|byte| *byte != 0);
        if self.flags != 0 || reserved.iter().any(|word| *word != 0) || pad {
            return Err(unsupported(
                "a seSparse extent with flags that are not known".into(),
            ));
        }
        if self.grain_size != 8 || self.grain_table_size != 64 {
            return Err(unsupported(format!(
                "a seSparse extent with grains of {} and tables of {} sectors",
                self.grain_size, self.grain_table_size
            )));
        }
        if self.capacity > MAX_SECTORS {
            let problem = format!("is {} sectors, more than a file can have", self.capacity);
            return Err(Self::malformed(0, "capacity", problem));
        }
        Ok(())
    }
}

fn check_grain_size(sectors: u64) -> std::result::Result<(), String> {
    if sectors.is_power_of_two() && sectors <= MAX_GRAIN_SECTORS {
        Ok(())
    } else {
        Err(format!(
            "is {sectors} sectors, not a power of two up to {MAX_GRAIN_SECTORS}"
        ))
    }
}

/// The error for something that the image has by right and this crate cannot do.
pub(super) fn unsupported(feature: String) -> Error {
    Error::unsupported(VMDK, feature, None)
}

/// The structure at byte `at`, unchecked.
pub(super) fn header_at(file: &dyn BlockSource, at: u64) -> Result<SparseExtentHeader> {
    let mut bytes = [0; SECTOR_LEN];
    let n = file.read_at(&mut bytes, at)?;
    SparseExtentHeader::parse(bytes.get(..n).unwrap_or_default(), at)
}
