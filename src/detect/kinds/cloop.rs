//! Compressed loop images, format 2.0 (cloop, `compressed_loop.h`).

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::ondisk::on_disk;

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found};

const CLOOP: FormatId = FormatId::new("cloop");

static KIND: Kind = Kind::image("cloop", "compressed loop image", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

const MAGIC: &[u8] = b"#!/bin/sh\n#V2.0 Format\n";

on_disk! {
    /// `struct cloop_head`: a shell script that would mount it, and two numbers.
    struct Head in CLOOP, "header", Big, 136 bytes {
        preamble: [u8; 128] = 0,
        block_size: u32 = 128,
        num_blocks: u32 = 132,
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    let begins = window.has(0, MAGIC);
    begins.then(|| found(&KIND, "#V2.0 Format", 0)).flatten()
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let head = Head::parse(look.window.head, 0)?;
    if head.block_size == 0 || head.block_size % 512 != 0 {
        let problem = format!("is {}, not a multiple of 512", head.block_size);
        return Err(Head::malformed(0, "block_size", problem));
    }
    let mut details = Value::map();
    details.insert("block-size", head.block_size);
    details.insert("blocks", head.num_blocks);
    let mut info = with_details(details);
    info.virtual_size = u64::from(head.block_size) * u64::from(head.num_blocks);
    Ok(info)
}
