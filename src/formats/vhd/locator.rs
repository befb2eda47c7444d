//! The names of the parent: specification, "Parent Locator Entry" and "Parent Unicode Name".

use crate::error::{Error, Result};
use crate::image::Backing;
use crate::limits::Limits;
use crate::name::ImageName;
use crate::ondisk::{Order, until_nul, utf16};
use crate::reference::{Reference, ReferenceKind};
use crate::source::{BlockSource, BlockSourceExt};

use super::SECTOR;
use super::header::{Header, LOCATORS_LEN, Locator};

/// Longest name that a locator may hold, in bytes: what Windows has for a path, and room to spare.
const MAX_NAME: u32 = 64 << 10;

/// The references to the parent, the best one first: names relative to the image come before absolute
/// ones, which were true on one machine at one time.
pub(super) fn references(
    source: &dyn BlockSource,
    header: &Header,
    at: u64,
    limits: &Limits,
) -> Result<Vec<Reference>> {
    let mut names: Vec<(u8, ImageName)> = Vec::new();
    for locator in header.locators(at)? {
        let Some(bytes) = read(source, &locator, limits)? else {
            continue;
        };
        if let Some(named) = decode(&locator.platform_code, &bytes) {
            names.push(named);
        }
    }
    let name = utf16(&header.parent_unicode_name, Order::Big);
    if !name.is_empty() {
        let rank = if is_absolute(&name) { 5 } else { 3 };
        names.push((rank, local(name)));
    }
    names.sort_by_key(|(rank, _)| *rank);
    let mut found: Vec<Reference> = Vec::new();
    for (_, name) in names {
        if !found.iter().any(|known| known.name == name) {
            let reference = Reference::new(ReferenceKind::BackingFile, name);
            found.push(reference.with_format(Some(ImageName::from(declared_format(header)))));
        }
    }
    if found.is_empty() {
        return Err(Header::malformed(
            at,
            "parent_locators",
            "name no parent, and a differencing disk has one",
        ));
    }
    Ok(found)
}

/// The format of the parent. It is a VHD by the specification. Xen puts differencing disks over raw
/// ones, too, and says so by naming a parent without a UUID.
pub(super) fn declared_format(header: &Header) -> &'static str {
    if header.parent_unique_id.is_nil() {
        "raw"
    } else {
        "vpc"
    }
}

/// The bytes of a locator; `None` where they cannot be there, which leaves the other locators.
fn read(source: &dyn BlockSource, locator: &Locator, limits: &Limits) -> Result<Option<Vec<u8>>> {
    let len = locator.data_length;
    let end = locator.data_offset.checked_add(len.into());
    if len == 0 || end.is_none_or(|end| end > source.size()) {
        return Ok(None);
    }
    limits.check_name("the name of the parent", len.into())?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    source.read_exact_at(&mut bytes, locator.data_offset)?;
    Ok(Some(bytes))
}

/// Decodes the name in a locator, with its rank; `None` if it holds no name of a file.
fn decode(platform_code: &[u8; 4], bytes: &[u8]) -> Option<(u8, ImageName)> {
    let text = match platform_code {
        b"W2ru" | b"W2ku" => utf16(bytes, Order::Little),
        b"Wi2r" | b"Wi2k" => String::from_utf8_lossy(until_nul(bytes)).into_owned(),
        b"MacX" => from_url(until_nul(bytes))?,
        // "Mac ": an alias, which means something to Mac OS alone.
        _ => return None,
    };
    if text.is_empty() {
        return None;
    }
    let rank = match (platform_code, is_absolute(&text)) {
        (_, true) => 4,
        (b"W2ru", false) => 0,
        (b"MacX", false) => 2,
        (_, false) => 1,
    };
    Some((rank, local(text)))
}

