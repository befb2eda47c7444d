//! Each format: what is written is what is read, and damage is refused by name.

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

mod bundles;
mod conformance;
mod golden;
mod old_formats;
#[cfg(all(feature = "zlib", feature = "checksum"))]
mod ova;
mod qcow2_tables;
mod qcow2_writer;
mod requests;
mod vhd_vdi;
mod vhdx;
mod vmdk;
mod vmdk_writer;
mod wrappers;
