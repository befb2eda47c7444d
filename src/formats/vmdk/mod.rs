//! VMDK (VMware, "Virtual Disk Format 5.0"): descriptors, flat, sparse and stream-optimized extents.

mod alias;
mod check;
mod descriptor;
mod entry;
mod extent;
mod header;
mod layout;
mod line;
mod map;
mod open;
mod properties;
mod repair;
mod safety;
mod scan;
mod sesparse;
mod sparse;
mod stream;
mod walk;
mod write;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::image::{
    CheckFn, CreateFn, Format, Image, Probe, RepairFn, Request, SafetyCheck, Scope, Verdict,
    disagrees,
};
use crate::limits::Limits;
use crate::source::BlockSource;

pub use write::{AdapterType, Subformat, VmdkOptions};

/// `vmdk`.
pub const VMDK: FormatId = FormatId::new("vmdk");

/// The format VMDK.
#[derive(Debug, Clone, Copy)]
pub struct Vmdk;

impl Format for Vmdk {
    fn id(&self) -> FormatId {
        VMDK
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        // A file that begins like a VMDK and is not a whole one is for opening to refuse.
        let magics: [(&[u8], &'static str); 4] = [
            (&header::SPARSE_MAGIC, "KDMV"),
            (&header::COWD_MAGIC, "COWD"),
            (&header::SE_SPARSE_MAGIC, "be ba fe ca 00 00 00 00"),
            (&header::CHANGE_TRACKING_MAGIC, "a2 72 19 f6"),
        ];
        for (magic, shown) in magics {
            if window.has(0, magic) {
                return Verdict::found(shown, 0);
            }
        }
        match descriptor::recognize(window.head) {
            Some(what) => Verdict::found(what, 0),
            None => Verdict::Reject,
        }
    }

    fn excludes(&self, head: &[u8]) -> bool {
        let magics: [&[u8]; 4] = [
            &header::SPARSE_MAGIC,
            &header::COWD_MAGIC,
            &header::SE_SPARSE_MAGIC,
            &header::CHANGE_TRACKING_MAGIC,
        ];
        magics.iter().all(|magic| disagrees(head, 0, magic)) && descriptor::excludes(head)
    }

    fn declared_size(&self, source: &dyn BlockSource) -> Result<Option<u64>> {
        open::declared_size(source)
    }

    fn safety(&self, source: &dyn BlockSource, limits: &Limits) -> Result<Vec<SafetyCheck>> {
        safety::checks(source, limits)
    }

    fn open(&self, source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
        open::open(source, request)
    }

    fn checker(&self) -> Option<CheckFn> {
        Some(check::check)
    }

    fn repairs(&self) -> &'static [(Scope, RepairFn)] {
        &[
            (Scope::All, repair::repair),
            (Scope::Redundant, repair::repair_from_redundant),
        ]
    }

    fn creator(&self) -> Option<CreateFn> {
        Some(|options| {
            VmdkOptions::parse(options)?.writer(options.virtual_size, options.file_name.as_ref())
        })
    }
}

/// An error about a structure that starts at byte `at` of the extent file.
fn malformed(
    structure: &'static str,
    at: u64,
    problem: impl Into<std::borrow::Cow<'static, str>>,
) -> Error {
    Error::malformed(VMDK, structure, at, problem)
}
