//! The image formats: one folder each, one line each in [`BUILTIN`].

use crate::image::Format;

pub mod qcow2;
pub mod raw;
pub mod vhdx;

/// Every format that this crate knows.
pub const BUILTIN: &[&dyn Format] = &[&raw::Raw, &qcow2::Qcow2, &vhdx::Vhdx];

/// The format called `name`: its id, or another name that people know it by.
pub fn by_name(name: &str) -> Option<&'static dyn Format> {
    BUILTIN
        .iter()
        .copied()
        .find(|f| f.id().as_str() == name || f.aliases().contains(&name))
}
