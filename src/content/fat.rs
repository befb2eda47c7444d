//! FAT12, FAT16 and FAT32: enough to list a directory and to read the start of a file.
//!
//! The width of the table follows from the number of clusters and from nothing else (Microsoft FAT
//! Specification, section 3.5); the text in the boot sector that names it proves nothing.

use crate::content::bytes::Bytes;
use crate::content::text;
use crate::format_id::FormatId;
use crate::name::ImageName;
use crate::ondisk::{Order, le, on_disk};

const FAT: FormatId = FormatId::new("fat");
/// Bytes of a directory that are looked at.
const MOST_DIRECTORY: usize = 16 << 10;

on_disk! {
    /// Microsoft FAT Specification, sections 3.1 to 3.3. What is at 36 is of FAT32 alone.
    struct BootSector in FAT, "boot sector", Little, 512 bytes {
        jmp_boot: [u8; 3] = 0,
        oem_name: [u8; 8] = 3,
        byts_per_sec: u16 = 11,
        sec_per_clus: u8 = 13,
        rsvd_sec_cnt: u16 = 14,
        num_fats: u8 = 16,
        root_ent_cnt: u16 = 17,
        tot_sec16: u16 = 19,
        media: u8 = 21,
        fat_sz16: u16 = 22,
        tot_sec32: u32 = 32,
        fat_sz32: u32 = 36,
        root_clus: u32 = 44,
        signature_word: u16 = 510,
    }
}

on_disk! {
    /// Sections 3.2 and 3.3: what is at 36 in FAT12 and FAT16, and at 64 in FAT32.
    struct Extended in FAT, "extended boot sector", Little, 26 bytes {
        boot_sig: u8 = 2,
        vol_id: u32 = 3,
        vol_lab: [u8; 11] = 7,
        fil_sys_type: [u8; 8] = 18,
    }
}

on_disk! {
    /// Section 6, "Directory Structure".
    struct DirectoryEntry in FAT, "directory entry", Little, 32 bytes {
        name: [u8; 11] = 0,
        attr: u8 = 11,
        fst_clus_hi: u16 = 20,
        fst_clus_lo: u16 = 26,
        file_size: u32 = 28,
    }
}

on_disk! {
    /// Section 7, "Long File Name Implementation".
    struct LongNameEntry in FAT, "long name entry", Little, 32 bytes {
        ord: u8 = 0,
        name1: [u8; 10] = 1,
        attr: u8 = 11,
        name2: [u8; 12] = 14,
        name3: [u8; 4] = 28,
    }
}

const ATTR_VOLUME_ID: u8 = 0x08;
const ATTR_DIRECTORY: u8 = 0x10;
const ATTR_LONG_NAME: u8 = 0x0f;

/// Width of the entries of the table, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// The layout of a filesystem, as its boot sector has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bpb {
    pub(super) width: Width,
    pub(super) volume_id: Option<u32>,
    /// The label in the boot sector; that of the root directory counts for more.
    pub(super) label: Option<ImageName>,
    /// Bytes of the whole filesystem.
    pub(super) size: u64,
    sector: u64,
    cluster: u64,
    fat_start: u64,
    root_start: u64,
    root_len: u64,
    root_cluster: u32,
    data_start: u64,
    clusters: u64,
}

