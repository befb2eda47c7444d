//! Images of other tools read by us, and our images read by other tools.

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

#[cfg(all(feature = "zlib", feature = "zstd"))]
mod corpus;
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod differential;
mod qemu;
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod written;
