//! Forensic images of EnCase and its like (libewf, "Expert Witness Compression Format" 1 and 2).

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::ondisk::{on_disk, until_nul};

use super::look::{Look, of_unknown_size};
use super::{Family, Found, Kind, found};

const EWF: FormatId = FormatId::new("ewf");

static KIND: Kind = Kind::image("ewf", "Expert Witness image", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

/// Variants: signature, its text, and name.
const VARIANTS: [(&[u8; 8], &str, &str); 4] = [
    (b"EVF\x09\x0d\x0a\xff\0", "EVF", "EWF (E01)"),
    (b"LVF\x09\x0d\x0a\xff\0", "LVF", "logical EWF (L01)"),
    (b"EVF2\x0d\x0a\x81\0", "EVF2", "EWF 2 (Ex01)"),
    (b"LEF2\x0d\x0a\x81\0", "LEF2", "logical EWF 2 (Lx01)"),
];

/// Sections looked at: those with the sizes are among the first.
const SECTIONS: usize = 32;

on_disk! {
    /// The file header of version 1.
    struct FileHeader in EWF, "file header", Little, 13 bytes {
        signature: [u8; 8] = 0,
        fields_start: u8 = 8,
        segment_number: u16 = 9,
        fields_end: u16 = 11,
    }
}

on_disk! {
    /// The file header of version 2.
    struct FileHeader2 in EWF, "file header", Little, 32 bytes {
        signature: [u8; 8] = 0,
        major_version: u8 = 8,
        minor_version: u8 = 9,
        compression_method: u16 = 10,
        segment_number: u32 = 12,
        set_identifier: [u8; 16] = 16,
    }
}

on_disk! {
    /// The descriptor before each section of version 1.
    struct Section in EWF, "section descriptor", Little, 76 bytes {
        kind: [u8; 16] = 0,
        next_offset: u64 = 16,
        size: u64 = 24,
        checksum: u32 = 72,
    }
}

on_disk! {
    /// The start of the section "volume" or "disk". The number of sectors has four bytes in the older
    /// and shorter one, where zeros follow.
    struct Volume in EWF, "volume section", Little, 24 bytes {
        media_type: u8 = 0,
        number_of_chunks: u32 = 4,
        sectors_per_chunk: u32 = 8,
        bytes_per_sector: u32 = 12,
        number_of_sectors: u64 = 16,
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    let mut variants = VARIANTS.iter();
    let (_, what, _) = variants.find(|(magic, _, _)| window.has(0, *magic))?;
    found(&KIND, what, 0)
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let head = look.window.head;
    let mut variants = VARIANTS.iter();
    let variant = variants.find(|(magic, _, _)| head.starts_with(*magic));
    let mut details = Value::map();
    details.insert("variant", variant.map_or("", |(_, _, name)| *name));
    if head.get(3) == Some(&b'2') {
        let header = FileHeader2::parse(head, 0)?;
        let version = format!("{}.{}", header.major_version, header.minor_version);
        details.insert("version", version);
        details.insert("segment", header.segment_number);
        return Ok(of_unknown_size(details));
    }
    let header = FileHeader::parse(head, 0)?;
    details.insert("segment", u32::from(header.segment_number));
    let volume = volume(look)?;
    let Some(volume) = volume else {
        return Ok(of_unknown_size(details));
    };
    details.insert("sector-size", volume.bytes_per_sector);
    details.insert("sectors-per-chunk", volume.sectors_per_chunk);
    let mut info = of_unknown_size(details);
    // A logical image holds files, not a disk.
    if head.starts_with(b"E") {
        let size = volume
            .number_of_sectors
            .checked_mul(volume.bytes_per_sector.into());
        info.virtual_size = size.ok_or_else(|| {
            let problem = format!("is {}, more than any disk has", volume.number_of_sectors);
            Volume::malformed(0, "number_of_sectors", problem)
        })?;
        info.size_is_unknown = false;
    }
    Ok(info)
}

/// The section with the sizes, if this file has it: in a set of several it is in the first.
fn volume(look: &Look<'_>) -> Result<Option<Volume>> {
    let mut at = FileHeader::LEN as u64;
    for _ in 0..SECTIONS {
        let bytes = look.read(at, Section::LEN + Volume::LEN)?;
        let Ok(section) = Section::parse(&bytes, at) else {
            return Ok(None);
        };
        if adler32(bytes.get(..72).unwrap_or_default()) != section.checksum {
            let problem = "is not that of the descriptor";
            return Err(Section::malformed(at, "checksum", problem));
        }
        match until_nul(&section.kind) {
            b"volume" | b"disk" => {
                let data = bytes.get(Section::LEN..).unwrap_or_default();
                return Volume::parse(data, at.saturating_add(76)).map(Some);
            }
            b"done" | b"next" => return Ok(None),
            b"" => return Err(Section::malformed(at, "kind", "is empty")),
            _ if section.next_offset <= at => return Ok(None),
            _ => at = section.next_offset,
        }
    }
    Ok(None)
}

/// The checksum of RFC 1950, section 9.
fn adler32(bytes: &[u8]) -> u32 {
    const PRIME: u32 = 65_521;
    let (mut a, mut b) = (1, 0);
    for byte in bytes {
        a = (a + u32::from(*byte)) % PRIME;
        b = (b + a) % PRIME;
    }
    b << 16 | a
}
