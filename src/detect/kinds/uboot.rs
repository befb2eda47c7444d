//! Images of U-Boot (`include/image.h`) and flattened device trees (Devicetree Specification,
//! section 5.2), which the newer images are, too.

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::name::ImageName;
use crate::ondisk::{on_disk, until_nul};

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found};

const UBOOT: FormatId = FormatId::new("uimage");

static UIMAGE: Kind = Kind::other("uimage", "U-Boot image", describe);
static TREE: Kind = Kind::other("fdt", "flattened device tree", describe_tree);

pub(super) const FAMILY: Family = Family {
    kinds: &[&UIMAGE, &TREE],
    probe,
};

const MAGIC: &[u8] = b"\x27\x05\x19\x56";
const TREE_MAGIC: &[u8] = b"\xd0\x0d\xfe\xed";

on_disk! {
    /// `legacy_img_hdr`.
    struct Header in UBOOT, "image header", Big, 64 bytes {
        ih_magic: [u8; 4] = 0,
        ih_hcrc: u32 = 4,
        ih_time: u32 = 8,
        ih_size: u32 = 12,
        ih_load: u32 = 16,
        ih_ep: u32 = 20,
        ih_dcrc: u32 = 24,
        ih_os: u8 = 28,
        ih_arch: u8 = 29,
        ih_type: u8 = 30,
        ih_comp: u8 = 31,
        ih_name: [u8; 32] = 32,
    }
}

on_disk! {
    /// `fdt_header`.
    struct Tree in UBOOT, "device tree header", Big, 40 bytes {
        magic: [u8; 4] = 0,
        totalsize: u32 = 4,
        off_dt_struct: u32 = 8,
        off_dt_strings: u32 = 12,
        off_mem_rsvmap: u32 = 16,
        version: u32 = 20,
        last_comp_version: u32 = 24,
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    if window.has(0, MAGIC) && window.head.len() >= Header::LEN {
        return found(&UIMAGE, "27 05 19 56", 0);
    }
    let is_tree = window.has(0, TREE_MAGIC) && window.head.len() >= Tree::LEN;
    is_tree.then(|| found(&TREE, "d0 0d fe ed", 0)).flatten()
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let header = Header::parse(look.window.head, 0)?;
    let mut details = Value::map();
    details.insert("name", ImageName::from(until_nul(&header.ih_name)));
    details.insert("architecture", architecture(header.ih_arch));
    details.insert(
        "type",
        match header.ih_type {
            1 => "standalone program",
            2 => "kernel",
            3 => "ramdisk",
            4 => "several files",
            5 => "firmware",
            6 => "script",
            7 => "filesystem",
            8 => "device tree",
            14 => "kernel that needs no address",
            _ => "unknown",
        },
    );
    details.insert(
        "compression",
        match header.ih_comp {
            0 => "none",
            1 => "gzip",
            2 => "bzip2",
            3 => "lzma",
            4 => "lzo",
            5 => "lz4",
            6 => "zstd",
            _ => "unknown",
        },
    );
    details.insert("data-size", header.ih_size);
    // Several files begin with a table of their sizes.
    if header.ih_type != 4 {
        let data = look.window.head.get(Header::LEN..).unwrap_or_default();
        if let Some(inside) = look.inside(data) {
            details.insert("inside", inside);
        }
    }
    Ok(with_details(details))
}

fn architecture(arch: u8) -> &'static str {
    match arch {
        2 => "arm",
        3 => "i386",
        4 => "ia64",
        5 => "mips",
        6 => "mips64",
        7 => "powerpc",
        8 => "s390",
        9 => "superh",
        10 => "sparc",
        11 => "sparc64",
        12 => "m68k",
        14 => "microblaze",
        22 => "aarch64",
        24 => "x86_64",
        26 => "riscv",
        _ => "unknown",
    }
}

fn describe_tree(look: &Look<'_>) -> Result<ImageInfo> {
    let tree = Tree::parse(look.window.head, 0)?;
    let mut details = Value::map();
    details.insert("version", tree.version);
    details.insert("total-size", tree.totalsize);
    Ok(with_details(details))
}
