//! Growing images of Bochs (`iodev/hdimage/hdimage.h`, `redolog_header_t`).

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::name::ImageName;
use crate::ondisk::on_disk;

use super::look::{Look, text, with_details};
use super::{Family, Found, Kind, found};

const BOCHS: FormatId = FormatId::new("bochs");

static KIND: Kind = Kind::image("bochs", "Bochs redolog", describe);

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
    /// What follows in version 1.
    struct Disk1 in BOCHS, "header", Little, 96 bytes {
        disk: u64 = 84,
    }
}

on_disk! {
    /// What follows in version 2.
    struct Disk2 in BOCHS, "header", Little, 96 bytes {
        timestamp: u32 = 84,
        disk: u64 = 88,
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    let begins = window.has(0, MAGIC);
    begins
        .then(|| found(&KIND, "Bochs Virtual HD Image", 0))
        .flatten()
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let bytes = look.window.head;
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
    details.insert("type", ImageName::from(text(&header.kind)));
    details.insert("subtype", ImageName::from(text(&header.subtype)));
    details.insert("version", u64::from(header.version >> 16));
    details.insert("extent-size", header.extent);
    let mut info = with_details(details);
    info.virtual_size = size;
    Ok(info)
}
