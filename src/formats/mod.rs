//! The image formats: one folder each, one line each in [`BUILTIN`].

use crate::image::Format;

mod identity;
pub mod ova;
pub mod parallels;
pub mod qcow;
pub mod qcow2;
pub mod qed;
pub mod raw;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;

/// Every format that this crate knows.
pub const BUILTIN: &[&dyn Format] = &[
    &raw::Raw,
    &qcow2::Qcow2,
    &vmdk::Vmdk,
    &vhd::Vhd,
    &vhdx::Vhdx,
    &vdi::Vdi,
    &qcow::Qcow,
    &qed::Qed,
    &parallels::Parallels,
    &ova::Ova,
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