/// The path of a file URL (RFC 2396). Xen writes relative ones: `file://./base.vhd`.
fn from_url(url: &[u8]) -> Option<String> {
    let path = url.strip_prefix(b"file://")?;
    let path = path
        .strip_prefix(b"localhost")
        .filter(|path| path.first() == Some(&b'/'))
        .unwrap_or(path);
    let mut bytes = Vec::new();
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// Returns whether a name is a path from a root: of this system, of a drive or of a server.
fn is_absolute(name: &str) -> bool {
    let drive = matches!(name.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    drive || name.starts_with(['/', '\\'])
}

/// A name as this system has it: where it is relative, its parts are parted by slashes.
fn local(name: String) -> ImageName {
    if is_absolute(&name) {
        return ImageName::from(name.as_str());
    }
    let name = name.replace('\\', "/");
    let mut name = name.as_str();
    while let Some(rest) = name.strip_prefix("./") {
        name = rest.trim_start_matches('/');
    }
    ImageName::from(name)
}

/// The parent's name as a new image holds it.
#[derive(Debug, Clone)]
pub(super) struct ParentName {
    /// The field `parent_unicode_name`.
    pub(super) unicode_name: [u8; 512],
    platform_code: [u8; 4],
    /// Data of the locator.
    data: Vec<u8>,
}

impl ParentName {
    /// The name of a backing file.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a name that no locator can hold.
    pub(super) fn new(backing: &Backing) -> Result<Self> {
        let bad = |problem| {
            Err(Error::invalid(format!(
                "the backing file's name {} {problem}",
                backing.name.quoted()
            )))
        };
        let Some(name) = backing.name.as_str().filter(|name| !name.is_empty()) else {
            return bad("is no text, which a VHD needs");
        };
        if name.contains('\0') || (cfg!(not(windows)) && name.contains('\\')) {
            return bad("has a character that a VHD cannot hold");
        }
        let (platform_code, text) = if is_absolute(name) {
            (*b"W2ku", name.to_owned())
        } else {
            let name = name.strip_prefix("./").unwrap_or(name);
            (*b"W2ru", format!(".\\{}", name.replace('/', "\\")))
        };
        let data: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        if data.len() > MAX_NAME as usize {
            return bad("is too long for a VHD");
        }
        let mut unicode_name = [0; 512];
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let units: Vec<u8> = file.encode_utf16().flat_map(u16::to_be_bytes).collect();
        match unicode_name.get_mut(..units.len()) {
            Some(to) => to.copy_from_slice(&units),
            None => return bad("is too long for a VHD"),
        }
        Ok(ParentName {
            unicode_name,
            platform_code,
            data,
        })
    }

    /// Bytes that the name takes up in the file, in whole sectors.
    pub(super) fn space(&self) -> u64 {
        (self.data.len() as u64).next_multiple_of(SECTOR)
    }

    /// The locator table for a name that stands at `at`.
    pub(super) fn locators(&self, at: u64) -> [u8; LOCATORS_LEN] {
        let locator = Locator {
            platform_code: self.platform_code,
            platform_data_space: u32::try_from(self.space()).unwrap_or(u32::MAX),
            data_length: u32::try_from(self.data.len()).unwrap_or(u32::MAX),
            data_offset: at,
        };
        let mut table = [0; LOCATORS_LEN];
        if let Some(first) = table.first_chunk_mut() {
            *first = locator.encode();
        }
        table
    }

    /// The name as it stands in the file.
    pub(super) fn data(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(code: &[u8; 4], bytes: &[u8]) -> Option<(u8, String)> {
        let (rank, name) = decode(code, bytes)?;
        Some((rank, name.as_str().unwrap().to_owned()))
    }

    fn le(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn every_platform_code_names_a_path() {
        for (code, bytes, rank, name) in [
            (b"W2ru", le(".\\sub\\base.vhd"), 0, "sub/base.vhd"),
            (b"W2ru", le("base.vhd\0junk"), 0, "base.vhd"),
            (
                b"W2ru",
                le("\\\\server\\share\\x"),
                4,
                "\\\\server\\share\\x",
            ),
            (b"W2ku", le("C:\\disks\\é.vhd"), 4, "C:\\disks\\é.vhd"),
            (b"W2ku", le("/disks/base.vhd"), 4, "/disks/base.vhd"),
            (b"Wi2r", b"..\\base.vhd".to_vec(), 1, "../base.vhd"),
            (b"Wi2k", b"D:\\base.vhd\0\0".to_vec(), 4, "D:\\base.vhd"),
            (
                b"MacX",
                b"file://localhost/disks/a%20b.vhd".to_vec(),
                4,
                "/disks/a b.vhd",
            ),
            (b"MacX", b"file://./base.vhd\0".to_vec(), 2, "base.vhd"),
        ] {
            assert_eq!(named(code, &bytes), Some((rank, name.to_owned())));
        }
        assert_eq!(named(b"Mac ", b"alias"), None);
        assert_eq!(named(b"MacX", b"http://host/x"), None);
        assert_eq!(named(b"W2ru", &[0, 0]), None);
    }

    #[test]
    fn a_written_name_is_read_back() {
        for name in [
            "base.vhd",
            "sub/base.vhd",
            "../b/base.vhd",
            "/disks/base.vhd",
            "ünï\u{1f4be}.vhd",
        ] {
            let written = ParentName::new(&Backing::new(ImageName::from(name), "vhd")).unwrap();
            let (_, read) = decode(&written.platform_code, written.data()).unwrap();
            assert_eq!(read.as_str(), Some(name));
        }
        for name in ["", "a\0b", "a\\b"] {
            assert!(ParentName::new(&Backing::new(ImageName::from(name), "vhd")).is_err());
        }
    }
}