impl Bpb {
    /// The layout, if the first sector of `disk` is the boot sector of a FAT filesystem.
    pub(super) fn of(disk: &dyn Bytes) -> Option<Self> {
        let raw = disk.bytes(0, BootSector::LEN)?;
        let boot = BootSector::parse(&raw, 0).ok()?;
        let sector = u64::from(boot.byts_per_sec);
        let is_sane = matches!(boot.jmp_boot, [0xeb, _, _] | [0xe9, _, _])
            && matches!(boot.byts_per_sec, 512 | 1024 | 2048 | 4096)
            && boot.sec_per_clus.is_power_of_two()
            && boot.rsvd_sec_cnt > 0
            && matches!(boot.num_fats, 1 | 2)
            && (boot.media == 0xf0 || boot.media >= 0xf8);
        if !is_sane {
            return None;
        }
        let either = |short: u16, long: u32| match short {
            0 => u64::from(long),
            short => u64::from(short),
        };
        let fat_sectors = either(boot.fat_sz16, boot.fat_sz32);
        let sectors = either(boot.tot_sec16, boot.tot_sec32);
        let root_len = u64::from(boot.root_ent_cnt) * DirectoryEntry::LEN as u64;
        let root_start = u64::from(boot.rsvd_sec_cnt) + u64::from(boot.num_fats) * fat_sectors;
        let data_start = root_start + root_len.div_ceil(sector);
        let data = sectors.checked_sub(data_start).filter(|n| *n > 0)?;
        let clusters = data / u64::from(boot.sec_per_clus);
        let width = match clusters {
            _ if boot.fat_sz16 == 0 => Width::Fat32,
            ..=4084 => Width::Fat12,
            4085..=65_524 => Width::Fat16,
            _ => return None,
        };
        let extended = match width {
            Width::Fat32 => raw.get(64..),
            _ => raw.get(36..),
        };
        let extended = Extended::parse(extended?, 0).ok()?;
        // The two bytes at the end are missing on floppies of the first systems; what stands there
        // instead has the name at least.
        let is_named = extended.fil_sys_type.starts_with(b"FAT");
        if fat_sectors == 0 || !(boot.signature_word == 0xaa55 || is_named) {
            return None;
        }
        let named = |field: &[u8; 11]| text::label(field).filter(|l| l.as_bytes() != b"NO NAME");
        let label = (extended.boot_sig == 0x29).then(|| named(&extended.vol_lab));
        Some(Bpb {
            width,
            volume_id: matches!(extended.boot_sig, 0x28 | 0x29).then_some(extended.vol_id),
            label: label.flatten(),
            size: sectors * sector,
            sector,
            cluster: sector * u64::from(boot.sec_per_clus),
            fat_start: u64::from(boot.rsvd_sec_cnt) * sector,
            root_start: root_start * sector,
            root_len,
            root_cluster: boot.root_clus,
            data_start: data_start * sector,
            clusters,
        })
    }
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The long name, if there is one, else the short one.
    pub(super) name: ImageName,
    pub(super) is_directory: bool,
    pub(super) size: u32,
    first_cluster: u32,
}

impl Entry {
    /// Compares the name without regard to case.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name.as_bytes().eq_ignore_ascii_case(name.as_bytes())
    }
}

/// A FAT filesystem in `disk`.
pub(super) struct Fat<'a> {
    disk: &'a dyn Bytes,
    bpb: Bpb,
}

impl<'a> Fat<'a> {
    pub(super) fn open(disk: &'a dyn Bytes) -> Option<Self> {
        let bpb = Bpb::of(disk)?;
        Some(Fat { disk, bpb })
    }

    /// The label in the root directory.
    pub(super) fn label(&self) -> Option<ImageName> {
        let mut raw = self.root();
        raw.truncate(4096);
        let entries = raw.chunks_exact(DirectoryEntry::LEN);
        entries
            .take_while(|raw| raw.first() != Some(&0))
            .filter_map(|raw| DirectoryEntry::parse(raw, 0).ok())
            .find(|entry| entry.attr & 0x3f == ATTR_VOLUME_ID && entry.name[0] != 0xe5)
            .and_then(|entry| text::label(&entry.name))
    }

    /// Entries of the directory at this path from the root. `None` if there is no such directory.
    pub(super) fn directory(&self, path: &[&str]) -> Option<Vec<Entry>> {
        let mut entries = list(&self.root());
        for name in path {
            let found = entries
                .iter()
                .find(|e| e.is_directory && e.is_named(name))?;
            entries = list(&self.chain(found.first_cluster, MOST_DIRECTORY));
        }
        Some(entries)
    }

    /// The first bytes of a file, at most `most`.
    pub(super) fn start_of(&self, file: &Entry, most: usize) -> Vec<u8> {
        let size = usize::try_from(file.size).unwrap_or(usize::MAX);
        self.chain(file.first_cluster, most.min(size))
    }

