//! A format of one's own, beside those of the crate: 16 bytes of header, and the disk behind them.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::sync::Arc;

use blockform::formats::Formats;
use blockform::image::{DiskImage, ImageInfo, Probe, Request, Verdict};
use blockform::storage::{Memory, Slice};
use blockform::{BlockSource, BlockSourceExt, Error, Format, FormatId, Image, OpenOptions, Result};

const OWN: FormatId = FormatId::new("own");
const MAGIC: &[u8; 8] = b"OWNDISK\0";
const HEADER: u64 = 16;

#[derive(Debug)]
struct Own;

impl Format for Own {
    fn id(&self) -> FormatId {
        OWN
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        Verdict::found_if(window.has(0, MAGIC), "OWNDISK", 0)
    }

    fn open(&self, file: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        let mut size = [0; 8];
        file.read_exact_at(&mut size, 8)?;
        let size = u64::from_le_bytes(size);
        request.limits.check_virtual_size(size)?;
        let disk = Slice::new(Arc::clone(&file), HEADER, size).map_err(|_| {
            Error::malformed(OWN, "header", 8, "has a size that is not in the file")
        })?;
        let mut info = ImageInfo::default();
        info.virtual_size = size;
        Ok(Box::new(DiskImage::new(OWN, file, disk, info)))
    }
}

fn main() -> Result<()> {
    let text = b"the guest's bytes";
    let mut file = MAGIC.to_vec();
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text);
    // No other format is opened, whatever the file looks like.
    let formats = Formats::only([])?.with(&Own);
    let image = OpenOptions::new()
        .formats(formats)
        .open(Arc::new(Memory::new(file)))?;
    let mut bytes = vec![0; text.len()];
    image.read_exact_at(&mut bytes, 0)?;
    let text = String::from_utf8_lossy(&bytes);
    println!("{} image of {} bytes: {text}", image.format(), image.size());
    Ok(())
}
