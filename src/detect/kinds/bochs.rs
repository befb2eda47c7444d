//! Growing and sparse images of Bochs (`iodev/hdimage/hdimage.h`, `redolog_header_t` and
//! `sparse_header_t`).

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::name::ImageName;
use crate::ondisk::{on_disk, until_nul};

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found};

const BOCHS: FormatId = FormatId::new("bochs");

static KIND: Kind = Kind::image("bochs", "Bochs disk image", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

const MAGIC: &[u8] = b"Bochs Virtual HD Image";
const VERSION_1: u32 = 0x0001_0000;
const VERSION_2: u32 = 0x0002_0000;

on_disk! {
    /// `redolog_header_t`, up to where the versions differ.
    struct Header in BOCHS, "header", Little, 96 bytes {
        magic: [u8; 32] = 0,
        kind: [u8; 16] = 32,
        subtype: [u8; 16] = 48,
        version: u32 = 64,
        header: u32 = 68,
        catalog: u32 = 72,
        bitmap: u32 = 76,
        extent: u32 = 80,
    }
}

on_disk! {
    /// Continuation in version 1.
    struct Disk1 in BOCHS, "header", Little, 96 bytes {
        disk: u64 = 84,
    }
}

on_disk! {
    /// Continuation in version 2.
    struct Disk2 in BOCHS, "header", Little, 96 bytes {
        timestamp: u32 = 84,
        disk: u64 = 88,
    }
}

on_disk! {
    /// `sparse_header_t`.
    struct Sparse in BOCHS, "sparse header", Little, 24 bytes {
        magic: u32 = 0,
        version: u32 = 4,
        page_size: u32 = 8,
        pages: u32 = 12,
        disk: u64 = 16,
    }
}

const SPARSE_MAGIC: u32 = 0x0246_8ace;

/// The header of a sparse image. Four bytes are little to go by: the rest has to make sense, too.
fn sparse(bytes: &[u8]) -> Option<Sparse> {
    let header = Sparse::parse(bytes, 0).ok()?;
    let pages = u64::from(header.page_size).checked_mul(header.pages.into())?;
    let known = header.magic == SPARSE_MAGIC && matches!(header.version, 1 | 2);
    let is_sound = header.page_size.is_power_of_two() && header.disk <= pages && header.disk > 0;
    (known && is_sound).then_some(header)
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    if window.has(0, MAGIC) {
        return found(&KIND, "Bochs Virtual HD Image", 0);
    }
    sparse(window.head)?;
    found(&KIND, "ce 8a 46 02", 0)
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let bytes = look.window.head;
    if let Some(header) = sparse(bytes) {
        let mut details = Value::map();
        details.insert("subtype", "Sparse");
        details.insert("version", header.version);
        details.insert("extent-size", header.page_size);
        let mut info = with_details(details);
        info.virtual_size = header.disk;
        return Ok(info);
    }
    let header = Header::parse(bytes, 0)?;
    let size = match header.version {
        VERSION_1 => Disk1::parse(bytes, 0)?.disk,
        VERSION_2 => Disk2::parse(bytes, 0)?.disk,
        version => {
            let problem = format!("is {version:#x}, which no Bochs has written");
            return Err(Header::malformed(0, "version", problem));
        }
    };
    let mut details = Value::map();
    details.insert("type", ImageName::from(until_nul(&header.kind)));
    details.insert("subtype", ImageName::from(until_nul(&header.subtype)));
    details.insert("version", u64::from(header.version >> 16));
    details.insert("extent-size", header.extent);
    let mut info = with_details(details);
    info.virtual_size = size;
    Ok(info)
}
