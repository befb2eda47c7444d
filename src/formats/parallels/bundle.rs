//! A disk of several files: split into parts, with a state over another in each of them.

use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::{DiskImage, FileInfo, Image, ImageInfo, Request, SnapshotSelector, Value};
use crate::map::{Below, Mapped, Reason, Unreadable};
use crate::name::ImageName;
use crate::reference::{Reference, ReferenceKind};
use crate::source::{BlockSource, BlockSourceExt, FileIdentity};
use crate::storage::{Concat, Slice};

use super::PARALLELS;
use super::descriptor::{Descriptor, ImageEntry, ImageKind, Storage};
use super::expandable::Expandable;

/// Opens the disk whose descriptor is in `file`.
pub(super) fn open(file: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let limits = request.limits;
    let descriptor = Descriptor::read(&file, limits)?;
    limits.check_virtual_size(descriptor.size)?;
    let top = chosen(&descriptor, request.snapshot)?;
    let chain = descriptor.chain(top, limits)?;
    let mut parts = Parts {
        request,
        references: Vec::new(),
        files: Vec::new(),
        taken: Vec::new(),
        info: ImageInfo::default(),
    };
    let mut sources = Vec::new();
    for storage in &descriptor.storages {
        sources.push(parts.storage(storage, &chain)?);
    }
    let disk = Concat::new(sources)?;
    let shots = descriptor.shots.iter().map(|shot| {
        let mut value = Value::map();
        value.insert("id", shot.guid.braced().to_string());
        value.insert("current", shot.guid == descriptor.top());
        value
    });
    let mut details = Value::map();
    details.insert("storages", descriptor.storages.len() as u64);
    details.insert("snapshots", shots.collect::<Vec<_>>());
    let info = ImageInfo {
        virtual_size: descriptor.size,
        files: parts.files,
        unknown_to_qemu: true,
        details: Some(details),
        ..parts.info
    };
    let image = DiskImage::new(PARALLELS, file, disk, info);
    Ok(Box::new(image.with_references(parts.references)))
}

/// Hands out each expandable image of the disk whose descriptor is in `file`, of every state.
pub(super) fn each_file(
    file: &Arc<dyn BlockSource>,
    request: &Request<'_>,
    mut each: impl FnMut(&Arc<dyn BlockSource>) -> Result<()>,
) -> Result<()> {
    let descriptor = Descriptor::read(file, request.limits)?;
    for storage in &descriptor.storages {
        for entry in &storage.images {
            if entry.kind != ImageKind::Compressed {
                continue;
            }
            let reference = Reference::new(ReferenceKind::ExtentFile, entry.file.clone());
            let Some(image) = request.opener.open_bytes(&reference)? else {
                let reference = Box::new(reference);
                return Err(Error::Detached { reference });
            };
            each(&image)?;
        }
    }
    Ok(())
}

/// The state that the caller asked for.
fn chosen(descriptor: &Descriptor, snapshot: Option<&SnapshotSelector>) -> Result<Uuid> {
    let text = match snapshot {
        None => return Ok(descriptor.top()),
        Some(SnapshotSelector::Id(text) | SnapshotSelector::Any(text)) => text,
        Some(SnapshotSelector::Name(_)) => {
            return Err(Error::invalid(
                "the snapshots of a Parallels disk have no names, only ids",
            ));
        }
    };
    let guid = Uuid::try_parse(text.trim());
    let known = |guid: &Uuid| descriptor.shots.iter().any(|shot| shot.guid == *guid);
    guid.ok().filter(known).ok_or_else(|| {
        let text = ImageName::from(text.as_str());
        Error::invalid(format!("the disk has no snapshot {}", text.quoted()))
    })
}

/// The request for the parts of a disk, and what opening them found.
struct Parts<'a> {
    request: &'a Request<'a>,
    references: Vec<Reference>,
    files: Vec<FileInfo>,
    /// The files that are in use: none can be two images.
    taken: Vec<FileIdentity>,
    info: ImageInfo,
}

