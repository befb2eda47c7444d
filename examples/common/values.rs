//! Values of arguments that several commands take as qemu-img has them.

#![allow(dead_code, reason = "each command takes some of them")]

use blockform::image::{SnapshotSelector, parse_size};
use clap::ValueEnum;

/// What QEMU calls a cache mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheMode {
    None,
    Writeback,
    Unsafe,
    Writethrough,
    Directsync,
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Human,
    Json,
}

/// Takes an argument as a number of bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "it has to be a size such as 4k".to_owned())
}

/// Takes an argument as the name of an internal snapshot.
pub(crate) fn snapshot(text: &str) -> Result<SnapshotSelector, String> {
    let value = |value: &str| match value {
        "" => Err("it names no snapshot".to_owned()),
        value if value.contains(",snapshot.") => Err("give an id or a name, not both".to_owned()),
        value => Ok(value.to_owned()),
    };
    if let Some(id) = text.strip_prefix("snapshot.id=") {
        value(id).map(SnapshotSelector::Id)
    } else if let Some(name) = text.strip_prefix("snapshot.name=") {
        value(name).map(SnapshotSelector::Name)
    } else {
        value(text).map(SnapshotSelector::Any)
    }
}
