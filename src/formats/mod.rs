//! The image formats: one folder each, one line each in a list.

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::image::Format;
use crate::name::ImageName;

#[cfg(any(feature = "vdi", feature = "vhd", feature = "vhdx"))]
mod identity;
#[cfg(not(all(
    feature = "ova",
    feature = "parallels",
    feature = "qcow",
    feature = "qcow2",
    feature = "qed",
    feature = "vdi",
    feature = "vhd",
    feature = "vhdx",
    feature = "vmdk"
)))]
mod off;
#[cfg(feature = "ova")]
pub mod ova;
#[cfg(feature = "parallels")]
pub mod parallels;
#[cfg(feature = "qcow")]
pub mod qcow;
#[cfg(feature = "qcow2")]
pub mod qcow2;
#[cfg(feature = "qed")]
pub mod qed;
pub mod raw;
#[cfg(feature = "vdi")]
pub mod vdi;
#[cfg(feature = "vhd")]
pub mod vhd;
#[cfg(feature = "vhdx")]
pub mod vhdx;
#[cfg(feature = "vmdk")]
pub mod vmdk;

/// Formats of this crate, in the order in which they are listed.
const BUILTIN: &[&dyn Format] = &[
    &raw::Raw,
    #[cfg(feature = "qcow2")]
    &qcow2::Qcow2,
    #[cfg(not(feature = "qcow2"))]
    &off::QCOW2,
    #[cfg(feature = "vmdk")]
    &vmdk::Vmdk,
    #[cfg(not(feature = "vmdk"))]
    &off::VMDK,
    #[cfg(feature = "vhd")]
    &vhd::Vhd,
    #[cfg(not(feature = "vhd"))]
    &off::VHD,
    #[cfg(feature = "vhdx")]
    &vhdx::Vhdx,
    #[cfg(not(feature = "vhdx"))]
    &off::VHDX,
    #[cfg(feature = "vdi")]
    &vdi::Vdi,
    #[cfg(not(feature = "vdi"))]
    &off::VDI,
    #[cfg(feature = "qcow")]
    &qcow::Qcow,
    #[cfg(not(feature = "qcow"))]
    &off::QCOW,
    #[cfg(feature = "qed")]
    &qed::Qed,
    #[cfg(not(feature = "qed"))]
    &off::QED,
    #[cfg(feature = "parallels")]
    &parallels::Parallels,
    #[cfg(not(feature = "parallels"))]
    &off::PARALLELS,
    #[cfg(feature = "ova")]
    &ova::Ova,
    #[cfg(not(feature = "ova"))]
    &off::OVA,
];

/// Formats that a caller reads and writes: those of this crate, or some of them, and the caller's own.
///
/// ```
/// use blockform::formats::Formats;
///
/// let formats = Formats::only(["raw", "qcow2"])?;
/// assert!(formats.by_name("vmdk").is_none());
/// # Ok::<(), blockform::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Formats {
    own: Vec<&'static dyn Format>,
    /// The formats of this crate that are allowed, if not all are.
    only: Option<Vec<FormatId>>,
}

impl Formats {
    /// Every format of this crate.
    pub fn all() -> Self {
        Formats::default()
    }

    /// The formats of this crate with these names, and no others. A file of another format is still
    /// detected, and is [`Error::NotAllowed`].
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a name that is not known.
    pub fn only<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let all = Formats::all();
        let id = |name: &str| match all.by_name(name) {
            Some(format) => Ok(format.id()),
            None => Err(all.unknown(name)),
        };
        let only: Result<_> = names.into_iter().map(id).collect();
        Ok(Formats {
            own: Vec::new(),
            only: Some(only?),
        })
    }

    /// Adds a format. It takes the place of one with the same name.
    #[must_use]
    pub fn with(mut self, format: &'static dyn Format) -> Self {
        self.own.push(format);
        self
    }

    /// The formats, the added ones first.
    pub fn iter(&self) -> impl Iterator<Item = &'static dyn Format> + '_ {
        self.known().filter(|format| self.allow(format.id()))
    }

    /// The format with this id or alias.
    pub fn by_name(&self, name: &str) -> Option<&'static dyn Format> {
        self.iter()
            .find(|f| f.id().as_str() == name || f.aliases().contains(&name))
    }

    /// The format of files whose names end in `.extension`, in either case.
    pub fn by_extension(&self, extension: &str) -> Option<&'static dyn Format> {
        let extension = extension.to_ascii_lowercase();
        let names = |format: &&dyn Format| format.extensions().contains(&extension.as_str());
        self.by_name(&extension).or_else(|| self.iter().find(names))
    }

    /// The formats whose signatures are looked for: a format that is not allowed is found, too.
    pub(crate) fn known(&self) -> impl Iterator<Item = &'static dyn Format> + '_ {
        let replaced = |id| self.own.iter().any(|own| own.id() == id);
        let builtin = BUILTIN.iter().filter(move |format| !replaced(format.id()));
        self.own.iter().chain(builtin).copied()
    }

    fn allow(&self, id: FormatId) -> bool {
        let only = self.only.as_ref();
        only.is_none_or(|only| only.contains(&id)) || self.own.iter().any(|own| own.id() == id)
    }

    /// The error about a name that none of them has.
    pub(crate) fn unknown(&self, name: &str) -> Error {
        let known = self.iter().map(|format| format.id().as_str());
        let known: Vec<&str> = known.collect();
        let known = known.join(", ");
        let name = ImageName::from(name);
        Error::invalid(format!(
            "unknown format {}; known are {known}",
            name.quoted()
        ))
    }
}
