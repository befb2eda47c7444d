//! The image formats: one folder each, one line each in [`BUILTIN`].

use crate::image::Format;

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

/// Every format that this crate knows.
pub const BUILTIN: &[&dyn Format] = &[
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

/// The format that files are of whose names end in `.extension`, in either case, where there is one.
pub fn by_extension(extension: &str) -> Option<&'static dyn Format> {
    let extension = extension.to_ascii_lowercase();
    let names = |format: &dyn Format| format.extensions().contains(&extension.as_str());
    by_name(&extension).or_else(|| BUILTIN.iter().copied().find(|format| names(*format)))
}

/// The format called `name`: its id, or another name that people know it by.
pub fn by_name(name: &str) -> Option<&'static dyn Format> {
    BUILTIN
        .iter()
        .copied()
        .find(|f| f.id().as_str() == name || f.aliases().contains(&name))
}
