//! The descriptor: the text that says what a disk consists of (section "The Descriptor File").

use encoding_rs::Encoding;

use crate::error::Result;
use crate::limits::Limits;
use crate::name::ImageName;
use crate::ondisk::until_nul;

use super::header::unsupported;
use super::line::{ExtentLine, malformed, split_once};

/// The most extents that a disk is split into when it is written, as many as [`Limits::extents`] has unless
/// told otherwise: 16 TiB of 2 GiB each. No disk has so many files.
pub(super) const MAX_EXTENTS: usize = 8192;

/// `CID` where there is none, as a disk without a parent has it in `parentCID`.
pub(super) const NO_CID: u32 = 0xffff_ffff;
/// `CID` that says to look at `longContentID`.
const LONG_CID: u32 = 0xffff_fffe;

/// A descriptor, as far as reading needs it.
#[derive(Debug, Clone, Default)]
pub(super) struct Descriptor {
    /// The keys in lower case, and the values without their quotes, in order.
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) cid: Option<u32>,
    pub(super) parent_cid: u32,
    pub(super) extents: Vec<ExtentLine>,
}

/// The words that make a text a descriptor, if the start of a file has them.
pub(super) fn recognize(head: &[u8]) -> Option<&'static str> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let mut commented = false;
    let mut rest = head;
    loop {
        // The line may be all of a binary file: its end is not looked for before its first word fits.
        if excludes(rest) {
            return None;
        }
        rest = rest.trim_ascii_start();
        let line = lines(rest).next()?.trim_ascii();
        let after = |word: &[u8]| {
            let (first, rest) = line.split_at_checked(word.len())?;
            first
                .eq_ignore_ascii_case(word)
                .then_some(rest.trim_ascii())
        };
        if let Some(comment) = after(b"#") {
            if comment.eq_ignore_ascii_case(b"disk descriptorfile") {
                return Some("# Disk DescriptorFile");
            }
            commented = true;
            rest = rest.get(line.len()..)?;
            continue;
        }
        // Workstation writes a descriptor of an encrypted disk anew, without the title.
        if after(b".encoding").is_some() && contains(head, b"encryption.keySafe") {
            return Some("encryption.keySafe");
        }
        let version = after(b"version").is_some_and(|rest| rest.starts_with(b"="));
        let described = || commented && contains(&head.to_ascii_lowercase(), b"createtype");
        return (version && described()).then_some("version, createType");
    }
}

/// Returns `true` if no file that begins with `head` is a descriptor: its first word begins none.
pub(super) fn excludes(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    if b"\xef\xbb\xbf".starts_with(head) {
        return false;
    }
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace());
    first.is_some_and(|byte| !matches!(byte.to_ascii_lowercase(), b'#' | b'.' | b'v'))
}

impl Descriptor {
    /// The lines of extents that have a size, with the names of their files decoded.
    pub(super) fn lines(&self) -> impl Iterator<Item = ExtentLine> {
        let lines = self.extents.iter().filter(|line| line.sectors > 0);
        lines.map(|line| ExtentLine {
            name: line.name.clone().map(|name| self.decoded(name)),
            ..line.clone()
        })
    }

    /// Reads a descriptor. It ends at its first NUL.
    ///
    /// # Errors
    /// [`Error::Malformed`] with what is wrong, [`Error::LimitExceeded`] for too long a text and for too many
    /// extents, [`Error::Unsupported`] for an encrypted disk.
    pub(super) fn parse(bytes: &[u8], limits: &Limits) -> Result<Self> {
        limits.check_descriptor("the descriptor", bytes.len() as u64)?;
        let text = until_nul(bytes);
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let mut descriptor = Descriptor {
            parent_cid: NO_CID,
            ..Descriptor::default()
        };
        for line in lines(text) {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if let Some(extent) = ExtentLine::parse(line)? {
                limits.check_extents(descriptor.extents.len() as u64 + 1)?;
                descriptor.extents.push(extent);
            } else if let Some((key, value)) = split_once(line, b'=') {
                let key = key.trim_ascii().to_ascii_lowercase();
                descriptor
                    .entries
                    .push((key, unquoted(value.trim_ascii()).into()));
            }
        }
        descriptor.refuse_encrypted()?;
        descriptor.refuse_contradictions()?;
        descriptor.cid = descriptor.content_id("cid")?;
        descriptor.parent_cid = descriptor.content_id("parentcid")?.unwrap_or(NO_CID);
        Ok(descriptor)
    }

    /// The value of a key, given in lower case.
    pub(super) fn value(&self, key: &str) -> Option<&[u8]> {
        let mut entries = self.entries.iter();
        entries
            .find(|(k, _)| k == key.as_bytes())
            .map(|(_, value)| value.as_slice())
    }

