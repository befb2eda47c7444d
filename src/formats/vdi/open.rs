//! Opening an image, and what it says of itself.

use std::sync::Arc;

use uuid::Uuid;

use crate::error::Result;
use crate::image::{DiskImage, Image, ImageInfo, Request, Value};
use crate::map::{Below, Mapped};
use crate::name::ImageName;
use crate::reference::{Reference, ReferenceKind};
use crate::source::BlockSource;

use super::VDI;
use super::header::{Header, Header1, PreHeader};
use super::map::VdiMap;

/// Opens the image in `source`.
///
/// # Errors
/// As [`Format::open`](crate::Format::open).
pub(super) fn open(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let limits = request.limits;
    let header = Header::read(&source)?;
    limits.check_virtual_size(header.disk_size)?;
    let map = VdiMap::read(&source, &header, request)?;
    let mut info = describe(&header);
    info.warnings.extend(wrong_length(&header, source.size()));
    let names: Vec<Reference> = header.uuid_linkage.map(reference).into_iter().collect();
    let parent =
        request.open_parent(&names, |parent, _| check_parent(parent, &header, &mut info))?;
    let disk = Mapped::new(
        map,
        Arc::clone(&source),
        Below::from(&parent),
        header.disk_size,
    );
    let image = DiskImage::new(VDI, source, disk, info);
    Ok(Box::new(image.with_parent(parent)))
}

/// The parent. An image knows it by its UUID alone, and VirtualBox keeps a list of its disks; the name
/// is the one that it gives the files of its snapshots.
fn reference(parent: Uuid) -> Reference {
    let name = format!("{}.vdi", parent.braced());
    let reference = Reference::new(ReferenceKind::BackingFile, ImageName::from(name.as_str()));
    reference.with_format(Some(ImageName::from(VDI.as_str())))
}

fn check_parent(parent: &dyn Image, header: &Header, info: &mut ImageInfo) -> Result<()> {
    let ids = &parent.info().ids;
    let at = PreHeader::LEN as u64;
    let mismatch = |field, ours: Uuid, found: Uuid| {
        let problem = format!("is {ours}, and the parent that was found has {found}");
        Err(Header1::malformed(at, field, problem))
    };
    match (header.uuid_linkage, ids.uuid) {
        (Some(linkage), Some(found)) if found != linkage => {
            return mismatch("uuid_linkage", linkage, found);
        }
        (_, Some(_)) => {}
        (_, None) => info
            .warnings
            .push("the parent has no UUID, so nothing tells that it is the right one".to_owned()),
    }
    match (header.uuid_parent_modify, ids.modification_uuid) {
        // The parent was written since: what shows through is not what the image was made over.
        (Some(ours), Some(found)) if ours != found => mismatch("uuid_parent_modify", ours, found),
        _ => Ok(()),
    }
}

/// Returns a warning if the data seems to start elsewhere than the header says: writers end the file with
/// its last block, whole even where the disk ends within it.
fn wrong_length(header: &Header, file_size: u64) -> Option<String> {
    let block = header.block_size.checked_add(header.block_extra)?;
    let blocks = block.checked_mul(header.blocks_allocated.into())?;
    let end = header.offset_data.checked_add(blocks)?;
    (file_size != end).then(|| {
        format!("the file has {file_size} bytes, and by its header its blocks end at {end}")
    })
}

fn describe(header: &Header) -> ImageInfo {
    let mut info = ImageInfo {
        virtual_size: header.disk_size,
        cluster_size: Some(header.block_size),
        ..ImageInfo::default()
    };
    info.ids.uuid = Some(header.uuid_create);
    info.ids.modification_uuid = Some(header.uuid_modify).filter(|uuid| !uuid.is_nil());
    let mut details = Value::map();
    details.insert("subformat", header.kind.name());
    details.insert(
        "version",
        format!("{}.{}", header.version >> 16, header.version & 0xffff),
    );
    details.insert("block-extra", header.block_extra);
    details.insert("blocks", header.blocks);
    details.insert("blocks-allocated", header.blocks_allocated);
    details.insert("uuid", header.uuid_create.to_string());
    details.insert("modification-uuid", header.uuid_modify.to_string());
    if let Some(parent) = header.uuid_linkage {
        details.insert("parent-uuid", parent.to_string());
    }
    if let Some(parent) = header.uuid_parent_modify {
        details.insert("parent-modification-uuid", parent.to_string());
    }
    if !header.comment.is_empty() {
        details.insert("comment", ImageName::from(header.comment.as_slice()));
    }
    info.details = Some(details);
    info
}
