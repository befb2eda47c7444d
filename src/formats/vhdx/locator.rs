//! The parent locator of a differencing image (MS-VHDX 2.6.2.6).

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::name::ImageName;
use crate::ondisk::{Order, on_disk, values};

use super::VHDX;

/// The type of locator whose keys this is about.
pub(super) const LOCATOR_TYPE: Uuid = Uuid::from_u128(0xb04a_efb7_d19e_4a81_b789_25b8_e944_5913);
/// The parent's data write GUID.
pub(super) const LINKAGE: &str = "parent_linkage";
/// Another one that the parent may have.
const LINKAGE2: &str = "parent_linkage2";
/// Path of the parent from the image's folder.
pub(super) const RELATIVE: &str = "relative_path";
/// Path of the parent on its volume.
const VOLUME: &str = "volume_path";
/// Absolute path of the parent.
pub(super) const ABSOLUTE: &str = "absolute_win32_path";

on_disk! {
    /// The head of a parent locator.
    pub(super) struct ParentLocatorHeader in VHDX, "parent locator", Little, 20 bytes {
        locator_type: Uuid = 0,
        key_value_count: u16 = 18,
    }
}

on_disk! {
    /// A key and its value, both UTF-16.
    pub(super) struct ParentLocatorEntry in VHDX, "parent locator entry", Little, 12 bytes {
        key_offset: u32 = 0,
        value_offset: u32 = 4,
        key_length: u16 = 8,
        value_length: u16 = 10,
    }
}

/// Content of a parent locator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParentLocator {
    /// The data write GUIDs of which the parent has to have one.
    pub(super) linkage: Vec<Uuid>,
    /// The names of the parent, in the order in which they are to be tried, as they stand in the image.
    pub(super) names: Vec<String>,
}

impl ParentLocator {
    /// Reads a locator whose `bytes` start at byte `at` of the file.
    pub(super) fn parse(bytes: &[u8], at: u64) -> Result<Self> {
        let head = ParentLocatorHeader::parse(bytes, at)?;
        if head.locator_type != LOCATOR_TYPE {
            return Err(Error::unsupported(
                VHDX,
                format!("the type of parent locator {}", head.locator_type),
                None,
            ));
        }
        let count = usize::from(head.key_value_count);
        let table = bytes.get(ParentLocatorHeader::LEN..).unwrap_or_default();
        let end = count.saturating_mul(ParentLocatorEntry::LEN);
        let Some(table) = table.get(..end) else {
            let problem = format!("is {count}, and so many do not fit into the item");
            return Err(ParentLocatorHeader::malformed(
                at,
                "key_value_count",
                problem,
            ));
        };
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (i, entry) in table.chunks_exact(ParentLocatorEntry::LEN).enumerate() {
            let entry_at = at + (ParentLocatorHeader::LEN + i * ParentLocatorEntry::LEN) as u64;
            let entry = ParentLocatorEntry::parse(entry, entry_at)?;
            let bad = |field, problem: &str| {
                Err(ParentLocatorEntry::malformed(
                    entry_at,
                    field,
                    problem.to_owned(),
                ))
            };
            let Some(key) = text(bytes, entry.key_offset, entry.key_length) else {
                return bad("key_offset", "names no UTF-16 text in the item");
            };
            let Some(value) = text(bytes, entry.value_offset, entry.value_length) else {
                return bad("value_offset", "names no UTF-16 text in the item");
            };
            if pairs.iter().any(|(other, _)| *other == key) {
                return bad("key_offset", "names a key that was there before");
            }
            pairs.push((key, value));
        }
        let value = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, v)| v);
        let mut linkage = Vec::new();
        for key in [LINKAGE, LINKAGE2] {
            match value(key).map(|text| Uuid::try_parse(text)) {
                Some(Ok(guid)) => linkage.push(guid),
                Some(Err(_)) => {
                    let problem = format!("has a {key} that is no GUID");
                    return Err(Error::malformed(VHDX, "parent locator", at, problem));
                }
                None if key == LINKAGE => {
                    let problem = format!("has no {key}");
                    return Err(Error::malformed(VHDX, "parent locator", at, problem));
                }
                None => {}
            }
        }
        let names = [RELATIVE, VOLUME, ABSOLUTE];
        let mut names: Vec<String> = names.into_iter().filter_map(value).cloned().collect();
        names.dedup();
        if names.is_empty() {
            let problem = "names no parent";
            return Err(Error::malformed(VHDX, "parent locator", at, problem));
        }
        Ok(ParentLocator { linkage, names })
    }

    /// A locator of these keys and values.
    pub(super) fn encode(pairs: &[(&str, String)]) -> Result<Vec<u8>> {
        let too_long = || Error::invalid("the name of the backing file is too long for VHDX");
        let mut entries = Vec::new();
        let mut texts: Vec<u8> = Vec::new();
        let start = ParentLocatorHeader::LEN + pairs.len() * ParentLocatorEntry::LEN;
        let mut push = |text: &str| -> Result<(u32, u16)> {
            let offset = u32::try_from(start + texts.len()).map_err(|_| too_long())?;
            let before = texts.len();
            texts.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
            let len = u16::try_from(texts.len() - before).map_err(|_| too_long())?;
            Ok((offset, len))
        };
        for (key, value) in pairs {
            let (key_offset, key_length) = push(key)?;
            let (value_offset, value_length) = push(value)?;
            let entry = ParentLocatorEntry {
                key_offset,
                value_offset,
                key_length,
                value_length,
            };
            entries.extend(entry.encode());
        }
        let head = ParentLocatorHeader {
            locator_type: LOCATOR_TYPE,
            key_value_count: u16::try_from(pairs.len()).map_err(|_| too_long())?,
        };
        Ok([&head.encode()[..], &entries, &texts].concat())
    }
}

