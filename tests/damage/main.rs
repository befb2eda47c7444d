//! Images that are damaged, and storage that fails: check, repair, salvage, crashes and faults.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests state what they expect"
)]

#[path = "../support/mod.rs"]
mod support;

mod check;
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod crashes;
mod damaged;
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod faults;
#[cfg(all(feature = "zlib", feature = "checksum"))]
mod ova_check;
mod repair;
mod repair_copies;
mod salvage;
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod sweep;
