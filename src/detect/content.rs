//! Content of raw disks: partition tables, filesystems, encryption.
//!
//! A file that shows one of these is a raw disk, with that content. The bytes that a guest wrote
//! decide nothing by it: they are read as they are either way. An encrypted disk is read so only by who
//! says that it is raw.

use crate::content;
use crate::format_id::FormatId;
use crate::image::{Evidence, Probe};

/// Content that the window shows.
pub(super) fn matches(window: &Probe<'_>) -> Vec<(FormatId, Evidence)> {
    match cfg!(feature = "content") {
        true => content::recognise(window),
        false => Vec::new(),
    }
}