impl Parts<'_> {
    /// The images of one part, the last of `chain` at the bottom, as one source.
    fn storage(&mut self, storage: &Storage, chain: &[Uuid]) -> Result<Arc<dyn BlockSource>> {
        let mut below = Below::Nothing;
        for guid in chain.iter().rev() {
            let source = self.image(storage, storage.image(*guid)?, below)?;
            below = Below::Image(source);
        }
        match below {
            Below::Image(source) => Ok(source),
            _ => Err(Error::malformed(
                PARALLELS,
                "DiskDescriptor.xml",
                None,
                "has a storage without images",
            )),
        }
    }

    /// One image of a part over what is below it.
    fn image(
        &mut self,
        storage: &Storage,
        entry: &ImageEntry,
        below: Below,
    ) -> Result<Arc<dyn BlockSource>> {
        let is_root = matches!(below, Below::Nothing);
        if entry.kind == ImageKind::Plain && !is_root {
            return Err(malformed(entry, "is a plain image over another one"));
        }
        if entry.file.is_empty() {
            return Err(malformed(entry, "has no name"));
        }
        let reference = Reference::new(ReferenceKind::ExtentFile, entry.file.clone());
        self.references.push(reference.clone());
        let Some(file) = self.request.opener.open_bytes(&reference)? else {
            return Ok(Arc::new(Unreadable {
                size: storage.size,
                reason: Reason::Detached(reference),
            }));
        };
        self.take(entry, &file)?;
        match entry.kind {
            ImageKind::Plain => whole(entry, storage, file),
            ImageKind::Compressed => self.expandable(entry, storage, file, below),
        }
    }

    fn expandable(
        &mut self,
        entry: &ImageEntry,
        storage: &Storage,
        file: Arc<dyn BlockSource>,
        below: Below,
    ) -> Result<Arc<dyn BlockSource>> {
        let Expandable { map, info } = Expandable::read(&file, self.request)?;
        let unit = info.cluster_size.unwrap_or(0);
        if storage.block_size != 0 && storage.block_size != unit {
            let problem = format!(
                "has clusters of {unit} bytes, and the descriptor says {}",
                storage.block_size
            );
            return Err(malformed(entry, &problem));
        }
        let name = entry.file.escaped();
        let warnings = info.warnings.iter();
        let warnings = warnings.map(|warning| format!("{name}: {warning}"));
        self.info.warnings.extend(warnings);
        self.info.cluster_size = Some(unit);
        self.info.dirty |= info.dirty;
        let mapped = Mapped::new(map, file, below, info.virtual_size);
        whole(entry, storage, Arc::new(mapped))
    }

    /// Notes that a file is in use.
    fn take(&mut self, entry: &ImageEntry, file: &dyn BlockSource) -> Result<()> {
        let node = format!("images.{}", self.files.len());
        self.files
            .push(FileInfo::new(node, entry.file.clone(), file));
        let Some(identity) = file.identity() else {
            return Ok(());
        };
        if self.taken.contains(&identity) {
            return Err(malformed(entry, "is the file of two images"));
        }
        self.taken.push(identity);
        Ok(())
    }
}

/// As much of an image as its part of the disk has. One that is larger has been rounded up.
fn whole(
    entry: &ImageEntry,
    storage: &Storage,
    source: Arc<dyn BlockSource>,
) -> Result<Arc<dyn BlockSource>> {
    let (have, need) = (source.size(), storage.size);
    if have < need {
        let problem = format!("has {have} bytes of its part of the disk, which has {need}");
        return Err(malformed(entry, &problem));
    }
    match have == need {
        true => Ok(source),
        false => Ok(Arc::new(Slice::new(source, 0, need)?)),
    }
}

fn malformed(entry: &ImageEntry, problem: &str) -> Error {
    let problem = format!("the file {} {problem}", entry.file.quoted());
    Error::malformed(PARALLELS, "DiskDescriptor.xml", None, problem)
}
