//! Detection of formats: all probes see the same window, and all matches are the answer.

mod content;
mod kinds;
pub(crate) mod magic;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::formats::{Formats, raw};
use crate::image::{Evidence, Format, Probe, Verdict, Window};
use crate::source::BlockSource;

pub(crate) use kinds::{Described, Kind, kind_of};

/// Formats and content that were recognised in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detected {
    /// The formats whose signatures were found, with the evidence for each: those that can be read
    /// first, then others.
    pub matches: Vec<(FormatId, Evidence)>,
    /// Content of the disk, if the file is one: partition tables, filesystems and the like.
    pub content: Vec<(FormatId, Evidence)>,
}

/// Runs every format's probe over `source`.
///
/// Signatures of formats that this crate cannot read are among the matches. Raw is never one of them: any
/// file can be read as a raw disk.
///
/// # Errors
/// Errors of reading.
pub fn detect(source: &dyn BlockSource) -> Result<Detected> {
    let window = Window::read(source)?;
    Ok(Detected::of(&window.probe()))
}

/// Returns whether files of the kind `name` are recognised by their end alone.
pub(crate) fn told_by_end(name: &str) -> bool {
    name == kinds::DMG.as_str()
}

impl Detected {
    /// Everything that a window shows: [`detect`] for bytes that come from elsewhere than a source.
    pub fn of(window: &Probe<'_>) -> Self {
        Self::among(&Formats::all(), window)
    }

    /// The same, with the formats of the caller.
    pub(crate) fn among(formats: &Formats, window: &Probe<'_>) -> Self {
        let read = formats
            .known()
            .filter_map(|format| match format.probe(window) {
                Verdict::Reject => None,
                Verdict::Match(evidence) => Some((format.id(), evidence)),
            });
        Detected {
            matches: read.chain(kinds::matches(window)).collect(),
            content: content::matches(window),
        }
    }

    /// The one format that the file is of. A file that is in no format and whose content is that of a
    /// disk is raw.
    ///
    /// # Errors
    /// [`Error::Unrecognized`] if there is none, [`Error::Ambiguous`] if there are several,
    /// [`Error::Unsupported`] if it is one that this crate cannot read.
    pub fn one(&self) -> Result<&'static dyn Format> {
        self.one_of(&Formats::all())
    }

    /// The same, with the formats of the caller. A format that is not among them is
    /// [`Error::NotAllowed`].
    pub(crate) fn one_of(&self, formats: &Formats) -> Result<&'static dyn Format> {
        match self.deciding().as_slice() {
            [] if self.content.is_empty() => Err(Error::Unrecognized),
            [] => named(formats, raw::RAW),
            [id] => named(formats, *id),
            _ => {
                let all = || self.matches.iter().chain(&self.content);
                let evidence = all().map(|(_, evidence)| (evidence.what, evidence.offset));
                Err(Error::Ambiguous {
                    matches: all().map(|(id, _)| *id).collect(),
                    evidence: evidence.collect(),
                })
            }
        }
    }

    /// The one format that the file is read as if the caller names none. An encrypted disk has no such format:
    /// its guest data are not in these bytes. The encrypted bytes are read by the name raw.
    ///
    /// # Errors
    /// As [`one`](Self::one), and [`Error::Unsupported`] for LUKS.
    pub(crate) fn one_to_read(&self, formats: &Formats) -> Result<&'static dyn Format> {
        let format = self.one_of(formats)?;
        match self.content.iter().any(|(id, _)| *id == kinds::LUKS) {
            true => Err(Error::unsupported(
                kinds::LUKS,
                "reading an encrypted disk",
                "decrypt it with a tool that has the key, or name the format raw to read the encrypted bytes",
            )),
            false => Ok(format),
        }
    }

    /// The image formats whose signatures were found. Archives are left out: a raw disk may begin with one.
    pub(crate) fn image_formats(&self) -> Vec<FormatId> {
        let ids = self.matches.iter().map(|(id, _)| *id);
        ids.filter(|id| kinds::is_image(*id)).collect()
    }

    /// The error for a compressed file, which is not of the format called `name`.
    pub(crate) fn packed_not(&self, name: &str) -> Option<Error> {
        let format = Formats::all().by_name(name)?.id();
        if format == raw::RAW || self.matches.iter().any(|(id, _)| *id == format) {
            return None;
        }
        let (id, _) = self.matches.iter().find(|(id, _)| kinds::is_packed(*id))?;
        kinds::kind_by_name(id.as_str()).map(Kind::not_read)
    }

    /// Matches that decide the format: the formats and, beside one of them, the content; but
    /// nothing that honest files of a format have inside or as well.
    fn deciding(&self) -> Vec<FormatId> {
        let wrapper = self.matches.iter().find(|(id, evidence)| {
            // A signature at the end leaves the start to the content of the disk.
            (id.as_str() == "vhd" || *id == kinds::DMG) && evidence.offset > 0
        });
        let wrapper = wrapper.map(|(id, _)| *id);
        let ids = self.matches.iter().map(|(id, _)| *id);
        // The data of a compressed DMG begins with the signature of its compression.
        let formats = ids.filter(|id| wrapper != Some(kinds::DMG) || !kinds::is_packed(*id));
        let formats: Vec<FormatId> = formats.collect();
        let content = self.content.iter().map(|(id, _)| *id);
        let content = content.filter(|_| wrapper.is_none() && !formats.is_empty());
        formats.iter().copied().chain(content).collect()
    }
}

