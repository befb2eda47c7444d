//! Contract of an image format: between `formats/` and the layers above it.
//!
//! A format is a function from a [`BlockSource`] to a [`BlockSource`]. It parses bytes and never
//! opens a file, starts a thread or prints: the [`Opener`] of its [`Request`] opens other files.

use std::fmt::Debug;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::limits::Limits;
use crate::name::ImageName;
use crate::reference::Reference;
use crate::resolver::Resolver;
use crate::source::BlockSource;

mod check;
mod create;
mod disk;
mod info;
mod probe;
mod safety;
mod value;
mod writer;

pub use check::{CheckedWithin, Clusters, Finding, FindingKind, Findings, Fixed, RepairFn, Scope};
pub use create::{Backing, CreateOptions, OptionSet, parse_options, parse_size};
pub use disk::{Disk, DiskImage};
pub(crate) use disk::{Parent, Sealed};
pub use info::{BitmapInfo, FileInfo, ImageIds, ImageInfo, SnapshotInfo};
pub use probe::{Evidence, Probe, Verdict};
pub(crate) use probe::{Window, disagrees};
pub use safety::{Outcome, SafetyCheck};
pub use value::Value;
pub use writer::{
    CopiedPart, Encoder, Finish, Form, ImageWriter, OutputFile, Part, Payload, Placed, Take, Write,
    WriteRun, WriteShape,
};

/// One image format.
pub trait Format: Debug + Send + Sync {
    /// Its name.
    fn id(&self) -> FormatId;

    /// Other names that people know it by.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// QEMU's name of it.
    fn qemu_name(&self) -> &'static str {
        self.id().into_str()
    }

    /// Extensions of the names of files of this format, besides its [id](Self::id) and
    /// [aliases](Self::aliases): only those that no other format has.
    fn extensions(&self) -> &'static [&'static str] {
        &[]
    }

    /// Error of a format of which this build has only the name and the signature.
    fn absent(&self) -> Option<Error> {
        None
    }

    /// Requests that an image of this format can honour: none by default.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Looks for the signature of this format in `window`. A pure function of the window.
    fn probe(&self, window: &Probe<'_>) -> Verdict;

    /// Returns true if no file that begins with `head` is of this format. A format whose signature
    /// is at the end always returns false.
    fn excludes(&self, head: &[u8]) -> bool {
        let _ = head;
        false
    }

    /// Virtual size in bytes by the header at the start of an image, which is known before the
    /// tables are. [`open`](Self::open) has the last word. `None` where the start does not have it.
    ///
    /// # Errors
    /// As [`open`](Self::open), of the header.
    fn declared_size(&self, source: &dyn BlockSource) -> Result<Option<u64>> {
        let _ = source;
        Ok(None)
    }

    /// Safety checks of this format beyond those on references, which every image has. They are
    /// made also for an image that [`open`](Self::open) refuses, so that the refusal has a name,
    /// and read no more than headers.
    ///
    /// # Errors
    /// Errors of reading, and structures that are damaged.
    fn safety(&self, source: &dyn BlockSource, limits: &Limits) -> Result<Vec<SafetyCheck>> {
        let _ = (source, limits);
        Ok(Vec::new())
    }

    /// Opens an image of this format that lies in `source`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is damaged or of another format, [`Error::Unsupported`] for a
    /// feature that is not known, [`Error::LimitExceeded`], and those of `request` and `source`.
    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>>;

    /// The check of this format; `None` if it has nothing to check, as raw.
    fn checker(&self) -> Option<CheckFn> {
        None
    }

    /// The repairs of this format by their scopes, from the smallest on: none by default.
    fn repairs(&self) -> &'static [(Scope, RepairFn)] {
        &[]
    }

    /// The layout of new images of this format; `None` if this build only reads it.
    fn creator(&self) -> Option<CreateFn> {
        None
    }
}

