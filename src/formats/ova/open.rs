//! Opening one of the disks.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::image::{Disk, DiskImage, Image, ImageInfo, Request};
use crate::name::ImageName;
use crate::packed::PackedSource;
use crate::reference::{Reference, ReferenceKind};
use crate::resolver::DenyReferences;
use crate::source::{BlockSource, Salvageable, Stored, check_extent};

use super::appliance::{Appliance, Chosen, unpacked, whole_file};
use super::describe::details;
use super::ovf::{PackageDisk, PackageFile};
use super::{OVA, archive};

/// An appliance while it is opened. One that is only described may have no disk that is open.
#[derive(Debug)]
struct Opening {
    disk: State,
    references: Vec<Reference>,
    info: ImageInfo,
}

/// The disk that is read.
#[derive(Debug)]
struct OvaDisk {
    state: State,
    size: u64,
}

#[derive(Debug)]
enum State {
    Open(Arc<dyn Image>),
    /// The caller left its file closed.
    Detached(Box<Reference>),
    /// None, and why: only where the appliance is to be described.
    None(String),
}

/// Opens the disk that `request` means of the appliance in `source`.
///
/// # Errors
/// As [`Format::open`](crate::Format::open), and [`Error::DiskNotChosen`] if there are several disks
/// and none was named.
pub(super) fn open(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let mut opening = Opening {
        disk: State::None(String::new()),
        references: Vec::new(),
        info: ImageInfo {
            unknown_to_qemu: true,
            ..ImageInfo::default()
        },
    };
    opening.read(&source, request)?;
    let Opening {
        disk: state,
        references,
        info,
    } = opening;
    let size = info.virtual_size;
    let image = DiskImage::new(OVA, source, OvaDisk { state, size }, info);
    Ok(Box::new(image.with_references(references)))
}

impl Opening {
    fn read(&mut self, source: &Arc<dyn BlockSource>, request: &Request<'_>) -> Result<()> {
        let opened = Appliance::open(Arc::clone(source), request.limits);
        let Some(appliance) = self.told(request, opened)? else {
            return Ok(());
        };
        self.info.warnings = appliance.package().warnings.clone();
        self.info.details = Some(details(&appliance));
        self.told(request, appliance.check_whole())?;
        if request.verifies {
            let verified = appliance.verify().and_then(|verified| {
                let chosen = appliance.choose(request.disk)?.file()?;
                covers(&verified.checked, chosen)
            });
            self.told(request, verified)?;
        }
        let opened = self.open_disk(&appliance, request);
        self.told(request, opened)?;
        Ok(())
    }