    /// Returns `true` if the disk data base is there, which every writer puts last.
    pub(super) fn has_end(&self) -> bool {
        self.entries.iter().any(|(key, _)| key.starts_with(b"ddb."))
    }

    /// `createType`.
    pub(super) fn create_type(&self) -> Option<&[u8]> {
        self.value("createtype")
    }

    /// The name of the parent, if the descriptor has one.
    pub(super) fn parent_hint(&self) -> Option<ImageName> {
        let name = self.value("parentfilenamehint")?;
        (!name.is_empty()).then(|| ImageName::from(name))
    }

    /// The identity of a parent that has no name here, if there is one.
    pub(super) fn nameless_parent(&self) -> Option<String> {
        if let Some(uuid) = self.value("ddb.uuid.parent") {
            let zero = uuid.iter().all(|byte| matches!(byte, b'0' | b'-' | b' '));
            if !zero {
                let uuid = ImageName::from(uuid);
                return Some(format!("uuid {}", uuid.escaped()));
            }
        }
        (self.parent_cid != NO_CID).then(|| format!("CID {:08x}", self.parent_cid))
    }

    /// Returns `true` if the parent's CID can be compared with the one that its child expects.
    pub(super) fn compares_cid(&self) -> bool {
        self.parent_cid != LONG_CID
    }

    /// A file's name in UTF-8, if the descriptor says in which other encoding it stands: `GBK`, `Big5`,
    /// `Shift_JIS`, `windows-1252` and all others that the web has labels for. Files are called by their
    /// bytes otherwise.
    pub(super) fn decoded(&self, name: ImageName) -> ImageName {
        let label = self.value("encoding").or(self.value("ddb.encoding"));
        let Some(encoding) = label.and_then(encoding_of) else {
            return name;
        };
        // A name in UTF-8 is no accident in an encoding of single bytes. Pairs of bytes look like it
        // often enough: of these the descriptor is believed.
        let utf8 = name.as_str().is_some() && encoding.is_single_byte();
        if utf8 || name.as_bytes().is_ascii() || encoding == encoding_rs::UTF_8 {
            return name;
        }
        let text = encoding.decode_without_bom_handling_and_without_replacement(name.as_bytes());
        let decoded = text.map(|text| ImageName::from(&*text));
        decoded.unwrap_or(name)
    }

    fn content_id(&self, key: &'static str) -> Result<Option<u32>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(value).ok();
        let digits = text.map(|text| text.trim_start_matches("0x"));
        let id = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        id.map(Some).ok_or_else(|| {
            let value = ImageName::from(value);
            malformed(format!("{key} is {}, not a number", value.quoted()))
        })
    }

    fn refuse_encrypted(&self) -> Result<()> {
        let encrypted = self.entries.iter().any(|(key, value)| {
            contains(key, b"encryption")
                || contains(key, b"keysafe")
                || contains(key, b"cryptokey")
                || contains(key, b"keyid")
                || (contains(key, b"iofilters") && contains(value, b"crypt"))
        });
        match encrypted {
            true => Err(unsupported("encryption".into())),
            false => Ok(()),
        }
    }

    /// Two values for a key that decides what is read: none is the right one.
    fn refuse_contradictions(&self) -> Result<()> {
        const KEYS: [&str; 4] = ["cid", "parentcid", "createtype", "parentfilenamehint"];
        for key in KEYS {
            let mut values = self.entries.iter().filter(|(k, _)| k == key.as_bytes());
            let first = values.next();
            if values.any(|(_, value)| first.is_some_and(|(_, first)| first != value)) {
                return Err(malformed(format!("has two values of {key}")));
            }
        }
        Ok(())
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| matches!(byte, b'\n' | b'\r'))
}

/// Returns `true` if the rest of a damaged descriptor says that the disk has no parent.
pub(super) fn says_no_parent(text: &[u8]) -> bool {
    let pieces = text.split(|byte| *byte == 0).flat_map(lines);
    let entries = pieces.filter_map(|line| split_once(line, b'='));
    let mut said = false;
    for (key, value) in entries {
        let key = key.trim_ascii().to_ascii_lowercase();
        let value = unquoted(value.trim_ascii()).to_ascii_lowercase();
        match key.as_slice() {
            b"parentcid" if value == b"ffffffff" => said = true,
            b"parentcid" => return false,
            b"parentfilenamehint" if !value.is_empty() => return false,
            _ => {}
        }
    }
    said
}

/// The value between its quotes, or the value where there are none.
fn unquoted(value: &[u8]) -> &[u8] {
    match value.strip_prefix(b"\"") {
        None => value,
        Some(rest) => match rest.iter().rposition(|byte| *byte == b'"') {
            Some(end) => rest.get(..end).unwrap_or_default(),
            None => rest,
        },
    }
}

