//! The header of a program of Windows and of UEFI (Microsoft, "PE Format").

use crate::format_id::FormatId;
use crate::ondisk::{le, on_disk};

const PE: FormatId = FormatId::new("pe");
/// Bytes of a program that are enough: the headers stand at its start.
pub(crate) const START: usize = 4096;

/// Offset of `Subsystem` in the optional header, the same in both of its kinds.
const SUBSYSTEM: usize = 68;

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

/// The facts in the header of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Program {
    /// Offset of the header in the file.
    pub(crate) at: usize,
    /// The field `Machine`.
    pub(crate) machine: u16,
    /// The field `Subsystem`.
    pub(crate) subsystem: Option<u16>,
    /// Presence of a table of certificates, which are not verified here.
    pub(crate) is_signed: bool,
}

impl Program {
    /// The program that starts with these bytes.
    pub(crate) fn of(start: &[u8]) -> Option<Self> {
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
        let optional = rest.get(CoffHeader::LEN..)?;
        Some(Program {
            at,
            machine: coff.machine,
            subsystem: le(optional, SUBSYSTEM),
            is_signed: has_certificates(optional, coff.size_of_optional_header),
        })
    }

    /// The name of the processor that it is for.
    pub(crate) fn architecture(self) -> &'static str {
        match self.machine {
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
}

/// Returns whether the optional header has the directory "Certificate Table", the fifth one, with a size.
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
