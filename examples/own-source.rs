//! A source of one's own: a disk of stripes that lies nowhere, converted to qcow2.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::sync::Arc;

use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{BlockSource, BlockTarget, Extent, ExtentKind, Result, check_extent};

const STRIPE: u64 = 1 << 20;

/// Every other MiB is data, and the rest has never been written.
#[derive(Debug)]
struct Stripes {
    size: u64,
}

impl BlockSource for Stripes {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let bytes = buf.iter_mut().zip(offset..self.size);
        Ok(bytes
            .map(|(byte, at)| *byte = if (at / STRIPE) % 2 == 0 { b'#' } else { 0 })
            .count())
    }

    // Without this method all of the disk is data.
    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.size)?;
        let (kind, host_offset) = match (offset / STRIPE) % 2 {
            0 => (ExtentKind::Data, Some(offset)),
            _ => (ExtentKind::Hole, None),
        };
        Ok(Extent {
            start: offset,
            len: limit.min(STRIPE - offset % STRIPE),
            kind,
            depth: 0,
            host_offset,
        })
    }
}

fn main() -> Result<()> {
    let disk = Stripes { size: 64 << 20 };
    let file: Arc<Memory> = Arc::default();
    let target: Arc<dyn BlockTarget> = Arc::clone(&file) as Arc<dyn BlockTarget>;
    ConvertOptions::to("qcow2").convert_to_targets(&disk, &[target])?;
    println!("{} bytes of disk, {} of qcow2", disk.size, file.size());
    Ok(())
}