    fn root(&self) -> Vec<u8> {
        if self.bpb.width == Width::Fat32 {
            return self.chain(self.bpb.root_cluster, MOST_DIRECTORY);
        }
        let len = usize::try_from(self.bpb.root_len).unwrap_or(MOST_DIRECTORY);
        let bytes = self
            .disk
            .bytes(self.bpb.root_start, len.min(MOST_DIRECTORY));
        bytes.unwrap_or_default()
    }

    /// The bytes of a chain of clusters, at most `most`. Each cluster adds at least one sector, so
    /// that a chain that leads back to itself ends, too.
    fn chain(&self, first: u32, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut cluster = first;
        while bytes.len() < most {
            let Some(index) = cluster.checked_sub(2).map(u64::from) else {
                break;
            };
            if index >= self.bpb.clusters {
                break;
            }
            let want = usize::try_from(self.bpb.cluster).unwrap_or(most);
            let want = want.min(most - bytes.len());
            let at = self.bpb.data_start + index * self.bpb.cluster;
            let Some(part) = self.disk.bytes(at, want) else {
                break;
            };
            bytes.extend(part);
            let Some(next) = self.next(cluster) else {
                break;
            };
            cluster = next;
        }
        bytes
    }

    /// The cluster that follows; marks of the end are beyond the last one.
    fn next(&self, cluster: u32) -> Option<u32> {
        let at = |entry: u64| self.bpb.fat_start + entry;
        let cluster64 = u64::from(cluster);
        let short = |at: u64| le::<u16>(&self.disk.bytes(at, 2)?, 0).map(u32::from);
        match self.bpb.width {
            Width::Fat12 => {
                let pair = short(at(cluster64 + cluster64 / 2))?;
                Some(if cluster % 2 == 0 {
                    pair & 0xfff
                } else {
                    pair >> 4
                })
            }
            Width::Fat16 => short(at(cluster64 * 2)),
            Width::Fat32 => {
                let raw = self.disk.bytes(at(cluster64 * 4), 4)?;
                le::<u32>(&raw, 0).map(|entry| entry & 0x0fff_ffff)
            }
        }
    }
}

/// The entries of a directory, without deleted ones and the volume's label.
fn list(raw: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut long: Vec<u8> = Vec::new();
    for raw in raw.chunks_exact(DirectoryEntry::LEN) {
        let Ok(entry) = DirectoryEntry::parse(raw, 0) else {
            break;
        };
        match entry.name[0] {
            0 => break,
            0xe5 => {
                long.clear();
                continue;
            }
            _ => {}
        }
        if entry.attr & 0x3f == ATTR_LONG_NAME {
            // The parts stand in reverse: the last one, which is marked, comes first.
            if let Ok(part) = LongNameEntry::parse(raw, 0) {
                if part.ord & 0x40 != 0 {
                    long.clear();
                }
                let text = [&part.name1[..], &part.name2, &part.name3].concat();
                long.splice(..0, text);
            }
            continue;
        }
        let name = text::utf16(&long, Order::Little).unwrap_or_else(|| short_name(&entry.name));
        long.clear();
        if entry.attr & ATTR_VOLUME_ID != 0 || matches!(name.as_bytes(), b"." | b"..") {
            continue;
        }
        entries.push(Entry {
            name,
            is_directory: entry.attr & ATTR_DIRECTORY != 0,
            size: entry.file_size,
            first_cluster: u32::from(entry.fst_clus_hi) << 16 | u32::from(entry.fst_clus_lo),
        });
    }
    entries
}

fn short_name(field: &[u8; 11]) -> ImageName {
    let (base, extension) = field.split_at(8);
    let base = base.trim_ascii_end();
    let extension = extension.trim_ascii_end();
    let dot: &[u8] = if extension.is_empty() { b"" } else { b"." };
    let mut name = [base, dot, extension].concat();
    if name.first() == Some(&0x05) {
        name.splice(..1, [0xe5]);
    }
    ImageName::new(name)
}
