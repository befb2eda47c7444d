//! The header (section "Header" of the specification).

use crate::error::{Error, Result};
use crate::ondisk::on_disk;
use crate::source::BlockSource;

use super::PARALLELS;

/// The magic of images whose table counts in sectors.
pub(super) const MAGIC: [u8; 16] = *b"WithoutFreeSpace";
/// The magic of images whose table counts in clusters.
pub(super) const MAGIC_EXT: [u8; 16] = *b"WithouFreSpacExt";

/// The image was opened for writing and not closed (`in_use`).
const IN_USE: u32 = 0x746f_6e59;
/// The image is to be considered clear (`flags`, bit 0).
const EMPTY: u32 = 1;
/// Largest cluster, in sectors: with it QEMU's arithmetic still holds, and no writer comes near it.
const MAX_TRACKS: u32 = 0x7fff_ffff / 513;

pub(super) const SECTOR: u64 = 512;

on_disk! {
    /// Section "Header".
    pub(super) struct RawHeader in PARALLELS, "header", Little, 64 bytes {
        magic: [u8; 16] = 0,
        version: u32 = 16,
        heads: u32 = 20,
        cylinders: u32 = 24,
        tracks: u32 = 28,
        nb_bat_entries: u32 = 32,
        nb_sectors: u64 = 36,
        in_use: u32 = 44,
        data_off: u32 = 48,
        flags: u32 = 52,
        ext_off: u64 = 56,
    }
}

/// The header, checked.
#[derive(Debug, Clone)]
pub(super) struct Header {
    /// Virtual size in bytes.
    pub(super) size: u64,
    /// Sectors of a cluster.
    pub(super) tracks: u32,
    /// Sectors that one is in the BAT.
    pub(super) multiplier: u32,
    /// Entries of the BAT that the disk needs.
    pub(super) entries: u64,
    /// Host offset of the data area.
    pub(super) data_start: u64,
    /// Host offset of the format extension.
    pub(super) extension: Option<u64>,
    /// Set if the image was not closed.
    pub(super) in_use: bool,
    pub(super) warnings: Vec<String>,
}

impl Header {
    /// Cluster size in bytes.
    pub(super) fn cluster_size(&self) -> u64 {
        u64::from(self.tracks) * SECTOR
    }

    /// Reads and checks the header of a file.
    pub(super) fn read(file: &dyn BlockSource) -> Result<Self> {
        let mut bytes = [0; RawHeader::LEN];
        let n = file.read_at(&mut bytes, 0)?;
        let raw = RawHeader::parse(bytes.get(..n).unwrap_or_default(), 0)?;
        let bad = |field, problem: String| Err(RawHeader::malformed(0, field, problem));
        let extended = raw.magic == MAGIC_EXT;
        if !extended && raw.magic != MAGIC {
            return bad("magic", "is not one of Parallels'".to_owned());
        }
        if raw.version != 2 {
            return Err(Error::unsupported(
                PARALLELS,
                format!("version {}", raw.version),
                None,
            ));
        }
        if raw.tracks == 0 || raw.tracks > MAX_TRACKS {
            let problem = format!("is {}, and has to be 1 to {MAX_TRACKS}", raw.tracks);
            return bad("tracks", problem);
        }
        // The upper half is no part of the number in the older kind, and not always clear.
        let sectors = if extended {
            raw.nb_sectors
        } else {
            raw.nb_sectors & 0xffff_ffff
        };
        let entries = sectors.div_ceil(raw.tracks.into());
        if entries > u64::from(raw.nb_bat_entries) {
            let problem = format!(
                "is {}, and a disk of {sectors} sectors needs {entries}",
                raw.nb_bat_entries
            );
            return bad("nb_bat_entries", problem);
        }
        let Some(size) = sectors.checked_mul(SECTOR) else {
            return bad("nb_sectors", format!("is {sectors}"));
        };
        let bat_end = RawHeader::LEN as u64 + u64::from(raw.nb_bat_entries) * 4;
        if bat_end > file.size() {
            let problem = format!(
                "is {}, and the BAT reaches past the end of the file at {}",
                raw.nb_bat_entries,
                file.size()
            );
            return bad("nb_bat_entries", problem);
        }
        let mut header = Header {
            size,
            tracks: raw.tracks,
            multiplier: if extended { raw.tracks } else { 1 },
            entries,
            data_start: bat_end.next_multiple_of(SECTOR),
            extension: None,
            in_use: raw.in_use == IN_USE,
            warnings: Vec::new(),
        };
        header.place_data(&raw, extended);
        if header.in_use {
            let text = "the image was not closed: its BAT may be behind its data";
            header.warnings.push(text.to_owned());
        }
        if raw.flags & EMPTY != 0 {
            let text = "the image is marked as empty, and is read as its BAT says";
            header.warnings.push(text.to_owned());
        }
        if raw.ext_off != 0 {
            let Some(at) = raw.ext_off.checked_mul(SECTOR) else {
                return bad("ext_off", format!("is {}", raw.ext_off));
            };
            header.extension = Some(at);
        }
        Ok(header)
    }

    /// Takes over where the data area starts. QEMU, too, reads images that give it wrongly.
    fn place_data(&mut self, raw: &RawHeader, extended: bool) {
        let stated = u64::from(raw.data_off) * SECTOR;
        let aligned = !extended || raw.data_off % raw.tracks == 0;
        if stated >= self.data_start && aligned {
            self.data_start = stated;
        } else if raw.data_off != 0 || extended {
            let text = format!(
                "the start of the data area, sector {}, is wrong",
                raw.data_off
            );
            self.warnings.push(text);
        }
    }
}
