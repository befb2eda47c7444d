//! Contents of a disk, read without mounting it: partition tables, filesystems, boot loaders, and the
//! installed system.
//!
//! ```
//! use blockform::{Limits, OpenOptions, content};
//!
//! let image = OpenOptions::new().open_path("testdata/qcow2/good/plain.qcow2")?;
//! let contents = content::examine(&image, &Limits::default())?;
//! for filesystem in &contents.filesystems {
//!     println!("{}", filesystem.kind.as_str());
//! }
//! # Ok::<(), blockform::Error>(())
//! ```
//!
//! An examination reads a few hundred KiB at most, a few pages of most disks. The disk is not trusted:
//! contradictions are warnings, and nothing that a guest wrote makes an examination fail. A disk is any
//! [`BlockSource`]; image formats are not known here. Detection recognises the content of raw files by the
//! same functions.

mod bytes;
mod derive;
mod efi;
mod ext;
mod fat;
mod filesystem;
mod finding;
mod gpt;
mod iso;
mod kind;
mod mbr;
mod os_release;
mod partition;
mod properties;
mod recognise;
mod text;
mod udf;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{Evidence, Probe};
use crate::limits::Limits;
use crate::source::BlockSource;

use bytes::{Bytes, Disk, Part};
pub use efi::{EfiProgram, EfiVolume};
pub use filesystem::{Filesystem, FilesystemKind};
pub use finding::{Architecture, Confidence, Fact, Finding, Firmware, OsType};
pub use gpt::{Gpt, GptCopy, GptEntry};
pub use iso::{BootCatalogue, BootEntry, BootMedia, Iso};
pub use kind::{gpt_type_name, mbr_type_name};
pub use mbr::{BootCode, Mbr, MbrEntry};
pub(crate) use mbr::{PartitionRecord, Record};
pub use os_release::OsRelease;
pub use partition::{Partition, PartitionType};
pub use udf::Udf;

/// Contents of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Contents {
    /// The master boot record, if it has a table of partitions.
    pub mbr: Option<Mbr>,
    /// The GUID partition table, or what is left of it.
    pub gpt: Option<Gpt>,
    /// The partitions: those of the GUID partition table where there is one, else those of the master
    /// boot record.
    pub partitions: Vec<Partition>,
    /// Filesystems of the disk as a whole, partitions aside.
    pub filesystems: Vec<Filesystem>,
    /// The volume of ISO 9660.
    pub iso: Option<Iso>,
    /// The volume of UDF.
    pub udf: Option<Udf>,
    /// Volumes that UEFI can start from.
    pub efi: Vec<EfiVolume>,
    /// Release of the installed system.
    pub os_release: Option<OsRelease>,
    /// Conclusions, with reasons.
    pub findings: Vec<Finding>,
    /// Warnings about damage, oddities and limits. Text from the disk is escaped.
    pub warnings: Vec<String>,
}

impl Contents {
    /// Returns whether nothing was recognised.
    pub fn is_empty(&self) -> bool {
        self.mbr.is_none() && self.gpt.is_none() && self.filesystems.is_empty()
    }

    /// The findings as properties of an image in the vocabulary of OpenStack Glance
    /// (`etc/metadefs` in its source), each with its value: only those that are clear.
    pub fn properties(&self) -> Vec<(&'static str, String)> {
        properties::of(self)
    }
}

/// Recognises the content that a window shows, each with its evidence: as [`examine`], without a read.
pub(crate) fn recognise(window: &Probe<'_>) -> Vec<(FormatId, Evidence)> {
    let mut found: Vec<(FormatId, Evidence)> = Vec::new();
    if let Some(offset) = gpt::recognise(window) {
        let what = "EFI PART";
        found.push((gpt::GPT, Evidence { what, offset }));
    }
    for filesystem in recognise::recognise(window) {
        let id = filesystem.kind.family();
        if !found.iter().any(|(known, _)| *known == id) {
            found.push((id, filesystem.evidence));
        }
    }
    if mbr::recognise(window).is_some() {
        let what = "a partition table";
        found.push((mbr::MBR, Evidence { what, offset: 446 }));
    }
    found
}