    /// Passes a value on; an error becomes a warning where the appliance is only described.
    fn told<T>(&mut self, request: &Request<'_>, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error @ Error::Io { .. }) => Err(error),
            Err(error) if request.describes => {
                let problem = error.chain();
                if !self.info.warnings.contains(&problem) {
                    self.info.warnings.push(problem.clone());
                }
                self.disk = State::None(problem);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn open_disk(&mut self, appliance: &Appliance, request: &Request<'_>) -> Result<()> {
        if appliance.archive().is_none() {
            let disks = appliance.package().disks.iter();
            let files = disks.filter_map(|disk| disk.file.as_ref());
            self.references = files.map(|file| reference(&file.href)).collect();
        }
        let chosen = appliance.choose(request.disk)?;
        let capacity = chosen.disk().and_then(|disk| disk.capacity);
        self.info.virtual_size = capacity.unwrap_or(0);
        let declared = chosen.disk().and_then(|disk| disk.format);
        let file = chosen.file()?;
        let image = match appliance.archive() {
            Some(archive) => {
                let bytes = appliance.file_bytes(file)?;
                let resolver = archive.resolver(&file.href);
                let image = request.opener.open_within(bytes, declared, resolver);
                Some(image.map_err(|error| about_disk(&file.href, error))?)
            }
            None => open_outside(file, declared, request)
                .map_err(|error| about_disk(&file.href, error))?,
        };
        let Some(image) = image else {
            self.disk = State::Detached(Box::new(reference(&file.href)));
            return Ok(());
        };
        self.compare(&chosen, image.as_ref());
        self.info.virtual_size = image.size();
        self.info.cluster_size = image.info().cluster_size;
        self.info.compressed = image.info().compressed;
        self.info.ids = image.info().ids.clone();
        self.info.encryption = image.info().encryption;
        self.info
            .warnings
            .extend(image.info().warnings.iter().cloned());
        self.disk = State::Open(image);
        Ok(())
    }

    /// Tells where the descriptor and the disk differ.
    fn compare(&mut self, chosen: &Chosen<'_>, image: &dyn Image) {
        let Some(disk) = chosen.disk() else { return };
        let warnings = &mut self.info.warnings;
        warnings.extend(other_size(disk, image.size()));
        warnings.extend(other_format(disk, image.format()));
    }
}

/// Difference between the sizes of the descriptor and of the disk, in words.
pub(super) fn other_size(disk: &PackageDisk, size: u64) -> Option<String> {
    let name = disk.file.as_ref().map_or(&disk.id, |file| &file.href);
    let capacity = disk.capacity.filter(|capacity| *capacity != size)?;
    Some(format!(
        "the descriptor says that {} has {capacity} bytes, and the disk has {size}",
        name.quoted()
    ))
}

/// Difference between the formats of the descriptor and of the disk.
pub(super) fn other_format(disk: &PackageDisk, format: FormatId) -> Option<String> {
    let name = disk.file.as_ref().map_or(&disk.id, |file| &file.href);
    let declared = disk.format.filter(|declared| *declared != format)?;
    Some(format!(
        "the descriptor says that {} is {declared}, and it is {format}",
        name.quoted()
    ))
}

/// Rewords an error about a disk that would read as one about the appliance's own format.
pub(super) fn about_disk(name: &ImageName, error: Error) -> Error {
    let name = name.quoted();
    let problem = match error {
        Error::Unrecognized => format!("has {name}, which is in no known format"),
        Error::Ambiguous { matches, .. } => {
            let all: Vec<&str> = matches.iter().map(|format| format.as_str()).collect();
            format!("has {name}, which is {} at once", all.join(" and "))
        }
        error => return error,
    };
    super::malformed("package", None, problem)
}

/// Fails if the manifest does not speak of the file that is to be read, or of one of its chunks.
fn covers(checked: &[ImageName], file: &PackageFile) -> Result<()> {
    let name = file.href.as_bytes();
    let covered = checked.iter().any(|checked| {
        let rest = checked.as_bytes().strip_prefix(name);
        checked == &file.href || (file.chunk_size.is_some() && rest.is_some())
    });
    if covered {
        return Ok(());
    }
    let problem = format!("does not speak of {}", file.href.quoted());
    Err(super::malformed("manifest", None, problem))
}

fn reference(href: &ImageName) -> Reference {
    Reference::new(ReferenceKind::PackageFile, href.clone())
}

/// Opens a disk beside a descriptor that stands alone, by the caller's leave; `None` if it was left
/// closed.
fn open_outside(
    file: &PackageFile,
    declared: Option<FormatId>,
    request: &Request<'_>,
) -> Result<Option<Arc<dyn Image>>> {
    if let Some(reference) = as_it_is(file, declared)? {
        return request.opener.open_image(&reference);
    }
    let Some(stored) = whole_outside(file, request)? else {
        return Ok(None);
    };
    let bytes = unpacked(file, stored, request.limits)?;
    // A file that was assembled or inflated has no files beside it.
    request
        .opener
        .open_within(bytes, declared, Arc::new(DenyReferences))
        .map(Some)
}

/// The name and format of a file beside a descriptor that is neither compressed nor in chunks.
pub(super) fn as_it_is(
    file: &PackageFile,
    declared: Option<FormatId>,
) -> Result<Option<Reference>> {
    if archive::leads_outside(file.href.as_bytes()) {
        return Err(archive::refused(&file.href));
    }
    let whole = file.chunk_size.is_none() && file.compression.is_none();
    if !whole || file.href.as_bytes().ends_with(b".gz") {
        return Ok(None);
    }
    let format = declared.map(|format| ImageName::from(format.as_str()));
    let reference = reference(&file.href);
    Ok(Some(match format {
        Some(_) => reference.with_format(format),
        None => reference.with_format_in_name(),
    }))
}

/// The bytes of a file beside a descriptor as they are stored; `None` if it was left closed.
pub(super) fn whole_outside(
    file: &PackageFile,
    request: &Request<'_>,
) -> Result<Option<Arc<dyn BlockSource>>> {
    let open = |name: &ImageName| match request.opener.open_bytes(&reference(name))? {
        Some(bytes) => Ok(bytes),
        None => Err(Error::Detached {
            reference: Box::new(reference(name)),
        }),
    };
    let has = |name: &ImageName| match request.opener.open_bytes(&reference(name)) {
        Ok(bytes) => Ok(bytes.is_some()),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    };
    match whole_file(file, &open, &has) {
        Err(Error::Detached { .. }) => Ok(None),
        whole => whole.map(Some),
    }
}

impl OvaDisk {
    fn open_one(&self) -> Result<&Arc<dyn Image>> {
        match &self.state {
            State::Open(image) => Ok(image),
            State::Detached(reference) => Err(Error::Detached {
                reference: reference.clone(),
            }),
            State::None(problem) => Err(Error::invalid(problem.clone())),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl BlockSource for OvaDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        if offset >= self.size || buf.is_empty() {
            return Ok(0);
        }
        self.open_one()?.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        check_extent(offset, limit, self.size)?;
        self.open_one()?.extent_at(offset, limit)
    }

    fn block_size(&self) -> u64 {
        self.open_one().map_or(1, |disk| disk.block_size())
    }

    fn stored(&self) -> Option<&dyn Stored> {
        self.open_one().ok()?.stored()
    }

    fn packed(&self) -> Option<&dyn PackedSource> {
        self.open_one().ok()?.packed()
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        match self.open_one() {
            Ok(disk) => disk.salvage(),
            Err(_) => Some(self),
        }
    }
}

impl Salvageable for OvaDisk {
    fn lost_with(&self, offset: u64) -> u64 {
        self.size.saturating_sub(offset).max(1)
    }
}

impl Disk for OvaDisk {}
