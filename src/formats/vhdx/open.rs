//! Opening an image, and what it says of itself.

use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::{DiskImage, Image, ImageIds, ImageInfo, Request, Value};
use crate::map::{Below, Mapped, TableReader};
use crate::name::ImageName;
use crate::reference::{Reference, ReferenceKind};
use crate::source::BlockSource;

use super::VHDX;
use super::bat::Geometry;
use super::header::{self, Current, Header};
use super::locator::{self, ParentLocator};
use super::log;
use super::map::VhdxMap;
use super::metadata::{FileFlags, Metadata, find_metadata, read_metadata};
use super::region::read_regions;

/// Opens the image in `source`. What its log holds is applied in memory; the file stays as it is.
///
/// # Errors
/// As [`Format::open`](crate::Format::open).
pub(super) fn open(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let limits = request.limits;
    header::check_identifier(&*source)?;
    let Current {
        header,
        offset: header_at,
        warning,
    } = header::read_current(&*source)?;
    let mut warnings: Vec<String> = warning.into_iter().collect();
    let overlay = log::replay(&header, header_at, &source, limits)?;
    let dirty = overlay.is_some();
    let file: Arc<dyn BlockSource> = match overlay {
        None => Arc::clone(&source),
        Some(overlay) => {
            warnings.push(
                "the image was not closed: the writes in its log are applied in memory".into(),
            );
            Arc::new(overlay)
        }
    };
    let regions = read_regions(&*file, &header, header_at)?;
    warnings.extend(regions.warning);
    let metadata = match read_metadata(&*file, regions.metadata) {
        Err(error @ (Error::Io { .. } | Error::Malformed { .. })) if request.salvages => {
            let found = find_metadata(&*file, regions.metadata)?;
            warnings.push(format!(
                "the items of metadata are where writers put them: {error}"
            ));
            found.ok_or(error)?
        }
        metadata => metadata?,
    };
    let parent = parent_locator(&metadata)?;
    let geometry = Geometry {
        virtual_size: metadata.virtual_disk_size,
        block_size: metadata.block_size,
        sector_size: u64::from(metadata.logical_sector_size),
        has_parent: parent.is_some(),
    };
    let map = VhdxMap::new(
        Arc::clone(&file),
        geometry,
        regions.bat,
        regions.taken,
        TableReader::of(VHDX, request),
    )?;
    let names = parent.as_ref().map_or(Ok(Vec::new()), names_of)?;
    let below = request.open_parent(&names, |found, reference| match &parent {
        Some(locator) => check_parent(found, locator, &metadata, reference),
        None => Ok(()),
    })?;
    let mut info = describe(&header, &metadata, parent.as_ref(), dirty);
    info.warnings = warnings;
    let disk = Mapped::new(map, file, Below::from(&below), metadata.virtual_disk_size);
    let image = DiskImage::new(VHDX, source, disk, info);
    Ok(Box::new(image.with_parent(below)))
}

/// The parent locator, if the image is a differencing one. Nothing protects the flag that says so by a
/// checksum: it and the locator have to agree.
pub(super) fn parent_locator(metadata: &Metadata) -> Result<Option<ParentLocator>> {
    let has_parent = metadata.flags.contains(FileFlags::HAS_PARENT);
    match (&metadata.parent_locator, has_parent) {
        (Some((at, bytes)), true) => ParentLocator::parse(bytes, *at).map(Some),
        (None, false) => Ok(None),
        (None, true) => {
            let problem = "is missing, and the image has a parent";
            Err(Error::malformed(VHDX, "parent locator", None, problem))
        }
        (Some((at, _)), false) => {
            let problem = "is there, and the image has no parent";
            Err(Error::malformed(VHDX, "parent locator", *at, problem))
        }
    }
}

/// Names of the parent, in the order in which they are tried.
fn names_of(locator: &ParentLocator) -> Result<Vec<Reference>> {
    let named = |name: &String| {
        let reference = Reference::new(ReferenceKind::BackingFile, locator::as_path(name));
        reference.with_format(Some(ImageName::from(VHDX.as_str())))
    };
    let names: Vec<Reference> = locator.names.iter().map(named).collect();
    if names.is_empty() {
        let problem = "names no parent";
        return Err(Error::malformed(VHDX, "parent locator", None, problem));
    }
    Ok(names)
}

/// Fails if the parent is not the one, in the state, that the image was made over.
fn check_parent(
    parent: &dyn Image,
    locator: &ParentLocator,
    metadata: &Metadata,
    reference: &Reference,
) -> Result<()> {
    // A parent of another format, which the caller chose, has no identity to compare.
    if parent.format() != VHDX {
        return Ok(());
    }
    let ids = &parent.info().ids;
    let found = ids.uuid.unwrap_or_default();
    let bad = |problem: String| Err(Error::malformed(VHDX, "parent locator", None, problem));
    if !locator.linkage.contains(&found) {
        let wanted: Vec<String> = locator.linkage.iter().map(Uuid::to_string).collect();
        return bad(format!(
            "wants a parent with the data write GUID {}, and {reference} has {found}: it is another \
             image, or was changed since",
            wanted.join(" or ")
        ));
    }
    match ids.logical_sector_size {
        Some(size) if size != metadata.logical_sector_size => bad(format!(
            "{reference} has sectors of {size} bytes, and the image has sectors of {}",
            metadata.logical_sector_size
        )),
        _ => Ok(()),
    }
}

fn describe(
    header: &Header,
    metadata: &Metadata,
    parent: Option<&ParentLocator>,
    dirty: bool,
) -> ImageInfo {
    let subformat = if parent.is_some() {
        "differencing"
    } else if metadata.flags.contains(FileFlags::LEAVE_BLOCKS_ALLOCATED) {
        "fixed"
    } else {
        "dynamic"
    };
    let mut details = Value::map();
    details.insert("subformat", subformat);
    details.insert("log", if dirty { "replayed in memory" } else { "empty" });
    details.insert("logical-sector-size", metadata.logical_sector_size);
    details.insert("physical-sector-size", metadata.physical_sector_size);
    details.insert("disk-id", metadata.virtual_disk_id.to_string());
    details.insert("data-write-guid", header.data_write_guid.to_string());
    if let Some(locator) = parent {
        let linkage = locator
            .linkage
            .iter()
            .map(|guid| Value::from(guid.to_string()));
        details.insert("parent-linkage", linkage.collect::<Vec<_>>());
        let names = locator
            .names
            .iter()
            .map(|name| Value::from(ImageName::from(name.as_str())));
        details.insert("parent-names", names.collect::<Vec<_>>());
    }
    ImageInfo {
        virtual_size: metadata.virtual_disk_size,
        cluster_size: Some(metadata.block_size),
        dirty,
        ids: ImageIds {
            uuid: Some(header.data_write_guid),
            logical_sector_size: Some(metadata.logical_sector_size),
            ..ImageIds::default()
        },
        details: Some(details),
        ..ImageInfo::default()
    }
}
