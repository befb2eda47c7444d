//! Opening a disk, and its description.

use std::ops::Deref;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Disk, DiskImage, FileInfo, Image, ImageInfo, Probe, Request, Value};
use crate::limits::Limits;
use crate::map::{Below, Reason, Unreadable, read_what_is_left};
use crate::name::ImageName;
use crate::reference::{Reference, ReferenceKind};
use crate::source::{BlockSource, BlockSourceExt, forward_source};
use crate::storage::Concat;

use super::VMDK;
use super::descriptor::{self, Descriptor, NO_CID};
use super::extent::{ExtentInfo, Opening, Part};
use super::header::{
    CHANGE_TRACKING_MAGIC, COWD_MAGIC, SE_SPARSE_MAGIC, SECTOR, SPARSE_MAGIC, SparseExtentHeader,
    unsupported,
};
use super::line::malformed;
use super::properties;
use super::sparse::{self, InForce};
use super::walk::Walk;

/// Extents of a disk, one behind the other.
#[derive(Debug)]
struct VmdkDisk {
    parts: Concat,
    /// End of each extent, in bytes of the disk, and the name of its file, if it has one of its own.
    extents: Vec<(u64, Option<ImageName>)>,
    /// The walk by which grains are found while they arrive.
    walk: Option<Walk>,
    /// Places of the tables, if they are in the image's own file.
    tables: Vec<(u64, u64)>,
}

/// Opens the disk whose descriptor, or whose only extent, is in `source`.
///
/// # Errors
/// As [`Format::open`](crate::Format::open).
pub(super) fn open(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let mut magic = [0; 8];
    let n = source.read_at(&mut magic, 0)?;
    let starts = |known: &[u8]| n >= known.len() && magic.starts_with(known);
    if starts(&SPARSE_MAGIC) {
        open_monolithic(source, request)
    } else if starts(&COWD_MAGIC) {
        open_bare_cowd(source, request)
    } else if starts(&SE_SPARSE_MAGIC) {
        Err(extent_alone("a seSparse extent without its descriptor"))
    } else if starts(&CHANGE_TRACKING_MAGIC) {
        Err(unsupported("a change-tracking file".into()))
    } else {
        let text = read_text_file(&source, request.limits)?;
        open_text(source, &text, request)
    }
}

/// A hosted sparse extent with the descriptor in it.
fn open_monolithic(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let header = sparse::read_header(&source)?;
    let text = embedded_text(&source, &header, request.limits);
    if header.capacity == 0 && header.descriptor_offset > 0 {
        return open_text(source, &text?, request);
    }
    let parsed = text.and_then(|text| Descriptor::parse(&text, request.limits));
    let left = || left_of_text(&source, &header, request.limits);
    let (descriptor, lost) = match parsed {
        Err(error @ (Error::Malformed { .. } | Error::Io { .. })) if request.salvages => {
            (Descriptor::parse(b"", request.limits)?, Some(error))
        }
        parsed => (parsed?, None),
    };
    let says_nothing = descriptor.create_type().is_none() && descriptor.cid.is_none();
    let lost = match lost {
        None if !says_nothing => None,
        // The extents of a disk in several have room for a descriptor, and nothing there.
        None if !request.salvages || left()?.iter().all(|byte| *byte == 0) => {
            return Err(extent_alone("an extent file of a disk in several"));
        }
        None => Some(malformed("has neither a createType nor a CID")),
        lost => lost,
    };
    if descriptor.extents.len() > 1 {
        return Err(malformed(format!(
            "is within one extent and lists {}",
            descriptor.extents.len()
        )));
    }
    // The footer counts, where there is one and it has arrived.
    let found = match request.arriving && header.is_walkable() {
        true => None,
        false => Some(InForce::of(Arc::clone(&source), &header, request)?),
    };
    let size = found
        .as_ref()
        .map_or(header.capacity * SECTOR, InForce::capacity);
    let mut disk = Opening::new(&descriptor, request)?;
    if let Some(error) = lost {
        disk.go_on_without(&error, size, &left()?);
    }
    // The name in the line is what the file was once called.
    let own = own_extent(size);
    let (part, walk) = match found {
        None => disk
            .walked(own, Arc::clone(&source), &header)
            .map(|(p, w)| (p, Some(w)))?,
        Some(found) => (disk.hosted(own, Arc::clone(&source), found)?, None),
    };
    if let Some(line) = descriptor.extents.first() {
        let described = line.sectors * SECTOR;
        if described != size {
            disk.warnings.push(format!(
                "the descriptor says that the disk has {described} bytes, the header {size}"
            ));
        }
    }
    let create_type = match part.info.compressed {
        true => "streamOptimized",
        false => "monolithicSparse",
    };
    disk.finish(source, vec![part], create_type.into(), &descriptor, walk)
}

