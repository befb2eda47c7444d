//! VDI, VirtualBox's own format (`VDICore.h` of VirtualBox; there is no other specification).
//!
//! ```text
//!   header │ block map │ blocks, each with the format's extra bytes before its data
//! ```

mod check;
mod header;
mod map;
mod open;
mod repair;
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

pub use header::ImageType;
pub use write::VdiOptions;

/// `vdi`.
pub const VDI: FormatId = FormatId::new("vdi");

/// The format VDI.
#[derive(Debug, Clone, Copy)]
pub struct Vdi;

impl Format for Vdi {
    fn id(&self) -> FormatId {
        VDI
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        Verdict::found_if(
            window.has(header::SIGNATURE_AT, &header::SIGNATURE.to_le_bytes()),
            "7f 10 da be",
            header::SIGNATURE_AT as u64,
        )
    }

    fn excludes(&self, head: &[u8]) -> bool {
        disagrees(head, header::SIGNATURE_AT, &header::SIGNATURE.to_le_bytes())
    }

    fn declared_size(&self, source: &dyn BlockSource) -> Result<Option<u64>> {
        Ok(Some(header::Header::read(source)?.disk_size))
    }

    fn safety(&self, source: &dyn BlockSource, _: &Limits) -> Result<Vec<SafetyCheck>> {
        Ok(vec![SafetyCheck::version(header::Header::read(source))?])
    }

    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        open::open(source, request)
    }

    fn checker(&self) -> Option<CheckFn> {
        Some(|source, request| check::check(source, request))
    }

    fn repairs(&self) -> &'static [(Scope, RepairFn)] {
        &[(Scope::All, repair::repair)]
    }

    fn creator(&self) -> Option<CreateFn> {
        Some(|options| VdiOptions::parse(options)?.writer(options.virtual_size))
    }
}
