//! Kernels of Linux, in the forms in which each architecture boots them.

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::name::ImageName;
use crate::ondisk::pe::Program;
use crate::ondisk::{on_disk, until_nul};

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found};

static BZIMAGE: Kind = Kind::other("bzimage", "Linux kernel for x86", describe_x86);
static ARM64: Kind = Kind::other("arm64-image", "Linux kernel for arm64", describe_arm64);
static RISCV: Kind = Kind::other("riscv-image", "Linux kernel for RISC-V", describe_riscv);
static LOONGARCH: Kind = Kind::other(
    "loongarch-image",
    "Linux kernel for LoongArch",
    describe_loongarch,
);
static ZIMAGE: Kind = Kind::other("zimage", "Linux kernel for 32-bit ARM", describe_arm);
static ZBOOT: Kind = Kind::other(
    "efi-zboot",
    "Linux kernel that unpacks itself in EFI",
    describe_zboot,
);

pub(super) const FAMILY: Family = Family {
    kinds: &[&BZIMAGE, &ARM64, &RISCV, &LOONGARCH, &ZIMAGE, &ZBOOT],
    probe,
};

const X86: FormatId = FormatId::new("bzimage");

on_disk! {
    /// "The Real-Mode Kernel Header" (`Documentation/arch/x86/boot.rst`), by offsets in the file.
    struct SetupHeader in X86, "setup header", Little, 616 bytes {
        setup_sects: u8 = 0x1f1,
        boot_flag: u16 = 0x1fe,
        header: [u8; 4] = 0x202,
        version: u16 = 0x206,
        kernel_version: u16 = 0x20e,
        type_of_loader: u8 = 0x210,
        loadflags: u8 = 0x211,
        relocatable_kernel: u8 = 0x234,
        xloadflags: u16 = 0x236,
        init_size: u32 = 0x260,
    }
}

on_disk! {
    /// The header of `Documentation/arch/arm64/booting.rst`, section 4, and of
    /// `Documentation/arch/riscv/boot-image-header.rst`, which was made after it.
    struct ImageHeader in X86, "image header", Little, 64 bytes {
        text_offset: u64 = 8,
        image_size: u64 = 16,
        flags: u64 = 24,
        version: u32 = 32,
        magic: [u8; 8] = 48,
        magic2: [u8; 4] = 56,
    }
}

on_disk! {
    /// The start of a zImage (`arch/arm/boot/compressed/head.S`).
    struct ArmHeader in X86, "zImage header", Little, 52 bytes {
        magic: u32 = 0x24,
        start: u32 = 0x28,
        end: u32 = 0x2c,
        endianness: u32 = 0x30,
    }
}

on_disk! {
    /// The start of a kernel that EFI unpacks (`drivers/firmware/efi/libstub/zboot-header.S`).
    struct ZbootHeader in X86, "zboot header", Little, 64 bytes {
        mz: [u8; 4] = 0,
        zimg: [u8; 4] = 4,
        payload_offset: u32 = 8,
        payload_size: u32 = 12,
        compression: [u8; 32] = 24,
    }
}

/// `XLF_KERNEL_64`: there is an entry for 64 bits.
const KERNEL_64: u16 = 1;
/// `LOADED_HIGH`: the kernel is a bzImage, and no zImage.
const LOADED_HIGH: u8 = 1;
const ARM_MAGIC: u32 = 0x016f_2818;
/// Longest version text that is shown.
const VERSION_LEN: usize = 256;

pub(super) fn probe(window: &Probe<'_>) -> Option<Found> {
    if window.has(0x202, b"HdrS") && window.has(0x1fe, b"\x55\xaa") {
        return found(&BZIMAGE, "HdrS", 0x202);
    }
    if window.has(0x38, b"ARM\x64") {
        return found(&ARM64, "ARM 64", 0x38);
    }
    if window.has(0x38, b"RSC\x05") {
        return found(&RISCV, "RSC 05", 0x38);
    }
    if window.has(0, b"MZ") && window.has(0x38, b"\xcd\x23\x82\x81") {
        return found(&LOONGARCH, "cd 23 82 81", 0x38);
    }
    if window.has(0, b"MZ\0\0zimg") {
        return found(&ZBOOT, "zimg", 4);
    }
    let arm = [ARM_MAGIC.to_le_bytes(), ARM_MAGIC.to_be_bytes()];
    if arm.iter().any(|magic| window.has(0x24, magic)) {
        return found(&ZIMAGE, "016f2818", 0x24);
    }
    None
}

