//! Programs of Windows and of UEFI (Microsoft, "PE Format").

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::ondisk::{le, on_disk};

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found, linux};

const PE: FormatId = FormatId::new("pe");

static KIND: Kind = Kind::other("pe", "PE program", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

on_disk! {
    /// The signature, "COFF File Header", and the start of "Optional Header" up to the subsystem, which
    /// is at the same place in both of its kinds.
    struct Header in PE, "PE header", Little, 94 bytes {
        signature: [u8; 4] = 0,
        machine: u16 = 4,
        number_of_sections: u16 = 6,
        size_of_optional_header: u16 = 20,
        magic: u16 = 24,
        subsystem: u16 = 92,
    }
}

/// Where the file says where the header is.
const POINTER: usize = 0x3c;

/// The header of a program, with its place in the file.
fn header(head: &[u8]) -> Option<(Header, usize)> {
    let at = usize::try_from(le::<u32>(head, POINTER)?).ok()?;
    let header = Header::parse(head.get(at..)?, at as u64).ok()?;
    (head.starts_with(b"MZ") && &header.signature == b"PE\0\0").then_some((header, at))
}

/// What is told of the program that a kernel is as well.
pub(super) fn machine(head: &[u8]) -> Option<&'static str> {
    header(head).map(|(header, _)| architecture(header.machine))
}

fn architecture(machine: u16) -> &'static str {
    match machine {
        0x014c => "i386",
        0x01c0 | 0x01c2 | 0x01c4 => "arm",
        0x0200 => "ia64",
        0x5032 => "riscv32",
        0x5064 => "riscv64",
        0x6232 => "loongarch32",
        0x6264 => "loongarch64",
        0x8664 => "x86_64",
        0xaa64 => "aarch64",
        0x0ebc => "efi byte code",
        _ => "unknown",
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    let (_, at) = header(window.head)?;
    match linux::probe(window) {
        Some(_) => None,
        None => found(&KIND, "MZ and PE", at as u64),
    }
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let mut details = Value::map();
    if let Some((header, _)) = header(look.window.head) {
        details.insert("architecture", architecture(header.machine));
        details.insert(
            "subsystem",
            match header.subsystem {
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
