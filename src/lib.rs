//! Virtual-machine disk images: open, detect, describe and convert them, without trusting a byte.
//!
//! Start with [`OpenOptions`], which opens an image; [`inspect::Report`] describes one,
//! [`convert::ConvertOptions`] writes one, [`compare::CompareOptions`] compares two,
//! [`extents::Entries`] lists its extents and [`measure::MeasureOptions`] the size of a new one;
//! [`check::Checked`] finds damage, and [`check::Repair`] repairs it.
//! [`stream::StreamInspector`] describes an image while it arrives, [`StreamSource`] is one to be converted
//! meanwhile, and [`salvage::Salvage`] reads what is left of a damaged one. The [`guide`] has a page for each
//! task.
//!
//! Every layer is a [`BlockSource`]: a file, a slice of one, a qcow2 image, its backing file. A format
//! is a function from [`BlockSource`] to [`BlockSource`]. Imports run downwards only: a format never
//! opens a file, starts a thread or prints, storage knows no format, and the verbs know none by name.
//!
//! ```text
//!    img <verb>  img-info  img-convert  your service              examples/ and users
//!         \         |          |          /
//!    inspect convert check compare extents measure salvage       verbs: work on any image
//!         |         |
//!       detect ── open (limits, reference policy, chain, gate)   the one door into an image
//!         |  \
//!         |   content/  partitions filesystems iso udf efi       contents of a disk, not mounted
//!         |
//!       formats/  raw qcow2 vmdk vhd vhdx vdi qcow qed … ova     one folder per format
//!         |          \
//!         |           map/  read walk · map/edit/  codec/        tables to reads; compression, by pools
//!         |             |
//!       image/  Format · Request · DiskImage · ImageWriter       the contract of a format
//!         |
//!       ondisk/  field tables, typed entries, bounds-checked     pure functions of bytes
//!         |
//!       storage/  file memory slice concat … incoming            bytes beneath the formats
//!         |
//!       BlockSource · BlockTarget · Extent · Reference · Error   the vocabulary of every layer; digest/
//! ```
//!
//! # Trust
//!
//! An image is hostile until shown otherwise. Names inside it are inert: the caller's
//! [`Resolver`] or [`PathPolicy`] decides what they may open, and the default is nothing. [`Limits`] hold for
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
