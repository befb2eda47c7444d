//! The commands as scripts and people use them, and the pages that show them.

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

mod cli;
mod compare;
#[cfg(all(target_os = "linux", feature = "zlib", feature = "zstd"))]
mod hostile;
mod img;
mod info;
mod layers;
mod map;
mod measure;
mod own;
mod prose;
#[cfg(unix)]
mod readme;
#[cfg(all(unix, feature = "zlib"))]
mod stdin;
