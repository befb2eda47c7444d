//! Detection, inspection, and what a name inside an image may open.

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

mod detect;
#[cfg(unix)]
mod policy;
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod safety;
#[cfg(all(feature = "zlib", feature = "zstd", feature = "xz"))]
mod stream;
