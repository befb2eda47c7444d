//! QED, the QEMU Enhanced Disk format (QEMU, `docs/interop/qed_spec.rst`). It is read and not written.

mod header;
mod open;

use std::sync::Arc;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{CheckFn, Format, Image, Probe, Request, SafetyCheck, Verdict, disagrees};
use crate::limits::Limits;
use crate::source::BlockSource;

/// `qed`.
pub const QED: FormatId = FormatId::new("qed");

/// The format QED.
#[derive(Debug, Clone, Copy)]
pub struct Qed;

impl Format for Qed {
    fn id(&self) -> FormatId {
        QED
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        Verdict::found_if(window.has(0, b"QED\0"), "QED", 0)
    }

    fn excludes(&self, head: &[u8]) -> bool {
        disagrees(head, 0, b"QED\0")
    }

    fn declared_size(&self, source: &dyn BlockSource) -> Result<Option<u64>> {
        Ok(Some(header::Header::read(source)?.image_size))
    }

    fn safety(&self, source: &dyn BlockSource, _: &Limits) -> Result<Vec<SafetyCheck>> {
        header::safety(source)
    }

    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        open::open(source, request)
    }

    fn checker(&self) -> Option<CheckFn> {
        Some(|source, request| open::check(source, request.limits))
    }
}
