//! What an image format is: the contract between `formats/` and everything above it.
//!
//! A format is a function from a [`BlockSource`] to a [`BlockSource`]. It parses bytes and never
//! opens a file, starts a thread or prints: what it needs from outside it asks of its [`Opener`].

use std::fmt::Debug;
use std::sync::Arc;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::limits::Limits;
use crate::reference::Reference;
use crate::source::BlockSource;

mod create;
mod info;
mod probe;
mod value;
mod writer;

pub use create::{Backing, CreateOptions, OptionSet, parse_options, parse_size};
pub use info::{BitmapInfo, FileInfo, ImageIds, ImageInfo, SnapshotInfo};
pub(crate) use probe::Window;
pub use probe::{Evidence, Probe, Verdict};
pub use value::Value;
pub use writer::{
    Encoder, Finish, Form, ImageWriter, OutputFile, Part, Payload, Placed, Write, WriteRun,
    WriteShape,
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

    /// Whether the file that `window` shows is of this format. A pure function of the window.
    fn probe(&self, window: &Probe<'_>) -> Verdict;

    /// Opens an image of this format that lies in `source`.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) if it is none or a damaged one,
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a feature that is not known,
    /// [`Error::LimitExceeded`](crate::Error::LimitExceeded), and what `opener` and `source` fail with.
    fn open(&self, source: Arc<dyn BlockSource>, opener: &dyn Opener) -> Result<Box<dyn Image>>;

    /// Lays out a new image of this format.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) for options that the format does not
    /// have or that exclude each other, [`Error::Unsupported`](crate::Error::Unsupported) where
    /// this build cannot write it.
    fn create(&self, options: &CreateOptions) -> Result<Box<dyn ImageWriter>>;
}

/// What a format may ask of whoever opens one of its images.
pub trait Opener: Debug {
    /// What the image may demand.
    fn limits(&self) -> &Limits;

    /// Which internal snapshot to open in place of the active state.
    fn snapshot(&self) -> Option<&SnapshotSelector>;

    /// Opens the image that `reference` means, in the format that the image or the caller declares:
    /// its content is never probed. `None` if the caller's resolver left it closed: reading what
    /// lives in it has then to fail with [`Error::Detached`](crate::Error::Detached).
    ///
    /// # Errors
    /// What the caller's [`Resolver`](crate::Resolver) refuses with,
    /// [`Error::LimitExceeded`](crate::Error::LimitExceeded) where the chain is too long,
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) where it comes back to itself.
    fn open_image(&self, reference: &Reference) -> Result<Option<Arc<dyn Image>>>;

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
