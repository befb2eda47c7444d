//! Apple Sparse Image Format, of macOS 26. Apple has no specification of it; the header is as others
//! found it out (dissect.hypervisor, huven/asif-format), and they agree.

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::ondisk::on_disk;

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found};

const ASIF: FormatId = FormatId::new("asif");

static KIND: Kind = Kind::image("asif", "Apple Sparse Image Format", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

on_disk! {
    /// The header.
    struct Header in ASIF, "header", Big, 80 bytes {
        header_signature: [u8; 4] = 0,
        header_version: u32 = 4,
        header_size: u32 = 8,
        header_flags: u32 = 12,
        directory_offset_0: u64 = 16,
        directory_offset_1: u64 = 24,
        guid: [u8; 16] = 32,
        sector_count: u64 = 48,
        max_sector_count: u64 = 56,
        chunk_size: u32 = 64,
        block_size: u16 = 68,
        total_segments: u16 = 70,
        metadata_chunk: u64 = 72,
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    let begins = window.has(0, b"shdw");
    begins.then(|| found(&KIND, "shdw", 0)).flatten()
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let header = Header::parse(look.window.head, 0)?;
    let in_bytes = |sectors: u64, field| {
        sectors
            .checked_mul(header.block_size.into())
            .ok_or_else(|| {
                let problem = format!("is {sectors}, more than any disk has");
                Header::malformed(0, field, problem)
            })
    };
    if header.block_size == 0 {
        return Err(Header::malformed(0, "block_size", "is 0"));
    }
    let mut details = Value::map();
    details.insert("version", header.header_version);
    details.insert("sector-size", u32::from(header.block_size));
    details.insert("chunk-size", header.chunk_size);
    let most = in_bytes(header.max_sector_count, "max_sector_count")?;
    details.insert("largest-virtual-size", most);
    let mut info = with_details(details);
    info.virtual_size = in_bytes(header.sector_count, "sector_count")?;
    Ok(info)
}