/// Finds out what the disk in `source` holds: a raw file, or the disk that a guest sees in an image.
///
/// # Errors
/// Errors of reading, and [`Error::LimitExceeded`](crate::Error::LimitExceeded) where `limits`
/// forbid the few hundred KiB that it takes. Damage is not an error: it is in the warnings.
pub fn examine(source: &dyn BlockSource, limits: &Limits) -> Result<Contents> {
    limits.check_metadata("what is read to examine a disk", bytes::MOST_READ)?;
    let disk = Disk::new(source);
    let mut contents = look(&disk.whole());
    if let Some(error) = disk.failure() {
        return Err(error);
    }
    if disk.is_exhausted() {
        contents
            .warnings
            .push("not all was looked at: it would take too much reading".to_owned());
    }
    contents.findings = derive::findings(&contents);
    Ok(contents)
}

fn look(disk: &Part<'_>) -> Contents {
    let mut contents = Contents {
        mbr: mbr::recognise(disk),
        filesystems: recognise::recognise(disk),
        ..Contents::default()
    };
    if let Some((iso, warnings)) = iso::read(disk) {
        contents.iso = Some(iso);
        contents.warnings.extend(warnings);
    }
    if let Some((gpt, warnings)) = gpt::read(disk, contents.iso.is_some()) {
        contents.gpt = Some(gpt);
        contents.warnings.extend(warnings);
    }
    let sector = contents.gpt.as_ref().map_or(512, |gpt| gpt.sector_size);
    if let Some(mbr) = &mut contents.mbr {
        let warnings = mbr.follow(disk, sector.into());
        contents.warnings.extend(warnings);
    }
    if let Some((udf, warnings)) = udf::read(disk) {
        contents.udf = Some(udf);
        contents.warnings.extend(warnings);
    }
    complete(&mut contents);
    let cut = contents.filesystems.iter().filter_map(|filesystem| {
        let problem = filesystem.cut_short(disk.size())?;
        Some(format!("the disk has {problem}"))
    });
    contents.warnings.extend(cut);
    partition::list(&mut contents, disk, sector.into());
    look_for_efi(&mut contents, disk);
    look_for_os_release(&mut contents, disk);
    contents
}

/// Gives what was recognised by a signature the name and size that were read behind it.
fn complete(contents: &mut Contents) {
    for filesystem in &mut contents.filesystems {
        match (filesystem.kind, &contents.iso, &contents.udf) {
            (FilesystemKind::Iso9660, Some(iso), _) => {
                filesystem.label = iso.volume_id.clone();
                filesystem.size = Some(iso.size).filter(|size| *size > 0);
            }
            (FilesystemKind::Udf, _, Some(udf)) => {
                filesystem.label = udf.logical_volume_id.clone();
                filesystem.uuid = udf.uuid();
                filesystem.size = Some(udf.size).filter(|size| *size > 0);
            }
            _ => {}
        }
    }
}

/// Volumes that UEFI could start from: FAT on the whole disk, in partitions, and in boot images.
fn look_for_efi(contents: &mut Contents, disk: &Part<'_>) {
    const MOST_VOLUMES: usize = 6;
    let is_fat = |filesystem: &Filesystem| filesystem.kind.is_fat();
    let whole = contents.filesystems.iter().any(is_fat);
    let mut places: Vec<u64> = whole.then_some(0).into_iter().collect();
    let partitions = contents.partitions.iter();
    let partitions = partitions.filter(|p| p.filesystem.as_ref().is_some_and(is_fat));
    places.extend(partitions.map(|partition| partition.offset));
    let boot = contents.iso.iter().flat_map(|iso| &iso.boot);
    let entries = boot.flat_map(|catalogue| &catalogue.entries);
    places.extend(entries.filter(|e| e.is_efi()).map(|e| e.offset));
    let mut seen = Vec::new();
    for place in places {
        if !seen.contains(&place) && seen.len() < MOST_VOLUMES {
            seen.push(place);
            let volume = disk.part(place, u64::MAX);
            contents.efi.extend(efi::read(&volume, place));
        }
    }
}

fn look_for_os_release(contents: &mut Contents, disk: &Part<'_>) {
    const MOST_FILESYSTEMS: usize = 3;
    let is_ext = |filesystem: &Filesystem| filesystem.kind.is_ext();
    let whole = contents.filesystems.iter().any(is_ext);
    let whole = whole.then_some((0, disk.size()));
    let partitions = contents.partitions.iter();
    let partitions = partitions.filter(|p| p.filesystem.as_ref().is_some_and(is_ext));
    // The largest one is likelier to be the root than the one for the kernel.
    let mut places: Vec<(u64, u64)> = partitions.map(|p| (p.offset, p.size)).collect();
    places.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let mut places = whole.into_iter().chain(places).take(MOST_FILESYSTEMS);
    contents.os_release =
        places.find_map(|(offset, size)| os_release::read(&disk.part(offset, size)));
}
