//! Kinds of files that are described and not read: image formats without a reader, and files that are not
//! disks.
//!
//! Such a file is refused by its name and never taken for a raw disk. A format in `formats/` takes precedence
//! over a kind of the same name.

mod android;
mod asif;
mod bochs;
mod cloop;
mod cpio;
mod described;
mod dmg;
mod elf;
mod ewf;
mod linux;
mod look;
mod luks;
mod packed;
mod pe;
mod tar;
mod uboot;
mod vma;
mod zip;

use std::fmt::{self, Debug};

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::formats::Formats;
use crate::hint::Hint;
use crate::image::{Evidence, ImageInfo, Probe};

pub(crate) use described::Described;
pub(super) use dmg::DMG;
use look::Look;
pub(super) use luks::LUKS;

use super::Detected;

/// A kind of file that can be described and not read.
pub(crate) struct Kind {
    id: FormatId,
    /// Name in words.
    name: &'static str,
    nature: Nature,
    describe: fn(&Look<'_>) -> Result<ImageInfo>,
}

/// Relation of a kind to disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// An image of one disk or of several, in a format that is not read.
    Image,
    /// A compressed file.
    Packed,
    /// No disk.
    Other,
}

impl Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(&self.id, f)
    }
}

impl Kind {
    const fn image(
        id: &'static str,
        name: &'static str,
        describe: fn(&Look<'_>) -> Result<ImageInfo>,
    ) -> Self {
        Kind::new(id, name, Nature::Image, describe)
    }

    const fn other(
        id: &'static str,
        name: &'static str,
        describe: fn(&Look<'_>) -> Result<ImageInfo>,
    ) -> Self {
        Kind::new(id, name, Nature::Other, describe)
    }

    const fn packed(
        id: &'static str,
        name: &'static str,
        describe: fn(&Look<'_>) -> Result<ImageInfo>,
    ) -> Self {
        Kind::new(id, name, Nature::Packed, describe)
    }

    const fn new(
        id: &'static str,
        name: &'static str,
        nature: Nature,
        describe: fn(&Look<'_>) -> Result<ImageInfo>,
    ) -> Self {
        Kind {
            id: FormatId::new(id),
            name,
            nature,
            describe,
        }
    }

    /// Returns whether `name` is that of this format. Only image formats are opened by name.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.nature == Nature::Image && self.id.as_str() == name
    }

    /// The error for opening a file of this kind.
    pub(crate) fn not_read(&self) -> Error {
        let (feature, hint) = match self.nature {
            Nature::Image => ("reading this format".to_owned(), Hint::ReadAsRaw),
            Nature::Packed => (
                format!("reading a disk in a {}", self.name),
                "unpack it first".into(),
            ),
            Nature::Other => (
                format!("reading a {} as a disk", self.name),
                Hint::ReadAsRaw,
            ),
        };
        Error::Unsupported {
            format: self.id,
            feature,
            hint: Some(hint),
        }
    }
}

/// A kind that a window shows, and by what.
type Found = (&'static Kind, Evidence);

fn found(kind: &'static Kind, what: &'static str, offset: u64) -> Option<Found> {
    Some((kind, Evidence { what, offset }))
}

/// Kinds of which a file is of one at most, and the function that tells of which.
struct Family {
    kinds: &'static [&'static Kind],
    probe: fn(&Probe<'_>) -> Option<Found>,
}

#[cfg(feature = "kinds")]
const FAMILIES: &[Family] = &[
    dmg::FAMILY,
    bochs::FAMILY,
    cloop::FAMILY,
    asif::FAMILY,
    ewf::FAMILY,
    android::FAMILY,
    vma::FAMILY,
    tar::FAMILY,
    zip::FAMILY,
    packed::FAMILY,
    cpio::FAMILY,
    linux::FAMILY,
    pe::FAMILY,
    elf::FAMILY,
    uboot::FAMILY,
];

#[cfg(not(feature = "kinds"))]
const FAMILIES: &[Family] = &[];

/// All kinds that a window shows and that no format of this crate reads.
pub(super) fn matches(window: &Probe<'_>) -> impl Iterator<Item = (FormatId, Evidence)> {
    let found = FAMILIES.iter().filter_map(|family| (family.probe)(window));
    let found = found.map(|(kind, evidence)| (kind.id, evidence));
    found.filter(|(id, _)| Formats::all().by_name(id.as_str()).is_none())
}

/// The kind called `name`.
pub(crate) fn kind_by_name(name: &str) -> Option<&'static Kind> {
    let mut kinds = FAMILIES.iter().flat_map(|family| family.kinds);
    kinds.find(|kind| kind.id.as_str() == name).copied()
}

/// Returns whether the id is that of a compressed file. Other formats have such data inside, too.
pub(super) fn is_packed(id: FormatId) -> bool {
    kind_by_name(id.as_str()).is_some_and(|kind| kind.nature == Nature::Packed)
}

/// Returns whether the id is that of an image format, read or not.
pub(super) fn is_image(id: FormatId) -> bool {
    kind_by_name(id.as_str()).is_none_or(|kind| kind.nature == Nature::Image)
}

/// The kind as which a file is described, if it is of one alone.
pub(crate) fn kind_of(detected: &Detected, window: &Probe<'_>) -> Option<&'static Kind> {
    match detected.deciding().as_slice() {
        [] => luks::kind_of(detected, window),
        [id] => kind_by_name(id.as_str()).filter(|_| Formats::all().by_name(id.as_str()).is_none()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_kinds_have_one_name() {
        let mut ids: Vec<FormatId> = FAMILIES
            .iter()
            .flat_map(|family| family.kinds)
            .map(|kind| kind.id)
            .collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }
}