/// Checks the structures of the image in a file, without reading the guest's data, but for data
/// that has a checksum or is declared to be zeros.
///
/// It goes on after what it finds. Backing files are not checked: only the files that the image itself
/// consists of are opened.
///
/// It fails where the check cannot go on: with [`Error::Malformed`] for a header without which nothing
/// else can be found, [`Error::Unsupported`], [`Error::LimitExceeded`], and the errors of the file.
pub type CheckFn = fn(&Arc<dyn BlockSource>, &Request<'_>) -> Result<Findings>;

/// Lays out a new image. It fails with [`Error::InvalidInput`] for options that the format does not have
/// or that exclude each other, and with [`Error::Unsupported`] for what this build cannot write.
pub type CreateFn = fn(&CreateOptions) -> Result<Box<dyn ImageWriter>>;

impl dyn Format + '_ {
    /// Lays out a new image of this format.
    ///
    /// # Errors
    /// As [`CreateFn`], and [`Error::Unsupported`] for a format that is only read.
    pub fn create(&self, options: &CreateOptions) -> Result<Box<dyn ImageWriter>> {
        match self.creator() {
            Some(create) => create(options),
            None => {
                let only_read = || Error::not_written(self.id());
                Err(self.absent().unwrap_or_else(only_read))
            }
        }
    }
}

/// Requests that images of a format can honour; any other is refused by name when one is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Internal snapshots can be opened.
    pub snapshots: bool,
    /// An image holds several disks, of which one is opened.
    pub disks: bool,
    /// An image can have a manifest, the checksums of its files.
    pub manifest: bool,
}

impl Capabilities {
    /// Internal snapshots, and nothing else.
    pub(crate) const SNAPSHOTS: Self = Capabilities {
        snapshots: true,
        disks: false,
        manifest: false,
    };

    /// Several disks and a manifest.
    pub(crate) const PACKAGE: Self = Capabilities {
        snapshots: false,
        disks: true,
        manifest: true,
    };
}

/// A request to open an image, or to check one.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Request<'a> {
    /// Limits of what the image may demand.
    pub limits: &'a Limits,
    /// Internal snapshot to open in place of the active state.
    pub snapshot: Option<&'a SnapshotSelector>,
    /// Disk to open of an image that holds several.
    pub disk: Option<&'a DiskSelector>,
    /// Compare an image with checksums of all of its files with them.
    pub verifies: bool,
    /// Only describe the image: parts that cannot be read are then [warnings](ImageInfo::warnings),
    /// where that is possible.
    pub describes: bool,
    /// Open the image as far as it can be read, where damage costs a part of its disk only: see
    /// [`OpenOptions::salvage`](crate::OpenOptions::salvage).
    pub salvages: bool,
    /// The source is a stream that arrives. Its size is a bound only, reads of tables that are far ahead
    /// are [`Error::OutOfOrder`], and the image is [opened again](Image::arrived) at the end.
    pub arriving: bool,
    /// The way to other files and images.
    pub opener: &'a dyn Opener,
}

