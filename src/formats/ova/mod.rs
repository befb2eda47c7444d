//! OVA and OVF (DSP0243, "Open Virtualization Format"): appliances, whose disks are read where they
//! are, in the archive.
//!
//! The image of an appliance is that of one of its disks: the only one, or the one that
//! [`OpenOptions::disk`](crate::OpenOptions::disk) names. [`Appliance`] lists them. Names in an
//! archive mean files of the same archive and nothing else; those in a descriptor that stands alone
//! are for the caller's [`Resolver`](crate::Resolver).
//!
//! An archive is compared with its manifest where
//! [`OpenOptions::verify_manifest`](crate::OpenOptions::verify_manifest) asks for it, and by a
//! [check](crate::check). Signatures are not verified.

mod appliance;
mod archive;
mod check;
mod describe;
#[cfg(feature = "zlib")]
mod gzip;
mod header;
mod manifest;
mod open;
mod ovf;
mod sparse;
mod tar;
mod write;

use std::borrow::Cow;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::image::{Capabilities, CheckFn, CreateFn, Format, Image, Probe, Request, Verdict};
use crate::source::BlockSource;

pub use appliance::{Appliance, Verification};
pub use ovf::{Attachment, Package, PackageDisk, PackageFile, VirtualSystem};
pub use write::{Controller, OvaOptions};

/// `ova`.
pub const OVA: FormatId = FormatId::new("ova");

/// The format OVA, and OVF descriptors on their own.
#[derive(Debug, Clone, Copy)]
pub struct Ova;

impl Format for Ova {
    fn id(&self) -> FormatId {
        OVA
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["ovf"]
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::PACKAGE
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        let ends_in_ovf = |name: &[u8]| {
            let end = name.len().checked_sub(4).and_then(|at| name.get(at..));
            end.is_some_and(|end| end.eq_ignore_ascii_case(b".ovf"))
        };
        if header::first_name(window.head).is_some_and(|name| ends_in_ovf(&name)) {
            return Verdict::found("an archive that begins with an OVF descriptor", 0);
        }
        Verdict::found_if(ovf::recognize(window.head), "an OVF envelope", 0)
    }

    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        open::open(source, request)
    }

    fn checker(&self) -> Option<CheckFn> {
        Some(check::check)
    }

    fn creator(&self) -> Option<CreateFn> {
        Some(|options| {
            OvaOptions::parse(options)?.writer(options.virtual_size, options.file_name.as_ref())
        })
    }
}

fn malformed(
    structure: &'static str,
    offset: impl Into<Option<u64>>,
    problem: impl Into<Cow<'static, str>>,
) -> Error {
    Error::malformed(OVA, structure, offset, problem)
}
