//! Programs that UEFI starts: those in `\EFI\BOOT` of a FAT filesystem.

use crate::content::Architecture;
use crate::content::bytes::Bytes;
use crate::content::fat::Fat;
use crate::name::ImageName;
use crate::ondisk::pe::{self, Program};

/// Programs of one directory that are looked into.
const MOST_PROGRAMS: usize = 12;
/// Directories of systems that are listed.
const MOST_VENDORS: usize = 32;

/// A FAT filesystem that UEFI can start from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EfiVolume {
    /// Offset of its start on the disk, in bytes.
    pub offset: u64,
    /// The programs in `\EFI\BOOT`.
    pub programs: Vec<EfiProgram>,
    /// The other directories in `\EFI`, which systems name after themselves.
    pub vendors: Vec<ImageName>,
}

/// A program for UEFI.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EfiProgram {
    /// Its name in the directory.
    pub name: ImageName,
    /// The processor that its header is for; `None` if it has no such header, or another one.
    pub architecture: Option<Architecture>,
    /// Presence of a table of certificates, which is not verified.
    pub is_signed: bool,
}

impl EfiProgram {
    /// Returns whether firmware starts it by default: `BOOT`, the processor, `.EFI`.
    pub fn is_default(&self) -> bool {
        let name = self.name.as_bytes();
        name.get(..4)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"BOOT"))
            && self.architecture.is_some()
    }
}

/// The volume in `bytes`, which starts at byte `offset` of the disk; `None` if it has no `\EFI`.
pub(super) fn read(bytes: &dyn Bytes, offset: u64) -> Option<EfiVolume> {
    let fat = Fat::open(bytes)?;
    let vendors = fat.directory(&["EFI"])?;
    let programs = fat.directory(&["EFI", "BOOT"]).unwrap_or_default();
    let is_program = |name: &ImageName| {
        let name = name.as_bytes();
        let end = name.len().checked_sub(4).and_then(|at| name.get(at..));
        end.is_some_and(|end| end.eq_ignore_ascii_case(b".EFI"))
    };
    let programs = programs
        .iter()
        .filter(|entry| !entry.is_directory && is_program(&entry.name))
        .take(MOST_PROGRAMS)
        .map(|entry| {
            let program = Program::of(&fat.start_of(entry, pe::START));
            EfiProgram {
                name: entry.name.clone(),
                architecture: program.and_then(Architecture::of),
                is_signed: program.is_some_and(|program| program.is_signed),
            }
        });
    Some(EfiVolume {
        offset,
        programs: programs.collect(),
        vendors: vendors
            .into_iter()
            .filter(|entry| entry.is_directory && !entry.is_named("BOOT"))
            .map(|entry| entry.name)
            .take(MOST_VENDORS)
            .collect(),
    })
}