/// Files and images that a format may open while it opens one of its own.
pub trait Opener: Debug {
    /// Opens the image in `source`, which lies within this one, in the format that is detected, or
    /// else declared. `resolver` decides about its references.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] where a disk that is declared to be raw shows a
    /// format, [`Error::InvalidInput`] if it holds several disks itself,
    /// and as [`open_image`](Self::open_image).
    fn open_within(
        &self,
        source: Arc<dyn BlockSource>,
        declared: Option<FormatId>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Arc<dyn Image>>;

    /// [Checks](CheckFn) the image in `source`, as [`open_within`](Self::open_within) would open
    /// it. Backing files stay closed.
    ///
    /// # Errors
    /// As [`open_within`](Self::open_within), and as [`CheckFn`].
    fn check_within(
        &self,
        source: Arc<dyn BlockSource>,
        declared: Option<FormatId>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<CheckedWithin>;

    /// [Checks](CheckFn) the image that `reference` means, as [`open_image`](Self::open_image)
    /// would open it; `None` if the caller's resolver left it closed. Backing files stay closed.
    ///
    /// # Errors
    /// As [`open_image`](Self::open_image), and as [`CheckFn`].
    fn check_image(&self, reference: &Reference) -> Result<Option<CheckedWithin>>;

    /// Opens the image that `reference` means, in the format that the image or the caller declares:
    /// its content is never probed. `None` if the caller's resolver left it closed: reading data in
    /// it has then to fail with [`Error::Detached`].
    ///
    /// # Errors
    /// Refusals of the caller's [`Resolver`], [`Error::LimitExceeded`] where the chain is too long,
    /// [`Error::InvalidInput`] where it contains a file twice.
    fn open_image(&self, reference: &Reference) -> Result<Option<Arc<dyn Image>>> {
        let found = self.open_first(std::slice::from_ref(reference))?;
        Ok(found.map(|(_, image)| image))
    }

    /// As [`open_image`](Self::open_image), by the first of several names that leads to a file.
    /// Returns the index of that name, and the image.
    ///
    /// # Errors
    /// As [`open_image`](Self::open_image); where no name leads anywhere, the error about the first.
    fn open_first(&self, references: &[Reference]) -> Result<Option<(usize, Arc<dyn Image>)>>;

    /// Opens the file that `reference` means as plain bytes.
    ///
    /// # Errors
    /// As [`open_image`](Self::open_image).
    fn open_bytes(&self, reference: &Reference) -> Result<Option<Arc<dyn BlockSource>>>;
}

/// Open image: its guest's bytes, and its description.
pub trait Image: BlockSource {
    /// Its format.
    fn format(&self) -> FormatId;

    /// Description of the image.
    fn info(&self) -> &ImageInfo;

    /// The names inside it that mean other files, opened or not.
    fn references(&self) -> &[Reference];

    /// Name in the image of the file that holds its own bytes at `guest`, where that is another
    /// than the image's own file.
    fn file_of(&self, guest: u64) -> Option<&ImageName> {
        let _ = guest;
        None
    }

    /// Start and end in the file of each table that is read only when it is needed, and so has to
    /// be kept while the image arrives.
    fn tables(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    /// Returns true if the image finds its data by a walk through it, not by tables: bytes that it
    /// has read need not be kept.
    fn walks(&self) -> bool {
        false
    }

    /// Bytes of the file that follow the disk, for an image whose size is only known from the end
    /// of the file.
    fn trailer(&self) -> Option<u64> {
        None
    }

    /// The same image, opened with all of `source` at hand, where this one was
    /// opened while it was [arriving](Request::arriving). `None` if [`Format::open`] does that.
    ///
    /// # Errors
    /// As [`Format::open`].
    fn arrived(
        &self,
        source: Arc<dyn BlockSource>,
        request: &Request<'_>,
    ) -> Result<Option<Box<dyn Image>>> {
        let _ = (source, request);
        Ok(None)
    }

    /// Backing file of the image, if it has one that is open.
    fn backing(&self) -> Option<&Arc<dyn Image>> {
        None
    }
}

/// Names one internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotSelector {
    /// The one with this id.
    Id(String),
    /// The one with this name.
    Name(String),
    /// The one with this id, or else with this name.
    Any(String),
}

/// Names one disk of an image that holds several.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskSelector {
    /// The one with this place in the list, from 0.
    Index(usize),
    /// The one in the file of this name, or else with this id.
    Name(String),
}

impl From<&str> for DiskSelector {
    /// Digits alone are a place in the list.
    fn from(text: &str) -> Self {
        match text.parse() {
            Ok(index) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                DiskSelector::Index(index)
            }
            _ => DiskSelector::Name(text.to_owned()),
        }
    }
}

impl From<usize> for DiskSelector {
    fn from(index: usize) -> Self {
        DiskSelector::Index(index)
    }
}
