//! What an image format is: the contract between `formats/` and everything above it.
//!
//! A format is a function from a [`BlockSource`] to a [`BlockSource`]. It parses bytes and never
//! opens a file, starts a thread or prints: what it needs from outside it asks of the [`Opener`] of its [`Request`].

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

    /// What QEMU calls it.
    fn qemu_name(&self) -> &'static str {
        self.id().into_str()
    }

    /// The endings by which people name files of this format, besides its [id](Self::id) and
    /// [aliases](Self::aliases): only those that no other format is named by.
    fn extensions(&self) -> &'static [&'static str] {
        &[]
    }

    /// The reason why this build has nothing of the format but its name and its signature.
    fn absent(&self) -> Option<Error> {
        None
    }

    /// Requests that an image of this format can honour: none by default.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Whether the file that `window` shows is of this format. A pure function of the window.
    fn probe(&self, window: &Probe<'_>) -> Verdict;

    /// Whether no file that begins with `head` is of this format, however it goes on. A format whose
    /// signature is at the end never says so.
    fn excludes(&self, head: &[u8]) -> bool {
        let _ = head;
        false
    }

    /// The virtual size in bytes that the header at the start of an image gives, which is known before
    /// the tables are. [`open`](Self::open) has the last word. `None` where the start does not tell.
    ///
    /// # Errors
    /// As [`open`](Self::open), of the header.
    fn declared_size(&self, source: &dyn BlockSource) -> Result<Option<u64>> {
        let _ = source;
        Ok(None)
    }

    /// What the image's own structures say about its safety: the checks that this format has beyond
    /// those on references, which every image has. It is asked also of what [`open`](Self::open)
    /// refuses, so that the refusal has a name, and reads no more than headers.
    ///
    /// # Errors
    /// What reading fails with, and structures that are damaged.
    fn safety(&self, source: &dyn BlockSource, limits: &Limits) -> Result<Vec<SafetyCheck>> {
        let _ = (source, limits);
        Ok(Vec::new())
    }

    /// Opens an image of this format that lies in `source`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is none or a damaged one,
    /// [`Error::Unsupported`] for a feature that is not known,
    /// [`Error::LimitExceeded`], and what `request` and `source` fail with.
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

/// Looks for everything that is wrong with the image in a file, without reading the guest's data, but
/// for what the image has a checksum of or says that it is zeros.
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
    /// Only describe the image: what of it cannot be read is then told by a
    /// [warning](ImageInfo::warnings), where that is possible.
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
    /// Opens the image in `source`, which lies within this one, in the format that it shows. Where it
    /// shows none, it is what this one declares. `resolver` decides about its references.
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

    /// [Checks](Format::checker) the image in `source`, as [`open_within`](Self::open_within) would open it.
    /// Backing files stay closed.
    ///
    /// # Errors
    /// As there, and as [`Format::checker`].
    fn check_within(
        &self,
        source: Arc<dyn BlockSource>,
        declared: Option<FormatId>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<CheckedWithin>;

    /// [Checks](Format::checker) the image that `reference` means, as [`open_image`](Self::open_image) would
    /// open it; `None` if the caller's resolver left it closed. Backing files stay closed.
    ///
    /// # Errors
    /// As there, and as [`Format::checker`].
    fn check_image(&self, reference: &Reference) -> Result<Option<CheckedWithin>>;

    /// Opens the image that `reference` means, in the format that the image or the caller declares:
    /// its content is never probed. `None` if the caller's resolver left it closed: reading what
    /// lives in it has then to fail with [`Error::Detached`].
    ///
    /// # Errors
    /// What the caller's [`Resolver`] refuses with,
    /// [`Error::LimitExceeded`] where the chain is too long,
    /// [`Error::InvalidInput`] where it comes back to itself.
    fn open_image(&self, reference: &Reference) -> Result<Option<Arc<dyn Image>>> {
        let found = self.open_first(std::slice::from_ref(reference))?;
        Ok(found.map(|(_, image)| image))
    }

    /// As [`open_image`](Self::open_image), by the first of several names that leads to a file: which one
    /// that is, and the image.
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

/// An open image: its guest's bytes, and what is known about it.
pub trait Image: BlockSource {
    /// Its format.
    fn format(&self) -> FormatId;

    /// What it says of itself.
    fn info(&self) -> &ImageInfo;

    /// The names inside it that mean other files, opened or not.
    fn references(&self) -> &[Reference];

    /// The name that the image has for the file in which its own bytes at `guest` lie, where that is
    /// another than the one that the image lies in.
    fn file_of(&self, guest: u64) -> Option<&ImageName> {
        let _ = guest;
        None
    }

    /// Where the tables are that its data is found by and that are read when they are needed, by where
    /// they start and end in the file: what has to be kept when it comes by.
    fn tables(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    /// Whether it finds its data by walking through it, not by tables: what it reads on its way has not to
    /// be kept for it.
    fn walks(&self) -> bool {
        false
    }

    /// Number of bytes of the file that follow the disk, for an image whose size only the end of the file
    /// tells.
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

    /// The image that shows through where this one records nothing, if it has one and it is open.
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
