//! The footer and its copy at the start: specification, "Hard Disk Footer Format".

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::{Probe, SafetyCheck, Verdict};
use crate::ondisk::{Field, on_disk};
use crate::source::{BlockSource, BlockSourceExt};

use super::geometry::Geometry;
use super::{SECTOR, VHD};

pub(super) const COOKIE: [u8; 8] = *b"conectix";
/// `File Format Version` of the specification.
pub(super) const VERSION: u32 = 0x0001_0000;
/// `Data Offset` of a fixed disk.
pub(super) const NO_OFFSET: u64 = u64::MAX;

on_disk! {
    /// "Hard Disk Footer Format".
    pub(super) struct Footer in VHD, "footer", Big, 512 bytes {
        cookie: [u8; 8] = 0,
        features: u32 = 8,
        file_format_version: u32 = 12,
        data_offset: u64 = 16,
        time_stamp: u32 = 24,
        creator_application: [u8; 4] = 28,
        creator_version: u32 = 32,
        creator_host_os: [u8; 4] = 36,
        original_size: u64 = 40,
        current_size: u64 = 48,
        cylinders: u16 = 56,
        heads: u8 = 58,
        sectors_per_track: u8 = 59,
        disk_type: u32 = 60,
        checksum: u32 = 64,
        unique_id: Uuid = 68,
        saved_state: u8 = 84,
    }
}

/// Kind of a VHD (`Disk Type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskType {
    /// The disk as it is, and a footer (2).
    Fixed,
    /// Blocks that are allocated when they are written (3).
    Dynamic,
    /// The sectors in which the disk differs from another image (4).
    Differencing,
}

impl DiskType {
    /// The name of the subformat, for the first two that of `qemu-img create -o subformat`.
    pub fn name(self) -> &'static str {
        match self {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
            DiskType::Differencing => "differencing",
        }
    }

    pub(super) fn number(self) -> u32 {
        match self {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        }
    }

    fn of(number: u32) -> Option<Self> {
        let all = [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing];
        all.into_iter().find(|kind| kind.number() == number)
    }
}

impl Footer {
    /// The kind of image; `at` is where the footer stands.
    pub(super) fn kind(&self, at: u64) -> Result<DiskType> {
        DiskType::of(self.disk_type).ok_or_else(|| {
            let problem = format!("is {}, and only 2, 3 and 4 are defined", self.disk_type);
            Footer::malformed(at, "disk_type", problem)
        })
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            cylinders: self.cylinders,
            heads: self.heads,
            sectors_per_track: self.sectors_per_track,
        }
    }

    /// Size of the disk in bytes: `current_size`, except in images of Virtual PC and of QEMU as it was
    /// before `force_size`, where the guest saw no more than the geometry has.
    pub(super) fn virtual_size(&self) -> u64 {
        let by_geometry = matches!(&self.creator_application, b"vpc " | b"qemu");
        let geometry = self.geometry();
        if by_geometry && geometry != Geometry::MAX {
            self.current_size.min(geometry.bytes())
        } else {
            self.current_size
        }
    }

    /// The footer as bytes, with its checksum.
    pub(super) fn sealed(&self) -> [u8; Footer::LEN] {
        let mut footer = *self;
        footer.checksum = checksum(&footer.encode(), Footer::checksum);
        footer.encode()
    }

    /// Fields that both copies of one disk have in common.
    fn meaning(&self) -> (u32, u64, u64) {
        (self.disk_type, self.data_offset, self.virtual_size())
    }
}