/// The name of a parent as a path of this system: elsewhere than on Windows with `/` between its parts,
/// and without the drive's namespace.
pub(super) fn as_path(name: &str) -> ImageName {
    if cfg!(windows) {
        return ImageName::from(name);
    }
    let name = name.strip_prefix(r"\\?\").unwrap_or(name);
    ImageName::from(name.replace('\\', "/").as_str())
}

/// A path of this system as the value of a locator, with its key.
pub(super) fn as_value(name: &ImageName) -> Result<(&'static str, String)> {
    let Some(text) = name
        .as_str()
        .filter(|text| !text.is_empty() && !text.contains('\0'))
    else {
        return Err(Error::invalid(format!(
            "a VHDX image cannot name {} as its backing file: it is no text",
            name.quoted()
        )));
    };
    if !cfg!(windows) && text.contains('\\') {
        return Err(Error::invalid(format!(
            "a VHDX image cannot name {} as its backing file: a backslash would divide the name",
            name.quoted()
        )));
    }
    let value = text.replace('/', "\\");
    let has_drive = cfg!(windows) && value.get(1..2) == Some(":");
    if value.starts_with('\\') || has_drive {
        Ok((ABSOLUTE, value))
    } else if value.starts_with(r".\") || value.starts_with(r"..\") {
        Ok((RELATIVE, value))
    } else {
        Ok((RELATIVE, format!(r".\{value}")))
    }
}

fn text(bytes: &[u8], offset: u32, len: u16) -> Option<String> {
    let start = usize::try_from(offset).ok()?;
    let bytes = bytes.get(start..start.checked_add(usize::from(len))?)?;
    if bytes.is_empty() || bytes.len() % 2 != 0 {
        return None;
    }
    let units = values(bytes, Order::Little);
    String::from_utf16(&units.collect::<Vec<_>>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "{11111111-2222-3333-4444-555555555555}";

    #[test]
    fn a_locator_says_what_was_written() {
        let pairs = [
            (ABSOLUTE, r"\\?\C:\disks\base.vhdx".to_owned()),
            (LINKAGE, GUID.to_owned()),
            (RELATIVE, r".\bäse.vhdx".to_owned()),
        ];
        let bytes = ParentLocator::encode(&pairs).unwrap();
        let locator = ParentLocator::parse(&bytes, 0).unwrap();
        assert_eq!(locator.linkage, [Uuid::try_parse(GUID).unwrap()]);
        assert_eq!(locator.names, [r".\bäse.vhdx", r"\\?\C:\disks\base.vhdx"]);
        for cut in 0..bytes.len() {
            assert!(ParentLocator::parse(&bytes[..cut], 0).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_locator_has_a_linkage_and_a_name() {
        let linkage = (LINKAGE, GUID.to_owned());
        let name = (RELATIVE, "a".to_owned());
        for (pairs, words) in [
            (vec![linkage.clone()], "names no parent"),
            (vec![name.clone()], "has no parent_linkage"),
            (vec![name.clone(), (LINKAGE, "{}".to_owned())], "no GUID"),
            (vec![linkage.clone(), name.clone(), name.clone()], "before"),
            (vec![linkage, (RELATIVE, String::new())], "no UTF-16"),
        ] {
            let bytes = ParentLocator::encode(&pairs).unwrap();
            let error = ParentLocator::parse(&bytes, 0).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[cfg(not(windows))]
    #[test]
    fn names_change_their_slashes() {
        for (name, key, value) in [
            ("base.vhdx", RELATIVE, r".\base.vhdx"),
            ("../a/base.vhdx", RELATIVE, r"..\a\base.vhdx"),
            ("/a/base.vhdx", ABSOLUTE, r"\a\base.vhdx"),
        ] {
            let (got_key, got) = as_value(&ImageName::from(name)).unwrap();
            assert_eq!((got_key, got.as_str()), (key, value));
        }
        assert_eq!(as_path(r"..\a\b.vhdx"), ImageName::from("../a/b.vhdx"));
        assert_eq!(as_path(r"\\?\C:\b.vhdx"), ImageName::from("C:/b.vhdx"));
        assert!(as_value(&ImageName::from(r"a\b")).is_err());
        assert!(as_value(&ImageName::new(&b"\xff"[..])).is_err());
    }
}
