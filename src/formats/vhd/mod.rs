//! VHD, which QEMU calls `vpc` (Microsoft, *Virtual Hard Disk Image Format Specification*, 1.0).
//!
//! ```text
//!   fixed                 the disk │ footer
//!   dynamic, differencing  footer's copy │ header │ parent locators │ BAT │ blocks … │ footer
//!   a block               bitmap of its sectors │ its sectors
//! ```

mod arriving;
mod check;
mod footer;
mod geometry;
mod header;
mod locator;
mod map;
mod open;
mod proof;
mod repair;
mod write;

use std::sync::Arc;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{
    CheckFn, CreateFn, Format, Image, Probe, RepairFn, Request, SafetyCheck, Scope, Verdict,
};
use crate::limits::Limits;
use crate::source::BlockSource;

pub use footer::DiskType;
pub use geometry::Geometry;
pub use write::{Subformat, VhdOptions};

/// `vhd`.
pub const VHD: FormatId = FormatId::new("vhd");

/// Bytes of a sector, whatever the disk: the format counts in these.
const SECTOR: u64 = 512;

/// The format VHD.
#[derive(Debug, Clone, Copy)]
pub struct Vhd;

impl Format for Vhd {
    fn id(&self) -> FormatId {
        VHD
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["vpc"]
    }

    fn qemu_name(&self) -> &'static str {
        "vpc"
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        footer::probe(window)
    }

    fn declared_size(&self, source: &dyn BlockSource) -> Result<Option<u64>> {
        footer::declared_size(source)
    }

    fn safety(&self, source: &dyn BlockSource, _: &Limits) -> Result<Vec<SafetyCheck>> {
        footer::safety(source)
    }

    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        match request.arriving {
            true => arriving::open(source, request),
            false => open::open(source, request),
        }
    }

    fn checker(&self) -> Option<CheckFn> {
        Some(|source, request| check::check(source, request))
    }

    fn repairs(&self) -> &'static [(Scope, RepairFn)] {
        &[(Scope::All, repair::repair)]
    }

    fn creator(&self) -> Option<CreateFn> {
        Some(|options| VhdOptions::parse(options)?.writer(options.virtual_size))
    }
}
