//! Parallels' disks: the expandable image, with both magics of version 2, and the bundle of such images
//! and plain ones that a `DiskDescriptor.xml` describes (QEMU, `docs/interop/parallels.rst` and
//! `prl-xml.rst`). Nothing is written.

mod bundle;
mod check;
mod descriptor;
mod expandable;
mod extension;
mod header;
mod map;
mod open;

use std::sync::Arc;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{
    Capabilities, CheckFn, Format, Image, Probe, Request, SafetyCheck, Verdict, disagrees,
};
use crate::limits::Limits;
use crate::source::BlockSource;

/// `parallels`.
pub const PARALLELS: FormatId = FormatId::new("parallels");

/// The format of Parallels.
#[derive(Debug, Clone, Copy)]
pub struct Parallels;

impl Format for Parallels {
    fn id(&self) -> FormatId {
        PARALLELS
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["hds", "hdd"]
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::SNAPSHOTS
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        if window.has(0, &header::MAGIC) {
            Verdict::found("WithoutFreeSpace", 0)
        } else if window.has(0, &header::MAGIC_EXT) {
            Verdict::found("WithouFreSpacExt", 0)
        } else if descriptor::recognize(window.head) {
            Verdict::found("Parallels_disk_image", 0)
        } else {
            Verdict::Reject
        }
    }

    fn excludes(&self, head: &[u8]) -> bool {
        disagrees(head, 0, &header::MAGIC) && disagrees(head, 0, &header::MAGIC_EXT)
    }

    fn declared_size(&self, source: &dyn BlockSource) -> Result<Option<u64>> {
        Ok(Some(header::Header::read(source)?.size))
    }

    fn safety(&self, source: &dyn BlockSource, _: &Limits) -> Result<Vec<SafetyCheck>> {
        Ok(vec![SafetyCheck::version(header::Header::read(source))?])
    }

    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        open::open(source, request)
    }

    fn checker(&self) -> Option<CheckFn> {
        Some(check::check)
    }
}