/// A COWD extent, which has no descriptor in it.
fn open_bare_cowd(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let header = sparse::read_cowd_header(&source)?;
    if header.names_parent() {
        return Err(extent_alone(
            "a COWD extent of a child without its descriptor",
        ));
    }
    let size = u64::from(header.num_sectors) * SECTOR;
    let descriptor = Descriptor::parse(b"", request.limits)?;
    let mut disk = Opening::new(&descriptor, request)?;
    let map = sparse::open_cowd(Arc::clone(&source), &header, None, request)?;
    let part = disk.mapped(own_extent(size), Arc::clone(&source), map, Vec::new())?;
    disk.finish(source, vec![part], "vmfsSparse".into(), &descriptor, None)
}

/// A descriptor that names the extent files.
fn open_text(
    source: Arc<dyn BlockSource>,
    text: &[u8],
    request: &Request<'_>,
) -> Result<Box<dyn Image>> {
    let descriptor = Descriptor::parse(text, request.limits)?;
    let Some(create_type) = descriptor.create_type() else {
        return Err(malformed("has no createType"));
    };
    const DEVICES: [&[u8]; 7] = [
        b"fulldevice",
        b"partitioneddevice",
        b"vmfsraw",
        b"vmfsrdm",
        b"vmfsrdmp",
        b"vmfsrawdevicemap",
        b"vmfspassthroughrawdevicemap",
    ];
    let create_type = ImageName::from(create_type);
    let lower = create_type.as_bytes().to_ascii_lowercase();
    if DEVICES.contains(&lower.as_slice()) {
        let create_type = create_type.quoted();
        return Err(unsupported(format!("a disk on a device ({create_type})")));
    }
    if descriptor.extents.iter().all(|line| line.sectors == 0) {
        return Err(malformed("has no extents"));
    }
    let mut disk = Opening::new(&descriptor, request)?;
    let mut parts = Vec::new();
    for line in descriptor.lines() {
        parts.push(disk.open(&line)?);
    }
    if !descriptor.has_end() {
        disk.warnings.push(
            "the descriptor has no disk data base, its last section: lines may be missing"
                .to_owned(),
        );
    }
    disk.finish(source, parts, create_type, &descriptor, None)
}

impl<'a> Opening<'a> {
    /// Opens the parent, if there is one.
    fn new(descriptor: &Descriptor, request: &'a Request<'a>) -> Result<Self> {
        let mut opening = Opening {
            request,
            below: Below::Nothing,
            backing: None,
            references: Vec::new(),
            warnings: Vec::new(),
            start: 0,
            taken: Vec::new(),
        };
        let Some(name) = descriptor.parent_hint() else {
            if let Some(parent) = descriptor.nameless_parent() {
                opening.warnings.push(format!(
                    "the disk records changes to a parent ({parent}) without its file name: what it \
                     does not record cannot be read"
                ));
                let parent = ImageName::from(parent.as_str());
                let reference = Reference::new(ReferenceKind::BackingFile, parent);
                opening.below = Below::Detached(Box::new(reference));
            }
            return Ok(opening);
        };
        let reference = Reference::new(ReferenceKind::BackingFile, descriptor.decoded(name))
            .with_format(Some(ImageName::from(VMDK.as_str())));
        opening.references.push(reference.clone());
        let parent =
            request.open_parent(&[reference], |found, _| check_parent(descriptor, found))?;
        (opening.below, opening.backing) = (Below::from(&parent), parent.image);
        Ok(opening)
    }

