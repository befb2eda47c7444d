//! Programs in ELF, kernels among them (System V ABI, chapter 4, "ELF Header").

use crate::error::Result;
use crate::image::{ImageInfo, Probe, Value};
use crate::ondisk::{FieldType, Order};

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found};

static KIND: Kind = Kind::other("elf", "ELF program", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

fn probe(window: &Probe<'_>) -> Option<Found> {
    let is_elf = window.has(0, b"\x7fELF")
        && matches!(window.head.get(4), Some(1 | 2))
        && matches!(window.head.get(5), Some(1 | 2));
    is_elf.then(|| found(&KIND, "7f ELF", 0)).flatten()
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let head = look.window.head;
    let (order, endianness) = match head.get(5) {
        Some(1) => (Order::Little, "little"),
        _ => (Order::Big, "big"),
    };
    let bits: u32 = if head.get(4) == Some(&2) { 64 } else { 32 };
    let machine = u16::get(head, 18, order).unwrap_or(0);
    let mut details = Value::map();
    details.insert("architecture", architecture(machine));
    details.insert("bits", bits);
    details.insert("endianness", endianness);
    details.insert(
        "type",
        match u16::get(head, 16, order) {
            Some(1) => "relocatable",
            Some(2) => "executable",
            Some(3) => "shared",
            Some(4) => "core",
            _ => "unknown",
        },
    );
    Ok(with_details(details))
}

/// `e_machine`.
fn architecture(machine: u16) -> &'static str {
    match machine {
        2 | 18 | 43 => "sparc",
        3 => "i386",
        4 => "m68k",
        8 => "mips",
        15 => "parisc",
        20 => "powerpc",
        21 => "powerpc64",
        22 => "s390",
        40 => "arm",
        42 => "superh",
        50 => "ia64",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv",
        258 => "loongarch",
        _ => "unknown",
    }
}
