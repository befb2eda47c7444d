//! Opening an image, and what it says of itself.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{DiskImage, Image, ImageInfo, Request};
use crate::map::{Below, Mapped, TableReader};
use crate::ondisk::{Order, values};
use crate::source::BlockSource;

use super::PARALLELS;
use super::bundle;
use super::descriptor;
use super::extension::Extension;
use super::header::{Header, RawHeader};
use super::map::ParallelsMap;

/// What an expandable image in one file has: its table, and what it says of itself.
pub(super) struct Expandable {
    pub(super) map: ParallelsMap,
    pub(super) info: ImageInfo,
}

impl Expandable {
    /// Reads the header and the tables of `file`.
    pub(super) fn read(file: &Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Self> {
        let limits = request.limits;
        let header = Header::read(file)?;
        limits.check_virtual_size(header.size)?;
        let (bat, reader) = read_bat(&header, file, request)?;
        let extension = Extension::read(&header, file, limits)?;
        let warnings = header.warnings.iter().chain(&extension.warnings);
        let info = ImageInfo {
            virtual_size: header.size,
            cluster_size: Some(header.cluster_size()),
            dirty: header.in_use,
            bitmaps: extension.bitmaps,
            unknown_to_qemu: true,
            warnings: warnings.cloned().collect(),
            ..ImageInfo::default()
        };
        let map = ParallelsMap::new(header, Arc::clone(file), bat, extension.clusters, reader);
        Ok(Expandable { map, info })
    }
}

/// Reads the BAT, as far as the disk needs it; if what can be is to be salvaged, as far as it can be read.
pub(super) fn read_bat(
    header: &Header,
    file: &dyn BlockSource,
    request: &Request<'_>,
) -> Result<(Vec<u32>, TableReader)> {
    let len = header.entries.saturating_mul(4);
    request.limits.check_metadata("the BAT", len)?;
    let mut bat = vec![0; usize::try_from(len).unwrap_or(0)];
    let reader = TableReader::of(PARALLELS, request);
    reader.read(file, &mut bat, RawHeader::LEN as u64)?;
    Ok((values(&bat, Order::Little).collect(), reader))
}

/// Opens the image in `file`: of one file, or of those that a descriptor lists.
pub(super) fn open(file: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    if descriptor::is_at_start(&file)? {
        return bundle::open(file, request);
    }
    if request.snapshot.is_some() {
        return Err(Error::invalid("a Parallels image has no snapshots"));
    }
    let Expandable { map, info } = Expandable::read(&file, request)?;
    let disk = Mapped::new(map, Arc::clone(&file), Below::Nothing, info.virtual_size);
    Ok(Box::new(DiskImage::new(PARALLELS, file, disk, info)))
}
