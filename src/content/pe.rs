//! The header of a PE program (Microsoft PE Format), as far as firmware cares: for which processor it
//! is, and whether it carries signatures.

use crate::content::Architecture;
use crate::format_id::FormatId;
use crate::ondisk::{le, on_disk};

const PE: FormatId = FormatId::new("pe");
/// Bytes of a program that are enough: the headers stand at its start.
pub(super) const START: usize = 4096;

on_disk! {
    /// "MS-DOS Stub": where the rest is.
    struct Stub in PE, "MS-DOS stub", Little, 64 bytes {
        e_magic: [u8; 2] = 0,
        e_lfanew: u32 = 60,
    }
}

on_disk! {
    /// "Signature" and "COFF File Header".
    struct CoffHeader in PE, "COFF header", Little, 24 bytes {
        signature: [u8; 4] = 0,
        machine: u16 = 4,
        size_of_optional_header: u16 = 20,
    }
}

/// What the header of a program says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Program {
    /// The field `Machine`.
    pub(super) machine: u16,
    /// Whether it has a table of certificates. What they are worth is for the firmware to say.
    pub(super) is_signed: bool,
}

impl Program {
    /// The program that starts with these bytes.
    pub(super) fn of(start: &[u8]) -> Option<Self> {
        let stub = Stub::parse(start, 0).ok()?;
        if &stub.e_magic != b"MZ" {
            return None;
        }
        let at = usize::try_from(stub.e_lfanew).ok()?;
        let rest = start.get(at..)?;
        let coff = CoffHeader::parse(rest, 0).ok()?;
        if &coff.signature != b"PE\0\0" {
            return None;
        }
        Some(Program {
            machine: coff.machine,
            is_signed: has_certificates(rest.get(CoffHeader::LEN..)?, coff.size_of_optional_header),
        })
    }

    /// The processor that it is for.
    pub(super) fn architecture(self) -> Option<Architecture> {
        Some(match self.machine {
            0x014c => Architecture::I686,
            0x8664 => Architecture::X86_64,
            0x01c0 | 0x01c2 | 0x01c4 => Architecture::Armv7l,
            0xaa64 => Architecture::Aarch64,
            0x0200 => Architecture::Ia64,
            0x5032 => Architecture::Riscv32,
            0x5064 => Architecture::Riscv64,
            0x6232 => Architecture::Loongarch32,
            0x6264 => Architecture::Loongarch64,
            _ => return None,
        })
    }
}

/// Whether the optional header has the directory "Certificate Table", the fifth one, with a size.
fn has_certificates(optional: &[u8], size: u16) -> bool {
    let optional = optional.get(..usize::from(size)).unwrap_or(optional);
    let number = |at| le::<u32>(optional, at);
    let count_at = match optional.first_chunk() {
        Some([0x0b, 0x01]) => 92,
        Some([0x0b, 0x02]) => 108,
        _ => return false,
    };
    number(count_at).is_some_and(|count| count > 4)
        && number(count_at + 4 + 4 * 8).is_some_and(|place| place > 0)
        && number(count_at + 4 + 4 * 8 + 4).is_some_and(|size| size > 0)
}
