//! Which format a file is of: all probes see the same window, and all that match are the answer.

mod content;
mod foreign;
mod signature;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::formats::{BUILTIN, by_name, raw, vhd};
use crate::image::{Evidence, Format, Verdict, Window};
use crate::source::BlockSource;

/// Everything that a file was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detected {
    /// The formats whose signatures were found, with the evidence for each: those that can be read
    /// first, then others.
    pub matches: Vec<(FormatId, Evidence)>,
    /// What the disk holds, if the file is one: partition tables, filesystems and the like.
    pub content: Vec<(FormatId, Evidence)>,
}

/// Runs every format's probe over `source`.
///
/// Signatures of formats that this crate cannot read are among the matches. Raw is never one of them:
/// everything is a raw disk to those who say so.
///
/// # Errors
/// What reading fails with.
pub fn detect(source: &dyn BlockSource) -> Result<Detected> {
    let window = Window::read(source)?;
    let matches = BUILTIN
        .iter()
        .filter_map(|format| match format.probe(&window.probe()) {
            Verdict::Reject => None,
            Verdict::Match(evidence) => Some((format.id(), evidence)),
        });
    let foreign = signature::matches(foreign::FOREIGN, &window.probe());
    let matches = matches.chain(foreign);
    Ok(Detected {
        matches: matches.collect(),
        content: content::matches(&window.probe()),
    })
}

impl Detected {
    /// The one format that the file is of. A file that is in no format and whose content is that of a
    /// disk is raw.
    ///
    /// # Errors
    /// [`Error::Unrecognized`] if there is none, [`Error::Ambiguous`] if there are several,
    /// [`Error::Unsupported`] if it is one that this crate cannot read.
    pub fn one(&self) -> Result<&'static dyn Format> {
        match self.matches.as_slice() {
            [] if self.content.is_empty() => Err(Error::Unrecognized),
            [] => Ok(&raw::Raw),
            [(id, evidence)] if self.content.is_empty() || wraps_content(*id, evidence) => {
                by_name(id.as_str()).ok_or_else(|| Error::Unsupported {
                    format: *id,
                    feature: "this format".to_owned(),
                    hint: "if the file is a raw disk all the same, say so (-f raw)",
                })
            }
            several => {
                let all = several.iter().chain(&self.content);
                Err(Error::Ambiguous {
                    matches: all.map(|(id, _)| *id).collect(),
                })
            }
        }
    }
}

/// Whether the start of the file is the disk's own although it is in a format: the signature of a
/// fixed VHD stands at the end.
fn wraps_content(id: FormatId, evidence: &Evidence) -> bool {
    id == vhd::VHD && evidence.offset > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Memory;

    fn found(bytes: &[u8]) -> Result<&'static str> {
        let detected = detect(&Memory::new(bytes.to_vec()))?;
        detected.one().map(|format| format.id().as_str())
    }

    #[test]
    fn what_cannot_be_read_is_named_and_never_raw() {
        for (bytes, name) in [(&b"QFI\xfb\0\0\0\x01"[..], "qcow"), (b"QED\0", "qed")] {
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
            "the file is qcow2 and vhd at once; name the format that it is meant to have (-f FORMAT)"
        );
    }
}
