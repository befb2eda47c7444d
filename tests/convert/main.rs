//! Conversions: the same bytes whatever the way, the order and the number of threads.

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

mod determinism;
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod many;
mod overlay;
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod packed;
#[cfg(all(unix, feature = "plan"))]
mod partition;
mod property;
mod resume;
mod sharing;
mod stream;
#[cfg(all(feature = "zlib", feature = "checksum"))]
mod stream_source;
#[cfg(all(feature = "zlib", feature = "zstd"))]
mod threads;
