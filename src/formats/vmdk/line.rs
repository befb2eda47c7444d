//! The lines of a descriptor that list the extents (section "The Extent Description").

use crate::error::{Error, Result};
use crate::name::ImageName;
use crate::reference::{Reference, ReferenceKind};

use super::VMDK;
use super::header::{SECTOR, unsupported};

/// The access to an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
    None,
}

/// One line of the extent description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub(super) access: Access,
    /// Size in sectors.
    pub(super) sectors: u64,
    /// `FLAT`, `SPARSE` and so on, in upper case.
    pub(super) kind: String,
    pub(super) name: Option<ImageName>,
    /// Start of a flat extent in its file, in sectors.
    pub(super) offset: u64,
}

/// The data of an extent, as its line describes it.
pub(super) enum ExtentData {
    Zeros,
    /// It is marked as not accessible.
    NoAccess,
    /// In a file, from an offset on or, if it is sparse, all of the file.
    File {
        reference: Reference,
        flat: bool,
    },
}

impl ExtentLine {
    /// The data of the extent.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a device and for a type that is not known, [`Error::Malformed`] for a line
    /// without a name.
    pub(super) fn data(&self) -> Result<ExtentData> {
        let flat = match self.kind.as_str() {
            "ZERO" => return Ok(ExtentData::Zeros),
            "FLAT" | "VMFS" | "VMFSTHIN" => true,
            "SPARSE" | "VMFSSPARSE" | "SESPARSE" => false,
            "VMFSRDM" | "VMFSRAW" => {
                return Err(unsupported(format!("a device extent ({})", self.kind)));
            }
            kind => {
                let kind = ImageName::from(kind);
                return Err(unsupported(format!("an extent of type {}", kind.quoted())));
            }
        };
        if self.access == Access::None {
            return Ok(ExtentData::NoAccess);
        }
        let Some(name) = self.name.clone().filter(|name| !name.is_empty()) else {
            let kind = &self.kind;
            return Err(malformed(format!("names no file for a {kind} extent")));
        };
        if is_device(name.as_bytes()) {
            return Err(unsupported(format!("a device extent ({})", name.quoted())));
        }
        let reference = Reference::new(ReferenceKind::ExtentFile, name);
        Ok(ExtentData::File { reference, flat })
    }

    /// The extent that a line describes; `None` if it is another kind of line.
    pub(super) fn parse(line: &[u8]) -> Result<Option<Self>> {
        let (access, rest) = token(line);
        let access = match access.to_ascii_uppercase().as_slice() {
            b"RW" => Access::ReadWrite,
            b"RDONLY" => Access::ReadOnly,
            b"NOACCESS" => Access::None,
            _ => return Ok(None),
        };
        // `RW = 1` would be an odd key, and no extent.
        let (sectors, rest) = token(rest);
        if sectors.starts_with(b"=") {
            return Ok(None);
        }
        let bad = |what: &str| {
            let line = ImageName::from(line);
            malformed(format!("the extent line {} has {what}", line.quoted()))
        };
        let sectors = number(sectors).ok_or_else(|| bad("no size"))?;
        if sectors > (i64::MAX as u64) / SECTOR {
            return Err(bad("a size that no disk has"));
        }
        let (kind, rest) = token(rest);
        let kind = kind.to_ascii_uppercase();
        let kind = String::from_utf8(kind).map_err(|_| bad("no type"))?;
        if kind.is_empty() {
            return Err(bad("no type"));
        }
        let rest = rest.trim_ascii();
        let (name, rest) = match rest.strip_prefix(b"\"") {
            Some(quoted) => {
                let (name, rest) =
                    split_once(quoted, b'"').ok_or_else(|| bad("a name without an end"))?;
                (Some(ImageName::from(name)), rest)
            }
            None if rest.is_empty() => (None, rest),
            None => {
                let (name, rest) = token(rest);
                (Some(ImageName::from(name)), rest)
            }
        };
        let (offset, _) = token(rest);
        let offset = match offset {
            b"" => 0,
            digits => number(digits).ok_or_else(|| bad("an offset that is not a number"))?,
        };
        Ok(Some(ExtentLine {
            access,
            sectors,
            kind,
            name,
            offset,
        }))
    }
}

fn is_device(name: &[u8]) -> bool {
    name.starts_with(b"/dev/")
        || name.starts_with(b"\\\\.\\")
        || name.starts_with(b"/vmfs/devices/")
}

/// The first word, and what follows it.
fn token(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    let end = text.iter().position(u8::is_ascii_whitespace);
    text.split_at(end.unwrap_or(text.len()))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// An error about the descriptor.
pub(super) fn malformed(problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::malformed(VMDK, "descriptor", None, problem)
}

pub(super) fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    let (before, after) = text.split_at(at);
    Some((before, after.get(1..)?))
}
