//! The image formats: one folder each, one line each in [`BUILTIN`].

use crate::image::Format;

mod identity;
pub mod qcow2;
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
];

/// The format called `name`: its id, or another name that people know it by.
pub fn by_name(name: &str) -> Option<&'static dyn Format> {
    BUILTIN
        .iter()
        .copied()
        .find(|f| f.id().as_str() == name || f.aliases().contains(&name))
}