impl Formats {
    /// As [`by_name`](Self::by_name).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a format that is known and not read, [`Error::InvalidInput`] for any
    /// other name.
    pub(crate) fn named(&self, name: &str) -> Result<&'static dyn Format> {
        self.by_name(name)
            .ok_or_else(|| match kinds::kind_by_name(name) {
                Some(kind) => kind.not_read(),
                None => self.unknown(name),
            })
    }
}

/// The format called `id`, which a signature has named.
fn named(formats: &Formats, id: FormatId) -> Result<&'static dyn Format> {
    let known = formats.known().any(|format| format.id() == id);
    match (
        formats.by_name(id.as_str()),
        kinds::kind_by_name(id.as_str()),
    ) {
        (Some(format), _) => Ok(format),
        (None, _) if known => Err(Error::NotAllowed {
            found: vec![id],
            offset: Probe::HEAD as u64,
            allowed: formats
                .iter()
                .map(|format| format.id().to_string())
                .collect(),
        }),
        (None, Some(kind)) => Err(kind.not_read()),
        (None, None) => Err(Error::Unrecognized),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::Hint;
    use crate::storage::Memory;

    fn found(bytes: &[u8]) -> Result<&'static str> {
        let detected = detect(&Memory::new(bytes.to_vec()))?;
        detected.one().map(|format| format.id().as_str())
    }

    #[test]
    fn what_cannot_be_read_is_named_and_never_raw() {
        for (bytes, name) in [
            (&b"Bochs Virtual HD Image"[..], "bochs"),
            (b"EVF\x09\x0d\x0a\xff\0", "ewf"),
        ] {
            let error = found(bytes).unwrap_err();
            assert!(
                matches!(&error, Error::Unsupported { format, .. } if format.as_str() == name),
                "{error}"
            );
        }
        assert!(matches!(found(b""), Err(Error::Unrecognized)));
        assert!(matches!(found(&[0; 4096]), Err(Error::Unrecognized)));
    }

    #[test]
    fn what_is_a_disk_is_raw_and_says_what_it_holds() {
        let mut disk = vec![0; 8192];
        disk[510..512].copy_from_slice(b"\x55\xaa");
        assert!(
            matches!(found(&disk), Err(Error::Unrecognized)),
            "no partition"
        );
        disk[446 + 4] = 0x83;
        disk[446 + 12] = 8;
        assert_eq!(found(&disk).unwrap(), "raw");
        disk[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        assert!(matches!(found(&disk), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn a_disk_in_a_fixed_vhd_is_no_second_format() {
        let mut disk = vec![0; 8192];
        disk[510..512].copy_from_slice(b"\x55\xaa");
        disk[446 + 4] = 0x83;
        disk[446 + 12] = 8;
        disk[8192 - 512..8192 - 504].copy_from_slice(b"conectix");
        assert_eq!(found(&disk).unwrap(), "vhd");
        // A dynamic one begins with its own header.
        disk[..8].copy_from_slice(b"conectix");
        assert!(matches!(found(&disk), Err(Error::Ambiguous { .. })));
    }

    #[test]
    fn two_formats_at_once_are_neither() {
        let mut both = vec![0; 4096];
        both[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        assert_eq!(found(&both).unwrap(), "qcow2");
        both[4096 - 512..4096 - 504].copy_from_slice(b"conectix");
        let error = found(&both).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the file is qcow2 (QFI\\xfb at byte 0) and vhd (conectix at byte 3584) at once"
        );
        assert_eq!(error.hint(), Some(Hint::NameFormat));
    }
}
