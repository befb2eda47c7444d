//! Advice that goes with an error.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use crate::name::quoted_path;

/// Advice on an [`Error`](crate::Error) for the caller.
///
/// `Display` names items of this library. A program whose users hold flags matches the variants and names
/// its flags.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// Name the format that the file is meant to have.
    NameFormat,
    /// Name the format raw, if the file is a raw disk.
    ReadAsRaw,
    /// Choose one of several disks.
    ChooseDisk,
    /// Allow the files of the image's own directory.
    AllowSameDirectory,
    /// Allow the files below this directory.
    AllowWithin(PathBuf),
    /// Raise this field of [`Limits`](crate::Limits).
    RaiseLimit(&'static str),
    /// Write the stream to a file first, or allow a spill file.
    AllowSpill,
    /// Advice that no item of the library is needed for.
    Text(Cow<'static, str>),
}

impl From<&'static str> for Hint {
    fn from(text: &'static str) -> Self {
        Hint::Text(text.into())
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::NameFormat => f.write_str("name the format with OpenOptions::format"),
            Hint::ReadAsRaw => {
                f.write_str("if it is a raw disk, name the format raw with OpenOptions::format")
            }
            Hint::ChooseDisk => f.write_str("choose one with OpenOptions::disk"),
            Hint::AllowSameDirectory => {
                f.write_str("allow it with PathPolicy::SameDirectory if the image is trusted")
            }
            Hint::AllowWithin(folder) => write!(
                f,
                "allow it with PathPolicy::Within({}) if the image is trusted",
                quoted_path(folder)
            ),
            Hint::RaiseLimit(limit) => {
                write!(f, "raise Limits::{limit} if the image is trusted")
            }
            Hint::AllowSpill => f.write_str(
                "write it to a file first, or allow a spill file with StreamSource::spill",
            ),
            Hint::Text(text) => f.write_str(text),
        }
    }
}
