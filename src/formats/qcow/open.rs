//! Opening an image: what its entries mean, and what it says of itself.

use std::sync::Arc;

use crate::codec::{UnpackError, Unpacker};
use crate::error::{Error, Result};
use crate::image::{DiskImage, Findings, Image, ImageInfo, Request, Sealed};
use crate::limits::Limits;
use crate::map::{Below, Cluster, Entries, Mapped, Packing, Regions, Shape, TwoLevel};
use crate::ondisk::Order;
use crate::packed::Codec;
use crate::reference::{Reference, ReferenceKind};
use crate::source::BlockSource;

use super::QCOW;
use super::header::{Header, RawHeader};

/// `QCOW_OFLAG_COMPRESSED`.
const COMPRESSED: u64 = 1 << 63;

/// L2 entries: an offset, or the place and number of the compressed bytes.
#[derive(Debug)]
pub(super) struct QcowEntries {
    cluster_bits: u32,
    unpacker: Unpacker,
}

impl Entries for QcowEntries {
    fn decode(&self, entry: u64) -> Cluster {
        if entry & COMPRESSED == 0 {
            return match entry {
                0 => Cluster::Unallocated,
                host => Cluster::Stored { host },
            };
        }
        let offset_bits = 63 - self.cluster_bits;
        Cluster::Packed {
            host: entry & ((1 << offset_bits) - 1),
            len: (entry & !COMPRESSED) >> offset_bits,
        }
    }

    fn packing(&self) -> Option<&dyn Packing> {
        Some(self)
    }
}

impl Packing for QcowEntries {
    fn codec(&self) -> Option<Codec> {
        None
    }

    fn unpack(&self, payload: &[u8], _: u64, host: u64, unit: &mut [u8]) -> Result<()> {
        let done = self.unpacker.unpack(payload, unit);
        done.map_err(|error| match error {
            UnpackError::Damaged(problem) => {
                Error::malformed(QCOW, "compressed cluster", host, problem)
            }
            UnpackError::NotBuilt(feature) => Error::unsupported(
                QCOW,
                format!("reading clusters compressed with {feature}"),
                "build blockform with the feature of that name",
            ),
        })
    }
}

/// The tables of the image in `file`; `salvages` if what can be read of them is to be had.
fn tables(
    header: &Header,
    file: &Arc<dyn BlockSource>,
    limits: &Limits,
    salvages: bool,
) -> Result<TwoLevel<QcowEntries>> {
    let mut regions = vec![(0, RawHeader::LEN as u64, "header")];
    if let Some((offset, name)) = &header.backing_file {
        let end = offset.saturating_add(name.as_bytes().len() as u64);
        regions.push((*offset, end, "backing file's name"));
    }
    let shape = Shape {
        format: QCOW,
        order: Order::Big,
        cluster_size: 1 << header.cluster_bits,
        table_size: 8 << header.l2_bits,
        // Tables may be shorter than clusters, and no reader asks for more than whole sectors.
        table_alignment: 512,
        virtual_size: header.size,
        l1_offset: header.l1_table_offset,
        l1_size: 0,
        // The name often follows the header at once, and may stand in what is left of it.
        regions: Regions::merged(regions, |_, _, _| {}),
    };
    let entries = QcowEntries {
        cluster_bits: header.cluster_bits,
        unpacker: Unpacker::deflate(),
    };
    TwoLevel::open(shape, entries, file, limits, salvages)
}

/// Looks for everything that is wrong with it.
pub(super) fn check(file: &Arc<dyn BlockSource>, limits: &Limits) -> Result<Findings> {
    let header = Header::read(file)?;
    let mut findings = Findings::default();
    match findings.sound(tables(&header, file, limits, false))? {
        Some(tables) => tables.check(false),
        None => Ok(findings),
    }
}

/// Opens the image in `file`.
pub(super) fn open(file: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let header = Header::read(&file)?;
    let map = tables(&header, &file, request.limits, request.salvages)?;
    let backing = header
        .backing_file
        .map(|(_, name)| Reference::new(ReferenceKind::BackingFile, name).with_format_in_name());
    let info = ImageInfo {
        virtual_size: header.size,
        cluster_size: Some(1 << header.cluster_bits),
        encryption: header.encrypted.then_some("aes"),
        ..ImageInfo::default()
    };
    let sealed = header.encrypted.then_some(Sealed::Encrypted("AES"));
    let parent = request.open_parent(backing.as_slice(), |_, _| Ok(()))?;
    let disk = Mapped::new(
        map,
        Arc::clone(&file),
        Below::from(&parent),
        info.virtual_size,
    );
    let image = DiskImage::new(QCOW, file, disk, info);
    Ok(Box::new(image.with_parent(parent).sealed(sealed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_cluster_is_as_many_bytes_as_its_entry_says() {
        let entries = QcowEntries {
            cluster_bits: 12,
            unpacker: Unpacker::deflate(),
        };
        let entry = COMPRESSED | (300 << 51) | 0x5123;
        let packed = Cluster::Packed {
            host: 0x5123,
            len: 300,
        };
        assert_eq!(entries.decode(entry), packed);
        assert_eq!(entries.decode(0x6000), Cluster::Stored { host: 0x6000 });
        assert_eq!(entries.decode(0), Cluster::Unallocated);
    }
}