    /// Goes on without the descriptor of a disk of this size, of which `text` is left. What the disk does not
    /// record is lost unless that says that it has no parent.
    fn go_on_without(&mut self, error: &Error, size: u64, text: &[u8]) {
        self.warnings.push(format!(
            "the descriptor is damaged, and the header tells what the disk is: {}",
            error.chain()
        ));
        if !descriptor::says_no_parent(text) {
            let problem = "does not tell any more whether there is a parent, which would have what is not \
                           recorded here";
            self.below = Below::Image(Arc::new(Unreadable {
                size,
                reason: Reason::Missing(VMDK, "descriptor", problem.to_owned()),
            }));
        }
    }

    fn finish(
        mut self,
        file: Arc<dyn BlockSource>,
        parts: Vec<Part>,
        create_type: ImageName,
        descriptor: &Descriptor,
        walk: Option<Walk>,
    ) -> Result<Box<dyn Image>> {
        let mut extents = Vec::new();
        let mut sources = Vec::new();
        let mut files = Vec::new();
        let mut tables = Vec::new();
        for (number, part) in parts.into_iter().enumerate() {
            self.warnings.extend(part.warnings);
            if part.file.is_none() {
                tables.extend(part.tables);
            }
            files.extend(part.file.map(|file| FileInfo {
                node: format!("extents.{number}"),
                ..file
            }));
            extents.push(part.info);
            sources.push(part.source);
        }
        let parts = Concat::new(sources)?;
        let mut end = 0;
        let ends = extents.iter().map(|extent: &ExtentInfo| {
            end += extent.size;
            (end, extent.name.clone())
        });
        let ends = ends.collect();
        let mut data = Value::map();
        if let Some(cid) = descriptor.cid {
            data.insert("cid", cid);
        }
        data.insert("parent-cid", descriptor.parent_cid);
        let adapter = descriptor.value("ddb.adaptertype");
        let properties = properties::of(&create_type, adapter);
        data.insert("create-type", create_type);
        let values: Vec<Value> = extents.iter().map(ExtentInfo::value).collect();
        data.insert("extents", values);
        let mut info = ImageInfo {
            virtual_size: parts.size(),
            cluster_size: common_grain(&extents),
            warnings: self.warnings,
            files,
            specific: Some(data),
            properties,
            ..ImageInfo::default()
        };
        info.ids.content_id = descriptor.cid;
        let disk = VmdkDisk {
            parts,
            extents: ends,
            walk,
            tables,
        };
        let image = DiskImage::new(VMDK, file, disk, info);
        let image = image.with_references(self.references);
        Ok(Box::new(image.with_backing(self.backing)))
    }
}

impl Deref for VmdkDisk {
    type Target = Concat;

    fn deref(&self) -> &Concat {
        &self.parts
    }
}

forward_source!([] VmdkDisk);

impl Disk for VmdkDisk {
    fn tables(&self) -> Vec<(u64, u64)> {
        self.tables.clone()
    }

    fn walks(&self) -> bool {
        self.walk.is_some()
    }

    fn arrived(
        &self,
        source: Arc<dyn BlockSource>,
        request: &Request<'_>,
    ) -> Result<Option<Box<dyn Image>>> {
        let walk = self.walk.as_ref();
        walk.map(|walk| open(walk.arrived(source)?, request))
            .transpose()
    }

    fn file_of(&self, guest: u64) -> Option<&ImageName> {
        let index = self.extents.partition_point(|(end, _)| *end <= guest);
        self.extents.get(index)?.1.as_ref()
    }
}

/// The size of a disk whose only extent the file is, in bytes.
pub(super) fn declared_size(source: &dyn BlockSource) -> Result<Option<u64>> {
    let mut magic = [0; 4];
    source.read_at(&mut magic, 0)?;
    let sectors = match magic {
        SPARSE_MAGIC => sparse::read_header(source)?.capacity,
        COWD_MAGIC => sparse::read_cowd_header(source)?.num_sectors.into(),
        _ => return Ok(None),
    };
    // An extent of no sectors is the wrapping of a descriptor.
    Ok((sectors > 0).then_some(sectors * SECTOR))
}