/// The encoding of a label, also where Windows writes it as the number of a code page.
fn encoding_of(label: &[u8]) -> Option<&'static Encoding> {
    let label = label.trim_ascii().to_ascii_lowercase();
    let number = label.strip_prefix(b"cp").unwrap_or(&label);
    let known: &[u8] = match number {
        b"936" => b"gbk",
        b"950" => b"big5",
        b"932" | b"ms932" => b"shift_jis",
        b"949" | b"ms949" => b"euc-kr",
        _ => &label,
    };
    Encoding::for_label(known)
}

fn contains(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::vmdk::line::Access;

    fn parse(text: &str) -> Result<Descriptor> {
        Descriptor::parse(text.as_bytes(), &Limits::default())
    }

    #[test]
    fn a_key_is_not_a_part_of_another() {
        let text = "parentCID=00000001\nCID=0000000a\n";
        let descriptor = parse(text).unwrap();
        assert_eq!((descriptor.cid, descriptor.parent_cid), (Some(10), 1));
        assert_eq!(parse("parentCID=ffffffff\n").unwrap().cid, None);
    }

    #[test]
    fn every_line_ending_and_case_is_understood() {
        let text = "# Disk DescriptorFile\r\nCid = fffffffe\r\nCreateType = \"custom\"\r\n\r\n\
                    rw 8 flat \"a b.vmdk\" 16\r\rRDONLY 4 ZERO\rNOACCESS 2 SPARSE \"x\"\0RW 9 ZERO";
        let descriptor = parse(text).unwrap();
        assert_eq!(descriptor.create_type(), Some(&b"custom"[..]));
        let line = |access, sectors, kind: &str, name: Option<&str>, offset| ExtentLine {
            access,
            sectors,
            kind: kind.to_owned(),
            name: name.map(ImageName::from),
            offset,
        };
        assert_eq!(
            descriptor.extents,
            [
                line(Access::ReadWrite, 8, "FLAT", Some("a b.vmdk"), 16),
                line(Access::ReadOnly, 4, "ZERO", None, 0),
                line(Access::None, 2, "SPARSE", Some("x"), 0),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("RW x FLAT \"a\"", "no size"),
            ("RW 8", "no type"),
            ("RW 8 FLAT \"a", "without an end"),
            ("RW 8 FLAT \"a\" b", "offset"),
            ("RW 99999999999999999 ZERO", "no disk has"),
            ("CID=xyz", "not a number"),
            ("CID=1\nCID=2", "two values"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = parse("encryption.keySafe = \"x\"").unwrap_err();
        assert!(matches!(error, crate::Error::Unsupported { .. }));
    }

    #[test]
    fn names_are_in_the_encoding_that_is_declared() {
        for (label, bytes, text) in [
            ("GBK", &b"\xb4\xc5\xc5\xcc.vmdk"[..], "磁盘.vmdk"),
            // Two bytes that are a letter in UTF-8, too.
            ("GBK", b"\xc4\xa3.vmdk", "模.vmdk"),
            ("cp936", b"\xb4\xc5\xc5\xcc.vmdk", "磁盘.vmdk"),
            ("Big5", b"\xba\xcf\xba\xd0.vmdk", "磁碟.vmdk"),
            ("Shift_JIS", b"\x83\x66\x83\x42.vmdk", "ディ.vmdk"),
            ("windows-1251", b"\xe4\xe8\xf1\xea.vmdk", "диск.vmdk"),
            ("windows-1252", b"caf\xe9.vmdk", "café.vmdk"),
            ("windows-1252", "café.vmdk".as_bytes(), "café.vmdk"),
            ("UTF-8", "café.vmdk".as_bytes(), "café.vmdk"),
        ] {
            let descriptor = parse(&format!("encoding=\"{label}\"\n")).unwrap();
            let name = descriptor.decoded(ImageName::from(bytes));
            assert_eq!(name.as_str(), Some(text), "{label}");
        }
        // Bytes that are not text in the encoding, or in an unknown one, stay as they are.
        for label in ["GBK", "klingon"] {
            let descriptor = parse(&format!("encoding=\"{label}\"\n")).unwrap();
            let name = ImageName::new(&b"\xb4\xff"[..]);
            assert_eq!(descriptor.decoded(name.clone()), name, "{label}");
        }
    }

    #[test]
    fn only_descriptors_are_recognized() {
        for (text, known) in [
            ("# Disk DescriptorFile\nversion=1\n", true),
            ("\u{feff}# disk descriptorfile\r\n", true),
            ("\n  \n#Disk DescriptorFile", true),
            ("# made by hand\nversion = 1\ncreateType=\"custom\"", true),
            ("# a script\nversion=1\n", false),
            ("version=1\ncreateType=\"custom\"", false),
            ("#!/bin/sh\necho", false),
            (".encoding = \"UTF-8\"\nencryption.keySafe = \"x\"", true),
            ("", false),
        ] {
            assert_eq!(recognize(text.as_bytes()).is_some(), known, "{text:?}");
        }
    }
}
