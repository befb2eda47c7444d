//! qcow, the format before qcow2 (version 1 of the same magic). It is read and not written.
//!
//! There is no specification: QEMU's `block/qcow.c` is what the format is.

mod header;
mod open;

use std::sync::Arc;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{CheckFn, Format, Image, Probe, Request, SafetyCheck, Verdict, disagrees};
use crate::limits::Limits;
use crate::source::BlockSource;

/// `qcow`.
pub const QCOW: FormatId = FormatId::new("qcow");

/// The format qcow.
#[derive(Debug, Clone, Copy)]
pub struct Qcow;

impl Format for Qcow {
    fn id(&self) -> FormatId {
        QCOW
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["qcow1"]
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        Verdict::found_if(
            window.has(0, b"QFI\xfb\0\0\0\x01"),
            "QFI\\xfb, version 1",
            0,
        )
    }

    fn excludes(&self, head: &[u8]) -> bool {
        disagrees(head, 0, b"QFI\xfb\0\0\0\x01")
    }

    fn declared_size(&self, source: &dyn BlockSource) -> Result<Option<u64>> {
        Ok(Some(header::Header::read(source)?.size))
    }

    fn safety(&self, _: &dyn BlockSource, _: &Limits) -> Result<Vec<SafetyCheck>> {
        let reason = "version 1 of qcow was given up by everybody who wrote it";
        Ok(vec![SafetyCheck::failed("banned", reason)])
    }

    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        open::open(source, request)
    }

    fn checker(&self) -> Option<CheckFn> {
        Some(|source, request| open::check(source, request.limits))
    }
}
