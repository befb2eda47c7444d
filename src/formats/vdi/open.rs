//! Opening an image, and what it says of itself.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::formats::identity::{NIL, Uuid, mixed_endian, to_text};
use crate::image::{Image, ImageInfo, Request, Value};
use crate::map::{Below, Mapped};
use crate::name::ImageName;
use crate::reference::{Reference, ReferenceKind};
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Place, Salvageable, Stored};

use super::VDI;
use super::header::{Header, Header1, ImageType, PreHeader};
use super::map::VdiMap;

/// An open VDI.
#[derive(Debug)]
pub struct VdiImage {
    file: Arc<dyn BlockSource>,
    kind: ImageType,
    mapped: Mapped<VdiMap>,
    backing: Option<Arc<dyn Image>>,
    references: Vec<Reference>,
    info: ImageInfo,
}

impl VdiImage {
    /// Opens the image in `source`.
    ///
    /// # Errors
    /// As [`Format::open`](crate::Format::open).
    pub fn open(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Self> {
        let limits = request.limits;
        let header = Header::read(&source)?;
        limits.check_virtual_size(header.disk_size)?;
        let map = VdiMap::read(&source, &header, request)?;
        let mut info = describe(&header);
        info.warnings.extend(wrong_length(&header, source.size()));
        let (mut below, mut backing, mut references) = (Below::Nothing, None, Vec::new());
        if let Some(parent) = header.uuid_linkage {
            let reference = reference(parent);
            references.push(reference.clone());
            match request.opener.open_image(&reference)? {
                None => below = Below::Detached(Box::new(reference)),
                Some(image) => {
                    check_parent(&*image, &header, parent, &mut info)?;
                    below = Below::Image(Arc::new(Arc::clone(&image)));
                    backing = Some(image);
                }
            }
        }
        Ok(VdiImage {
            kind: header.kind,
            mapped: Mapped::new(map, Arc::clone(&source), below, header.disk_size),
            file: source,
            backing,
            references,
            info,
        })
    }

    /// What kind of VDI it is.
    pub fn image_type(&self) -> ImageType {
        self.kind
    }
}

impl BlockSource for VdiImage {
    fn size(&self) -> u64 {
        self.mapped.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.mapped.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.mapped.extent_at(offset, limit)
    }

    fn block_size(&self) -> u64 {
        self.mapped.block_size()
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        Some(self)
    }
}

impl Stored for VdiImage {
    fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    fn uses_file(&self, file: FileIdentity) -> bool {
        self.file.uses_file(file) || Stored::uses_file(&self.mapped, file)
    }

    fn depth_of(&self, file: FileIdentity, format: FormatId) -> Option<u16> {
        if format == VDI && Stored::identity(self) == Some(file) {
            Some(0)
        } else {
            Stored::depth_of(&self.mapped, file, format)
        }
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        Stored::place_of(&self.mapped, offset, limit)
    }
}

impl Salvageable for VdiImage {
    fn lost_with(&self, offset: u64) -> u64 {
        Salvageable::lost_with(&self.mapped, offset)
    }
}

impl Image for VdiImage {
    fn format(&self) -> FormatId {
        VDI
    }

    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn references(&self) -> &[Reference] {
        &self.references
    }

    fn backing(&self) -> Option<&Arc<dyn Image>> {
        self.backing.as_ref()
    }
}

/// The parent. An image knows it by its UUID alone, and VirtualBox keeps a list of its disks; the name
/// is the one that it gives the files of its snapshots.
fn reference(parent: Uuid) -> Reference {
    let name = format!("{{{}}}.vdi", to_text(&mixed_endian(parent)));
    let reference = Reference::new(ReferenceKind::BackingFile, ImageName::from(name.as_str()));
    reference.with_format(Some(ImageName::from(VDI.as_str())))
}

fn check_parent(
    parent: &dyn Image,
    header: &Header,
    linkage: Uuid,
    info: &mut ImageInfo,
) -> Result<()> {
    let ids = &parent.info().ids;
    let at = PreHeader::LEN as u64;
    let mismatch = |field, ours: Uuid, found: Uuid| {
        let problem = format!(
            "is {}, and the parent that was found has {}",
            to_text(&mixed_endian(ours)),
            to_text(&mixed_endian(found))
        );
        Err(Header1::malformed(at, field, problem))
    };
    match ids.uuid {
        Some(found) if found != linkage => return mismatch("uuid_linkage", linkage, found),
        Some(_) => {}
        None => info
            .warnings
            .push("the parent has no UUID, so nothing tells that it is the right one".to_owned()),
    }
    match (header.uuid_parent_modify, ids.modification_uuid) {
        // The parent was written since: what shows through is not what the image was made over.
        (Some(ours), Some(found)) if ours != found => mismatch("uuid_parent_modify", ours, found),
        _ => Ok(()),
    }
}

/// What tells that data starts elsewhere than the header says: everybody lets the file end with its last
/// block, whole even where the disk ends within it.
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
    info.ids.modification_uuid = Some(header.uuid_modify).filter(|uuid| *uuid != NIL);
    let text = |uuid: Uuid| to_text(&mixed_endian(uuid));
    let mut details = Value::map();
    details.insert("subformat", header.kind.name());
    details.insert(
        "version",
        format!("{}.{}", header.version >> 16, header.version & 0xffff),
    );
    details.insert("block-extra", header.block_extra);
    details.insert("blocks", header.blocks);
    details.insert("blocks-allocated", header.blocks_allocated);
    details.insert("uuid", text(header.uuid_create));
    details.insert("modification-uuid", text(header.uuid_modify));
    if let Some(parent) = header.uuid_linkage {
        details.insert("parent-uuid", text(parent));
    }
    if let Some(parent) = header.uuid_parent_modify {
        details.insert("parent-modification-uuid", text(parent));
    }
    if !header.comment.is_empty() {
        details.insert("comment", ImageName::from(header.comment.as_slice()));
    }
    info.details = Some(details);
    info
}