fn describe_x86(look: &Look<'_>) -> Result<ImageInfo> {
    let head = look.window.head;
    let header = SetupHeader::parse(head, 0)?;
    let mut details = Value::map();
    // Before 2.12 no field says whether the kernel has 64 bits.
    let bits_are_told = header.version >= 0x20c;
    details.insert(
        "architecture",
        match header.xloadflags & KERNEL_64 {
            _ if !bits_are_told => Program::of(head).map_or("x86", Program::architecture),
            0 => "i386",
            _ => "x86_64",
        },
    );
    details.insert(
        "boot-protocol",
        format!("{}.{:02}", header.version >> 8, header.version & 0xff),
    );
    details.insert(
        "variant",
        match header.loadflags & LOADED_HIGH {
            0 => "zImage",
            _ => "bzImage",
        },
    );
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let at = 0x200 + usize::from(header.kernel_version);
    // The text lies in the setup code.
    if header.kernel_version > 0 && at < (sectors + 1) * 512 {
        let bytes = look.read(at as u64, VERSION_LEN)?;
        details.insert("version", ImageName::from(until_nul(&bytes)));
    }
    details.insert("relocatable", header.relocatable_kernel != 0);
    details.insert("efi-stub", Program::of(head).is_some());
    Ok(with_details(details))
}

/// Details that the headers of arm64, RISC-V and LoongArch have in common.
fn image(
    look: &Look<'_>,
    architecture: &'static str,
    big_endian: u64,
) -> Result<(ImageHeader, Value)> {
    let header = ImageHeader::parse(look.window.head, 0)?;
    let mut details = Value::map();
    details.insert("architecture", architecture);
    details.insert(
        "endianness",
        match header.flags & big_endian {
            0 => "little",
            _ => "big",
        },
    );
    details.insert("image-size", header.image_size);
    details.insert("efi-stub", Program::of(look.window.head).is_some());
    Ok((header, details))
}

fn describe_arm64(look: &Look<'_>) -> Result<ImageInfo> {
    let (header, mut details) = image(look, "aarch64", 1)?;
    let page = match header.flags >> 1 & 3 {
        1 => "4 KiB",
        2 => "16 KiB",
        3 => "64 KiB",
        _ => "unknown",
    };
    details.insert("page-size", page);
    Ok(with_details(details))
}

fn describe_riscv(look: &Look<'_>) -> Result<ImageInfo> {
    let (header, mut details) = image(look, "riscv", 1)?;
    let version = format!("{}.{}", header.version >> 16, header.version & 0xffff);
    details.insert("header-version", version);
    Ok(with_details(details))
}

fn describe_loongarch(look: &Look<'_>) -> Result<ImageInfo> {
    Ok(with_details(image(look, "loongarch64", 0)?.1))
}

fn describe_arm(look: &Look<'_>) -> Result<ImageInfo> {
    let header = ArmHeader::parse(look.window.head, 0)?;
    let little = header.magic == ARM_MAGIC;
    let mut details = Value::map();
    details.insert("architecture", "arm");
    details.insert("endianness", if little { "little" } else { "big" });
    let (start, end) = match little {
        true => (header.start, header.end),
        false => (header.start.swap_bytes(), header.end.swap_bytes()),
    };
    if let Some(size) = end.checked_sub(start) {
        details.insert("image-size", size);
    }
    Ok(with_details(details))
}

fn describe_zboot(look: &Look<'_>) -> Result<ImageInfo> {
    let head = look.window.head;
    let header = ZbootHeader::parse(head, 0)?;
    let mut details = Value::map();
    details.insert(
        "architecture",
        Program::of(head).map_or("unknown", Program::architecture),
    );
    let compression = ImageName::from(until_nul(&header.compression));
    details.insert("compression", compression);
    details.insert("payload-size", header.payload_size);
    Ok(with_details(details))
}
