//! Android's sparse images (AOSP, `libsparse/sparse_format.h`).

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::ondisk::on_disk;

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found};

const ANDROID: FormatId = FormatId::new("android-sparse");

static KIND: Kind = Kind::image("android-sparse", "Android sparse image", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

const MAGIC: u32 = 0xed26_ff3a;

on_disk! {
    /// `sparse_header_t`.
    struct Header in ANDROID, "sparse header", Little, 28 bytes {
        magic: u32 = 0,
        major_version: u16 = 4,
        minor_version: u16 = 6,
        file_hdr_sz: u16 = 8,
        chunk_hdr_sz: u16 = 10,
        blk_sz: u32 = 12,
        total_blks: u32 = 16,
        total_chunks: u32 = 20,
        image_checksum: u32 = 24,
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    let begins = window.has(0, &MAGIC.to_le_bytes());
    begins.then(|| found(&KIND, "3a ff 26 ed", 0)).flatten()
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let header = Header::parse(look.window.head, 0)?;
    if header.blk_sz == 0 || header.blk_sz % 4 != 0 {
        let problem = format!("is {}, not a multiple of 4", header.blk_sz);
        return Err(Header::malformed(0, "blk_sz", problem));
    }
    let mut details = Value::map();
    details.insert(
        "version",
        format!("{}.{}", header.major_version, header.minor_version),
    );
    details.insert("block-size", header.blk_sz);
    details.insert("blocks", header.total_blks);
    details.insert("chunks", header.total_chunks);
    let mut info = with_details(details);
    info.virtual_size = u64::from(header.blk_sz) * u64::from(header.total_blks);
    Ok(info)
}
