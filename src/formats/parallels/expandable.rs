//! An expandable image: its header and its table.

use std::sync::Arc;

use crate::error::Result;
use crate::image::{ImageInfo, Request};
use crate::map::TableReader;
use crate::ondisk::{Order, values};
use crate::source::BlockSource;

use super::PARALLELS;
use super::extension::Extension;
use super::header::{Header, RawHeader};
use super::map::ParallelsMap;

/// An expandable image in one file: its table and its description.
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
