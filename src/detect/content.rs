//! Content of raw disks: partition tables, filesystems, encryption.
//!
//! A file that shows one of these is a raw disk with that content. The content never changes how bytes are
//! read. An encrypted disk is read as a raw one only if the caller names that format.

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
