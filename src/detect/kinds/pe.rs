//! Programs of Windows and of UEFI (Microsoft, "PE Format").

use crate::error::Result;
use crate::image::{ImageInfo, Probe, Value};
use crate::ondisk::pe::Program;

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found, linux};

static KIND: Kind = Kind::other("pe", "PE program", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

fn probe(window: &Probe<'_>) -> Option<Found> {
    let program = Program::of(window.head)?;
    match linux::probe(window) {
        Some(_) => None,
        None => found(&KIND, "MZ and PE", program.at as u64),
    }
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let mut details = Value::map();
    if let Some(program) = Program::of(look.window.head) {
        details.insert("architecture", program.architecture());
        details.insert(
            "subsystem",
            match program.subsystem.unwrap_or(0) {
                10 => "EFI application",
                11 => "EFI boot service driver",
                12 => "EFI runtime driver",
                1 => "native",
                2 => "Windows",
                3 => "Windows console",
                _ => "unknown",
            },
        );
    }
    Ok(with_details(details))
}
