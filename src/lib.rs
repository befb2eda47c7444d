//! placeholder
mod codec;
pub mod convert;
mod detect;
mod error;
mod extent;
mod format_id;
pub mod formats;
pub mod image;
mod limits;
mod name;
mod ondisk;
mod open;
mod reference;
mod source;
pub mod storage;
mod target;

pub use detect::{Detected, detect};
pub use error::{Error, Result};
pub use extent::{Extent, ExtentKind};
pub use format_id::FormatId;
pub use image::{Format, Image, ImageInfo, ImageWriter};
pub use limits::Limits;
pub use name::{Escaped, ImageName};
pub use open::{OpenOptions, PathPolicy, PathResolver};
pub use reference::{
    DenyReferences, DetachReferences, Reference, ReferenceKind, Resolved, Resolver,
};
pub use source::{BlockSource, BlockSourceExt, Extents, FileIdentity};
pub use target::{BlockTarget, Zeroes};
