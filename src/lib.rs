//! Virtual-machine disk images: open, detect, describe and convert them, without trusting a byte.
//!
//! Start with [`OpenOptions`], which opens an image; [`inspect::Report`] describes one and
//! [`convert::ConvertOptions`] writes one.
//!
//! Every layer is a [`BlockSource`]: a file, a slice of one, a qcow2 image, its backing file. A format
//! is a function from [`BlockSource`] to [`BlockSource`]. Imports run downwards only: a format never
//! opens a file, starts a thread or prints, storage knows no format, and the verbs know none by name.
//!
//! ```text
//!    img-info   img-convert   your service                       examples/ and users
//!         \         |          /
//!       inspect ── convert                                       verbs: work on any image
//!         |         |
//!       detect ── open (limits, reference policy, chain)         the one door into an image
//!         |
//!       formats/  raw qcow2 vmdk vhd vhdx vdi qcow qed parallels one folder per format
//!         |          \
//!         |           map/   codec/                              tables to reads; packing, by pools
//!         |             |
//!       image/  Format · Image · ImageWriter · Probe · Value     what a format is: the contract
//!         |
//!       ondisk/  field tables, bounds-checked reader             pure functions of bytes
//!         |
//!       storage/  file memory slice concat pending seek          bytes beneath the formats
//!         |
//!       BlockSource · BlockTarget · Extent · Reference · Error   the vocabulary everything speaks
//! ```
//!
//! # Trust
//!
//! An image is hostile until shown otherwise. Names inside it are inert: what they may open is for the
//! caller's [`Resolver`] or [`PathPolicy`] to say, and the default is nothing. [`Limits`] hold for
//! every open. Damage is an [`Error`], never zeros. Opening never writes, and an output is whole or
//! absent.

mod codec;
pub mod convert;
mod detect;
mod error;
mod extent;
mod format_id;
pub mod formats;
pub mod image;
pub mod inspect;
mod limits;
mod map;
mod name;
mod ondisk;
mod open;
mod reference;
mod source;
pub mod storage;
mod target;
mod zero;

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
pub use source::{BlockSource, BlockSourceExt, Extents, FileIdentity, check_extent};
pub use target::{BlockTarget, Zeroes};

/// The code in the README is tested with that of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
pub struct Readme;
