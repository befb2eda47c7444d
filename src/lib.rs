//! Virtual-machine disk images: open, detect, describe and convert them, without trusting a byte.
//!
//! Start with [`OpenOptions`], which opens an image; [`inspect::Report`] describes one,
//! [`convert::ConvertOptions`] writes one, [`compare::CompareOptions`] compares two,
//! [`extents::Entries`] tells where the bytes are and [`measure::MeasureOptions`] how many there would be;
//! [`check::Checked`] says what is wrong with one, and [`check::Repair`] mends it.
//! [`stream::StreamInspector`] describes one while its bytes go by, [`StreamSource`] is one to be converted
//! meanwhile, and [`salvage::Salvage`] reads what is left of a damaged one. The [`guide`] has a page for each task.
//!
//! Every layer is a [`BlockSource`]: a file, a slice of one, a qcow2 image, its backing file. A format
//! is a function from [`BlockSource`] to [`BlockSource`]. Imports run downwards only: a format never
//! opens a file, starts a thread or prints, storage knows no format, and the verbs know none by name.
//!
//! ```text
//!    img-info img-convert img-check img-compare img-map …        examples/, and your service
//!         \         |         |          |         /
//!    inspect convert check compare extents measure salvage       verbs: work on any image
//!         |         |
//!       detect ── open (limits, reference policy, chain)         the one door into an image
//!         |  \
//!         |   content/  partitions filesystems iso udf efi       what a disk holds, not mounted
//!         |
//!       formats/  raw qcow2 vmdk vhd vhdx vdi qcow qed … ova     one folder per format
//!         |          \
//!         |           map/   codec/                              tables to reads; packing, by pools
//!         |             |
//!       image/  Format · Image · ImageWriter · Probe · Value     what a format is: the contract
//!         |
//!       ondisk/  field tables, bounds-checked reader             pure functions of bytes
//!         |
//!       storage/  file memory slice concat pending … incoming    bytes beneath the formats
//!         |
//!       BlockSource · BlockTarget · Extent · Reference · Error   the vocabulary everything speaks; digest/
//! ```
//!
//! # Trust
//!
//! An image is hostile until shown otherwise. Names inside it are inert: what they may open is for the
//! caller's [`Resolver`] or [`PathPolicy`] to say, and the default is nothing. [`Limits`] hold for
//! every open. Damage is an [`Error`], never zeros. Opening never writes, and an output is whole or
//! absent.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(feature = "formats", feature = "kinds")),
    allow(
        dead_code,
        unused_imports,
        unused_macros,
        reason = "some code serves only formats that are not built in"
    )
)]

pub mod check;
mod codec;
pub mod compare;
pub mod content;
pub mod convert;
mod detect;
pub mod digest;
mod error;
mod extent;
pub mod extents;
mod format_id;
pub mod formats;
pub mod guide;
mod hint;
pub mod image;
pub mod inspect;
mod limits;
mod lock;
mod map;
pub mod measure;
mod name;
mod ondisk;
mod open;
mod packed;
mod page_buf;
mod progress;
mod reference;
mod resolver;
pub mod salvage;
mod source;
pub mod storage;
pub mod stream;
mod target;
mod zero;

pub use detect::{Detected, detect};
pub use error::{Error, Result};
pub use extent::{Extent, ExtentKind};
pub use format_id::FormatId;
pub use hint::Hint;
pub use image::{Format, Image, ImageInfo, ImageWriter};
pub use limits::Limits;
pub use name::{Escaped, ImageName};
pub use open::{OpenOptions, PathPolicy, PathResolver, StreamImage, StreamSource};
pub use packed::{Codec, PackedSource, PackedUnit};
pub use reference::{Reference, ReferenceKind};
pub use resolver::{DenyReferences, DetachReferences, Resolved, Resolver};
pub use source::{
    BlockSource, BlockSourceExt, Extents, FileIdentity, Place, Salvageable, Stored, check_extent,
};
pub use target::{BlockTarget, Zeroes};

/// Compiles the code of the README with that of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
pub struct Readme;
