//! Open images: a disk, and the facts about the file that it lies in.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::image::{Image, ImageInfo, Request};
use crate::name::ImageName;
use crate::packed::PackedSource;
use crate::reference::{Reference, ReferenceKind};
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Place, Salvageable, Stored};
use crate::storage::{Concat, Slice};

/// Guest bytes of an image, as its format finds them in files.
pub trait Disk: BlockSource {
    /// As [`Image::tables`].
    fn tables(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    /// As [`Image::walks`].
    fn walks(&self) -> bool {
        false
    }

    /// As [`Image::arrived`].
    ///
    /// # Errors
    /// As [`Image::arrived`].
    fn arrived(
        &self,
        source: Arc<dyn BlockSource>,
        request: &Request<'_>,
    ) -> Result<Option<Box<dyn Image>>> {
        let _ = (source, request);
        Ok(None)
    }

    /// As [`Image::file_of`], for a disk that lies in several files.
    fn file_of(&self, guest: u64) -> Option<&ImageName> {
        let _ = guest;
        None
    }
}

impl Disk for Arc<dyn BlockSource> {}
impl Disk for Concat {}
impl<S: BlockSource> Disk for Slice<S> {}

/// Open image of any format: the [`Disk`] that the format supplies, and the parts that every image
/// has.
#[derive(Debug)]
pub struct DiskImage<D> {
    format: FormatId,
    file: Arc<dyn BlockSource>,
    disk: D,
    info: ImageInfo,
    references: Vec<Reference>,
    backing: Option<Arc<dyn Image>>,
    sealed: Option<Sealed>,
    trailer: Option<u64>,
}

/// Reason why the guest's data cannot be read of an image that can be described.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sealed {
    /// It is encrypted by this scheme.
    Encrypted(&'static str),
    /// The structure at that byte of the file has a wrong checksum.
    Damaged(&'static str, u64),
}

impl<D: Disk> DiskImage<D> {
    /// The image of this format in `file`, whose guest sees `disk`.
    pub fn new(format: FormatId, file: Arc<dyn BlockSource>, disk: D, info: ImageInfo) -> Self {
        DiskImage {
            format,
            file,
            disk,
            info,
            references: Vec::new(),
            backing: None,
            sealed: None,
            trailer: None,
        }
    }

    /// Sets the names in the image that mean other files.
    #[must_use]
    pub fn with_references(mut self, references: Vec<Reference>) -> Self {
        self.references = references;
        self
    }

    /// Sets the backing file.
    #[must_use]
    pub fn with_backing(mut self, backing: Option<Arc<dyn Image>>) -> Self {
        self.backing = backing;
        self
    }

    /// Adds a backing file and its name.
    #[must_use]
    pub(crate) fn with_parent(mut self, parent: Parent) -> Self {
        self.references.extend(parent.reference);
        self.with_backing(parent.image)
    }

    /// Sets the number of bytes that follow the disk in a file whose end alone tells the disk's size.
    #[must_use]
    pub fn with_trailer(mut self, bytes: u64) -> Self {
        self.trailer = Some(bytes);
        self
    }

    /// Keeps the guest's data from being read.
    #[must_use]
    pub(crate) fn sealed(mut self, sealed: Option<Sealed>) -> Self {
        self.sealed = sealed;
        self
    }

    fn readable(&self) -> Result<&D> {
        match self.sealed {
            None => Ok(&self.disk),
            Some(Sealed::Encrypted(scheme)) => Err(Error::unsupported(
                self.format,
                format!("reading through {scheme} encryption"),
                "decrypt it with a tool that has the key",
            )),
            Some(Sealed::Damaged(structure, at)) => {
                let problem = "has a wrong checksum";
                Err(Error::malformed(self.format, structure, at, problem))
            }
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl<D: Disk> BlockSource for DiskImage<D> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.readable()?.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.readable()?.extent_at(offset, limit)
    }

    fn block_size(&self) -> u64 {
        self.disk.block_size()
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }

    fn packed(&self) -> Option<&dyn PackedSource> {
        self.readable().ok()?.packed()
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        self.disk.salvage()
    }
}

#[deny(clippy::missing_trait_methods)]
impl<D: Disk> Stored for DiskImage<D> {
    fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    fn uses_file(&self, file: FileIdentity) -> bool {
        let backing = self.backing.as_ref();
        self.file.uses_file(file)
            || self.disk.uses_file(file)
            || backing.is_some_and(|image| image.uses_file(file))
    }

    fn depth_of(&self, file: FileIdentity, format: FormatId) -> Option<u16> {
        if format == self.format && self.file.identity() == Some(file) {
            return Some(0);
        }
        let depth = self.backing.as_ref()?.depth_of(file, format)?;
        depth.checked_add(1)
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        self.readable().ok()?.place_of(offset, limit)
    }

    fn allocated_size(&self) -> Option<u64> {
        None
    }
}

#[deny(clippy::missing_trait_methods)]
impl<D: Disk> Image for DiskImage<D> {
    fn format(&self) -> FormatId {
        self.format
    }

    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn references(&self) -> &[Reference] {
        &self.references
    }

    fn file_of(&self, guest: u64) -> Option<&ImageName> {
        let mut references = self.references.iter();
        let data = references.find(|reference| reference.kind == ReferenceKind::DataFile);
        self.disk
            .file_of(guest)
            .or_else(|| data.map(|reference| &reference.name))
    }

    fn tables(&self) -> Vec<(u64, u64)> {
        self.disk.tables()
    }

    fn walks(&self) -> bool {
        self.disk.walks()
    }

    fn trailer(&self) -> Option<u64> {
        self.trailer
    }

    fn arrived(
        &self,
        source: Arc<dyn BlockSource>,
        request: &Request<'_>,
    ) -> Result<Option<Box<dyn Image>>> {
        self.disk.arrived(source, request)
    }

    fn backing(&self) -> Option<&Arc<dyn Image>> {
        self.backing.as_ref()
    }
}

/// Backing file of an image that is being opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parent {
    /// The name that led to a file, or else the first; `None` if the image has no backing file.
    pub(crate) reference: Option<Reference>,
    /// The image; `None` if the caller's resolver left it closed.
    pub(crate) image: Option<Arc<dyn Image>>,
}

impl Parent {
    /// A backing file of these names that is not opened.
    pub(crate) fn closed(names: &[Reference]) -> Self {
        Parent {
            reference: names.first().cloned(),
            image: None,
        }
    }
}

impl Request<'_> {
    /// Opens the backing file by the first of several names that leads to a file. `check` fails if the
    /// image there is another than the one that is meant.
    ///
    /// # Errors
    /// As [`Opener::open_first`](crate::image::Opener::open_first), and those of `check`.
    pub(crate) fn open_parent(
        &self,
        names: &[Reference],
        check: impl FnOnce(&dyn Image, &Reference) -> Result<()>,
    ) -> Result<Parent> {
        if names.is_empty() {
            return Ok(Parent::default());
        }
        let Some((index, image)) = self.opener.open_first(names)? else {
            return Ok(Parent::closed(names));
        };
        let reference = names.get(index).cloned();
        if let Some(reference) = &reference {
            check(&*image, reference)?;
        }
        let image = Some(image);
        Ok(Parent { reference, image })
    }
}