/// The extent that is the image's own file.
fn own_extent(size: u64) -> ExtentInfo {
    ExtentInfo {
        name: None,
        kind: String::new(),
        size,
        grain: None,
        compressed: false,
        known: true,
    }
}

/// The size of a grain, if all extents are of one kind and have some.
fn common_grain(extents: &[ExtentInfo]) -> Option<u64> {
    let first = extents.first()?;
    let like_first =
        |e: &ExtentInfo| e.known && (e.grain, e.compressed) == (first.grain, first.compressed);
    first.grain.filter(|_| extents.iter().all(like_first))
}

/// Fails if the parent was changed since its child was made: what the child does not record is then
/// no longer what it was.
fn check_parent(descriptor: &Descriptor, parent: &dyn Image) -> Result<()> {
    let expected = descriptor.parent_cid;
    let found = parent.info().ids.content_id;
    if !descriptor.compares_cid() || found == Some(expected) {
        return Ok(());
    }
    let found = found.map_or("none".to_owned(), |cid| format!("{cid:08x}"));
    let expected = match expected {
        NO_CID => "that it has no parent".to_owned(),
        cid => format!("CID {cid:08x}"),
    };
    Err(malformed(format!(
        "expects {expected}, and the parent that it names has CID {found}: it was changed, or is \
         another disk"
    )))
}

fn extent_alone(feature: &str) -> Error {
    Error::unsupported(
        VMDK,
        feature.to_owned(),
        "open the descriptor that names it",
    )
}

/// The most bytes of a file that is a descriptor, whatever is allowed: of so much of a stream that has no end
/// yet the start is kept. 8,192 extents need half of it.
const MAX_LEN: u64 = 1 << 20;

/// The text of a file that is a descriptor and nothing else.
pub(super) fn read_text_file(source: &dyn BlockSource, limits: &Limits) -> Result<Vec<u8>> {
    let size = source.size();
    let mut text = vec![0; usize::try_from(size.min(Probe::HEAD as u64)).unwrap_or(0)];
    source.read_exact_at(&mut text, 0)?;
    if descriptor::recognize(&text).is_none() {
        return Err(Error::malformed(
            VMDK,
            "file",
            0,
            "has neither a header nor a descriptor",
        ));
    }
    limits.check_descriptor("the descriptor", size)?;
    if size > MAX_LEN {
        let feature = format!("a descriptor of more than {MAX_LEN} bytes");
        return Err(unsupported(feature));
    }
    text.resize(usize::try_from(size).unwrap_or(0), 0);
    source.read_exact_at(&mut text, 0)?;
    Ok(text)
}

/// The readable rest of a damaged descriptor.
fn left_of_text(
    source: &dyn BlockSource,
    header: &SparseExtentHeader,
    limits: &Limits,
) -> Result<Vec<u8>> {
    let at = header.descriptor_offset.saturating_mul(SECTOR);
    let len = header.descriptor_size.saturating_mul(SECTOR);
    let len = len.min(source.size().saturating_sub(at));
    limits.check_descriptor("the descriptor", len)?;
    let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
    match read_what_is_left(source, &mut text, at) {
        Ok(_) => Ok(text),
        Err(_) => Ok(Vec::new()),
    }
}

/// The text of the descriptor in a sparse extent; empty if there is none.
pub(super) fn embedded_text(
    source: &dyn BlockSource,
    header: &SparseExtentHeader,
    limits: &Limits,
) -> Result<Vec<u8>> {
    if header.descriptor_offset == 0 || header.descriptor_size == 0 {
        return Ok(Vec::new());
    }
    let range = header
        .descriptor_offset
        .checked_mul(SECTOR)
        .zip(header.descriptor_size.checked_mul(SECTOR));
    let inside =
        |(at, len): &(u64, u64)| at.checked_add(*len).is_some_and(|end| end <= source.size());
    let Some((at, len)) = range.filter(inside) else {
        let problem = "and its size lie past the end of the file";
        return Err(SparseExtentHeader::malformed(
            0,
            "descriptor_offset",
            problem,
        ));
    };
    limits.check_descriptor("the descriptor", len)?;
    let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
    source.read_exact_at(&mut text, at)?;
    Ok(text)
}