/// The one's complement of the sum of all bytes but those of the field itself.
pub(super) fn checksum(bytes: &[u8], field: Field<u32>) -> u32 {
    let own = field.offset..field.offset + 4;
    let counted = bytes.iter().enumerate().filter(|(i, _)| !own.contains(i));
    !counted.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

/// The footer in force, and the state of its copies.
#[derive(Debug)]
pub(super) struct Footers {
    pub(super) footer: Footer,
    /// Host offset of the footer.
    pub(super) at: u64,
    pub(super) kind: DiskType,
    /// End of the data: the footer, or the end of a file that has lost it.
    pub(super) data_end: u64,
    /// True if its checksum is wrong.
    pub(super) damaged: bool,
    /// True if both copies are sound and not the same.
    pub(super) differ: bool,
    pub(super) warnings: Vec<String>,
}

/// One of the places where a footer can be.
pub(super) enum Copy {
    Absent,
    Damaged { at: u64, footer: Footer, sum: u32 },
    Sound { at: u64, footer: Footer },
}

impl Copy {
    pub(super) fn read(source: &dyn BlockSource, at: u64) -> Result<Self> {
        // Virtual PC before 2004 left the last byte, which is reserved, out.
        let mut bytes = [0; Footer::LEN];
        let len = source.size().saturating_sub(at);
        let len = usize::try_from(len).unwrap_or(Footer::LEN).min(Footer::LEN);
        if len + 1 < Footer::LEN {
            return Ok(Copy::Absent);
        }
        source.read_exact_at(bytes.get_mut(..len).unwrap_or_default(), at)?;
        let footer = Footer::parse(&bytes, at)?;
        if footer.cookie != COOKIE {
            return Ok(Copy::Absent);
        }
        let sum = checksum(&bytes, Footer::checksum);
        if sum == footer.checksum {
            Ok(Copy::Sound { at, footer })
        } else {
            Ok(Copy::Damaged { at, footer, sum })
        }
    }

    pub(super) fn read_at_end(source: &dyn BlockSource) -> Result<Self> {
        for distance in [SECTOR, SECTOR - 1] {
            if let Some(at) = source.size().checked_sub(distance) {
                match Copy::read(source, at)? {
                    Copy::Absent => {}
                    found => return Ok(found),
                }
            }
        }
        Ok(Copy::Absent)
    }

    fn place(&self) -> Option<u64> {
        match self {
            Copy::Absent => None,
            Copy::Damaged { at, .. } | Copy::Sound { at, .. } => Some(*at),
        }
    }
}

impl Footers {
    /// Reads both copies and decides which one counts: the one at the end, unless it is lost.
    pub(super) fn read(source: &dyn BlockSource) -> Result<Self> {
        Footers::read_with(source, Copy::read_at_end(source)?)
    }

    /// Reads the copy at the start of a file whose end has not arrived.
    pub(super) fn read_start(source: &dyn BlockSource) -> Result<Self> {
        Footers::read_with(source, Copy::Absent)
    }

    fn read_with(source: &dyn BlockSource, end: Copy) -> Result<Self> {
        let data_end = end.place().unwrap_or(source.size());
        let mut warnings = Vec::new();
        let (mut damaged, mut differ) = (false, false);
        let (at, footer) = match end {
            // The start of a fixed disk is the guest's.
            Copy::Sound { at, footer } if footer.disk_type == DiskType::Fixed.number() => {
                (at, footer)
            }
            Copy::Sound { at, footer } => {
                match Copy::read(source, 0)? {
                    Copy::Sound { footer: copy, .. } if copy.meaning() != footer.meaning() => {
                        let problem = "contradicts its copy at the start of the file in the type of the disk, its size or the place of its header";
                        return Err(Error::malformed(VHD, "footer", at, problem));
                    }
                    Copy::Sound { footer: copy, .. } if copy == footer => {}
                    Copy::Sound { .. } => {
                        differ = true;
                        warnings.push("the footer and its copy at the start of the file differ; the footer counts".to_owned());
                    }
                    Copy::Damaged { .. } => warnings.push("the copy of the footer at the start of the file is damaged; the footer at the end is used".to_owned()),
                    Copy::Absent => warnings.push("the copy of the footer at the start of the file is missing; the footer at the end is used".to_owned()),
                }
                (at, footer)
            }
            // Guest data at the start of a fixed disk must not replace the footer.
            Copy::Damaged { at, footer, sum } if footer.disk_type == DiskType::Fixed.number() => {
                return Err(wrong_sum(at, &footer, sum));
            }
            lost => match (Copy::read(source, 0)?, lost) {
                (Copy::Sound { footer, .. }, lost)
                    if footer.disk_type != DiskType::Fixed.number() =>
                {
                    let state = if lost.place().is_some() {
                        "damaged"
                    } else {
                        "missing"
                    };
                    warnings.push(format!("the footer at the end of the file is {state}; its copy at the start is used"));
                    (0, footer)
                }
                // A child made by hand has stale checksums. If the copies agree, and nothing can be read
                // without the parent anyway, the image is described.
                (Copy::Damaged { footer: copy, .. }, Copy::Damaged { at, footer, .. })
                    if copy == footer && footer.disk_type == DiskType::Differencing.number() =>
                {
                    damaged = true;
                    (at, footer)
                }
                (_, Copy::Damaged { at, footer, sum }) | (Copy::Damaged { at, footer, sum }, _) => {
                    return Err(wrong_sum(at, &footer, sum));
                }
                (Copy::Sound { .. }, _) => {
                    let problem =
                        "is missing at the end of the file, which a fixed disk cannot be without";
                    return Err(Error::malformed(VHD, "footer", None, problem));
                }
                _ => {
                    let problem = "is neither at the end of the file nor at its start";
                    return Err(Error::malformed(VHD, "footer", None, problem));
                }
            },
        };
        if footer.file_format_version >> 16 != VERSION >> 16 {
            return Err(Error::unsupported(
                VHD,
                format!("version {:#010x}", footer.file_format_version),
                None,
            ));
        }
        Ok(Footers {
            kind: footer.kind(at)?,
            footer,
            at,
            data_end,
            damaged,
            differ,
            warnings,
        })
    }
}

/// The checks of an image. Software that reads only one of the copies has to see the same disk.
pub(super) fn safety(source: &dyn BlockSource) -> Result<Vec<SafetyCheck>> {
    let footers = match Footers::read(source) {
        Ok(footers) => footers,
        Err(Error::Unsupported { feature, .. }) => {
            let reason = format!("{feature} is not known");
            return Ok(vec![SafetyCheck::failed("version", reason)]);
        }
        Err(error @ Error::Malformed { .. }) => {
            return Ok(vec![SafetyCheck::failed("footer", error.to_string())]);
        }
        Err(error) => return Err(error),
    };
    let differ = footers.differ || footers.damaged;
    let footer = differ.then(|| "the copies of the footer differ or are damaged".to_owned());
    let child = footers.kind == DiskType::Differencing;
    let backing = child.then(|| "the disk records changes to a parent".to_owned());
    Ok(vec![
        SafetyCheck::passed("version"),
        SafetyCheck::unless("footer", footer),
        SafetyCheck::unless("backing_file", backing),
    ])
}

/// The size of the disk by the copy of the footer at the start, which a fixed disk has not.
pub(super) fn declared_size(source: &dyn BlockSource) -> Result<Option<u64>> {
    Ok(match Copy::read(source, 0)? {
        Copy::Sound { footer, .. } if footer.disk_type != DiskType::Fixed.number() => {
            Some(footer.virtual_size())
        }
        _ => None,
    })
}

fn wrong_sum(at: u64, footer: &Footer, sum: u32) -> Error {
    let problem = format!(
        "is {:#010x}, and the bytes sum up to {sum:#010x}",
        footer.checksum
    );
    Footer::malformed(at, "checksum", problem)
}

/// Recognises a footer in the window. A fixed disk is known by its end alone: its start is the guest's.
pub(super) fn probe(window: &Probe<'_>) -> Verdict {
    const SHOWN: &str = "conectix";
    for distance in [Footer::LEN, Footer::LEN - 1] {
        let found = window.from_end(distance, COOKIE.len()) == Some(COOKIE.as_slice());
        let kind = window
            .from_end(distance - Footer::disk_type.offset, 4)
            .unwrap_or_default();
        let fixed = kind == DiskType::Fixed.number().to_be_bytes();
        if found && (fixed || !window.has(0, &COOKIE)) {
            return Verdict::found(SHOWN, window.size - distance as u64);
        }
    }
    if window.has(0, &COOKIE) {
        Verdict::found(SHOWN, 0)
    } else {
        Verdict::Reject
    }
}
