//! Apple's disk images: UDIF with its trailer, encrypted ones, and sparse images.

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::ondisk::on_disk;

use super::look::{Look, of_unknown_size, with_details};
use super::{Family, Found, Kind, found};

/// `dmg`.
pub(in crate::detect) const DMG: FormatId = FormatId::new("dmg");

static KIND: Kind = Kind::image("dmg", "Apple disk image", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

const SECTOR: u64 = 512;
const TRAILER: &[u8] = b"koly";
const ENCRYPTED: &[u8] = b"encrcdsa";
const SPARSE: &[u8] = b"sprs";

on_disk! {
    /// The trailer of UDIF, as far as it is needed ("koly block").
    struct Koly in DMG, "koly trailer", Big, 512 bytes {
        signature: [u8; 4] = 0,
        version: u32 = 4,
        header_size: u32 = 8,
        flags: u32 = 12,
        data_fork_offset: u64 = 24,
        data_fork_length: u64 = 32,
        segment_number: u32 = 56,
        segment_count: u32 = 60,
        xml_offset: u64 = 216,
        xml_length: u64 = 224,
        image_variant: u32 = 488,
        sector_count: u64 = 492,
    }
}

on_disk! {
    /// The header of a sparse image (libmodi, "Mac OS sparse image format", "File header").
    struct Sparse in DMG, "sparse image header", Big, 64 bytes {
        signature: [u8; 4] = 0,
        version: u32 = 4,
        sectors_per_band: u32 = 8,
        sectors: u32 = 16,
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    if window.from_end(Koly::LEN, TRAILER.len()) == Some(TRAILER) {
        return found(&KIND, "koly", window.size.saturating_sub(SECTOR));
    }
    if window.has(0, ENCRYPTED) {
        return found(&KIND, "encrcdsa", 0);
    }
    // Four letters are little evidence: the version that all files have is compared, too.
    let is_sparse = window.has(0, SPARSE) && window.has(4, &3_u32.to_be_bytes());
    is_sparse.then(|| found(&KIND, "sprs", 0)).flatten()
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let window = &look.window;
    if let Some(bytes) = window
        .from_end(Koly::LEN, Koly::LEN)
        .filter(|bytes| bytes.starts_with(TRAILER))
    {
        return of_koly(bytes, window.size.saturating_sub(SECTOR));
    }
    let mut details = Value::map();
    if window.has(0, ENCRYPTED) {
        details.insert("variant", "encrypted");
        let mut info = of_unknown_size(details);
        info.encryption = Some("encrcdsa");
        return Ok(info);
    }
    let header = Sparse::parse(window.head, 0)?;
    details.insert("variant", "sparse image");
    details.insert("version", header.version);
    details.insert("band-size", u64::from(header.sectors_per_band) * SECTOR);
    let mut info = with_details(details);
    info.virtual_size = u64::from(header.sectors) * SECTOR;
    Ok(info)
}

fn of_koly(bytes: &[u8], at: u64) -> Result<ImageInfo> {
    let koly = Koly::parse(bytes, at)?;
    let Some(size) = koly.sector_count.checked_mul(SECTOR) else {
        let problem = format!("is {}, more than any disk has", koly.sector_count);
        return Err(Koly::malformed(at, "sector_count", problem));
    };
    let mut details = Value::map();
    details.insert("variant", "UDIF");
    details.insert("version", koly.version);
    details.insert(
        "contents",
        match koly.image_variant {
            1 => "whole disk",
            2 => "partition",
            _ => "unknown",
        },
    );
    if koly.segment_count > 1 {
        details.insert("segment", koly.segment_number);
        details.insert("segments", koly.segment_count);
    }
    let mut info = with_details(details);
    info.virtual_size = size;
    let parts = [
        ("data fork", koly.data_fork_offset, koly.data_fork_length),
        ("property list", koly.xml_offset, koly.xml_length),
    ];
    for (name, start, len) in parts {
        if start.checked_add(len).is_none_or(|end| end > at) {
            let text = format!("the trailer says that the {name} ends past the file's end");
            info.warnings.push(text);
        }
    }
    Ok(info)
}
