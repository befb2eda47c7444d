//! Opening an image: what its entries mean, and what it says of itself.

use std::sync::Arc;

use crate::error::Result;
use crate::image::{DiskImage, Findings, Image, ImageInfo, Request};
use crate::limits::Limits;
use crate::map::{Below, Cluster, Entries, Mapped, Regions, Shape, TwoLevel};
use crate::name::ImageName;
use crate::ondisk::Order;
use crate::reference::{Reference, ReferenceKind};
use crate::source::BlockSource;

use super::QED;
use super::header::{Features, Header};

/// L2 entries (section "Tables"): 0, 1 or an offset.
#[derive(Debug)]
pub(super) struct QedEntries;

impl Entries for QedEntries {
    fn decode(&self, entry: u64) -> Cluster {
        match entry {
            0 => Cluster::Unallocated,
            1 => Cluster::Zero,
            host => Cluster::Stored { host },
        }
    }
}

/// The tables of the image in `file`; `salvages` if what can be read of them is to be had.
pub(super) fn tables(
    header: &Header,
    file: &Arc<dyn BlockSource>,
    limits: &Limits,
    salvages: bool,
) -> Result<TwoLevel<QedEntries>> {
    let shape = Shape {
        format: QED,
        order: Order::Little,
        cluster_size: header.cluster_size,
        table_size: header.table_size,
        table_alignment: header.cluster_size,
        virtual_size: header.image_size,
        l1_offset: header.l1_table_offset,
        l1_size: header.table_size,
        regions: Regions::merged(vec![(0, header.header_size, "header")], |_, _, _| {}),
    };
    TwoLevel::open(shape, QedEntries, file, limits, salvages)
}

/// Looks for everything that is wrong with it.
pub(super) fn check(file: &Arc<dyn BlockSource>, limits: &Limits) -> Result<Findings> {
    let header = Header::read(file)?;
    let mut early = Findings::default();
    if header.features.contains(Features::NEED_CHECK) {
        early.note("header", "the image was not closed");
    }
    let Some(tables) = early.sound(tables(&header, file, limits, false))? else {
        return Ok(early);
    };
    let mut findings = tables.check(true)?;
    findings.merge(early);
    Ok(findings)
}

/// Opens the image in `file`.
pub(super) fn open(file: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let header = Header::read(&file)?;
    let map = tables(&header, &file, request.limits, request.salvages)?;
    let mut info = ImageInfo {
        virtual_size: header.image_size,
        cluster_size: Some(header.cluster_size),
        dirty: header.features.contains(Features::NEED_CHECK),
        ..ImageInfo::default()
    };
    if info.dirty {
        let text = "the image was not closed: it needs a check (qemu-img check)";
        info.warnings.push(text.to_owned());
    }
    let is_raw = header.features.contains(Features::BACKING_FORMAT_NO_PROBE);
    let backing = header.backing_file.map(|name| {
        let reference = Reference::new(ReferenceKind::BackingFile, name);
        // Raw is the one format that the header has a word for.
        match is_raw {
            true => reference.with_format(Some(ImageName::from("raw"))),
            false => reference.with_format_in_name(),
        }
    });
    let parent = request.open_parent(backing.as_slice(), |_, _| Ok(()))?;
    let disk = Mapped::new(
        map,
        Arc::clone(&file),
        Below::from(&parent),
        info.virtual_size,
    );
    let image = DiskImage::new(QED, file, disk, info);
    Ok(Box::new(image.with_parent(parent)))
}
