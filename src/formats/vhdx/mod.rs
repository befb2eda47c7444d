//! VHDX, version 1: Hyper-V's disks (Microsoft, MS-VHDX, "Virtual Hard Disk v2 (VHDX) File Format").
//!
//! Fixed, dynamic and differencing images are read and written. A log that was not written back is
//! replayed in memory; the file is never written on opening.

mod bat;
mod check;
mod header;
mod locator;
mod log;
mod map;
mod metadata;
mod open;
mod region;
mod repair;
mod safety;
mod write;

use std::sync::Arc;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{
    CheckFn, CreateFn, Format, Image, Probe, RepairFn, Request, SafetyCheck, Scope, Verdict,
    disagrees,
};
use crate::limits::Limits;
use crate::source::BlockSource;

pub use write::{Guids, Subformat, VhdxOptions};

/// `vhdx`.
pub const VHDX: FormatId = FormatId::new("vhdx");

/// The format VHDX.
#[derive(Debug, Clone, Copy)]
pub struct Vhdx;

impl Format for Vhdx {
    fn id(&self) -> FormatId {
        VHDX
    }

    fn aliases(&self) -> &'static [&'static str] {
        // Extension of Hyper-V's differencing images.
        &["avhdx"]
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        Verdict::found_if(window.has(0, &header::FILE_SIGNATURE), "vhdxfile", 0)
    }

    fn excludes(&self, head: &[u8]) -> bool {
        disagrees(head, 0, &header::FILE_SIGNATURE)
    }

    fn safety(&self, source: &dyn BlockSource, limits: &Limits) -> Result<Vec<SafetyCheck>> {
        safety::checks(source, limits)
    }

    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        open::open(source, request)
    }

    fn checker(&self) -> Option<CheckFn> {
        Some(|source, request| check::check(source, request.limits))
    }

    fn repairs(&self) -> &'static [(Scope, RepairFn)] {
        &[(Scope::All, repair::repair)]
    }

    fn creator(&self) -> Option<CreateFn> {
        Some(|options| VhdxOptions::parse(options)?.writer(options.virtual_size))
    }
}
