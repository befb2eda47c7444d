//! Formats that are not built in. Each is recognised, so that its files pass for nothing else, and refused
//! with the name of the feature that reads it.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::hint::Hint;
use crate::image::{Format, Image, Probe, Request, Verdict};
use crate::source::BlockSource;

/// A format that is not built in. Its id is the name of its feature.
#[derive(Debug)]
pub(super) struct Off {
    id: FormatId,
    aliases: &'static [&'static str],
    matches: fn(&Probe<'_>) -> bool,
}

impl Off {
    const fn new(
        id: &'static str,
        aliases: &'static [&'static str],
        matches: fn(&Probe<'_>) -> bool,
    ) -> Self {
        Off {
            id: FormatId::new(id),
            aliases,
            matches,
        }
    }
}

impl Format for Off {
    fn id(&self) -> FormatId {
        self.id
    }

    fn aliases(&self) -> &'static [&'static str] {
        self.aliases
    }

    fn probe(&self, window: &Probe<'_>) -> Verdict {
        Verdict::found_if((self.matches)(window), "its signature", 0)
    }

    fn absent(&self) -> Option<Error> {
        Some(Error::Unsupported {
            format: self.id,
            feature: "a format that is not built in".to_owned(),
            hint: Some(Hint::Text(
                format!("build with the feature {}", self.id).into(),
            )),
        })
    }

    fn open(&self, _: Arc<dyn BlockSource>, _: &Request<'_>) -> Result<Box<dyn Image>> {
        Err(self.absent().unwrap_or(Error::Unrecognized))
    }
}

#[cfg(not(feature = "qcow2"))]
pub(super) static QCOW2: Off = Off::new("qcow2", &[], |window| {
    window.has(0, b"QFI\xfb") && !window.has(4, b"\0\0\0\x01")
});

#[cfg(not(feature = "qcow"))]
pub(super) static QCOW: Off = Off::new("qcow", &["qcow1"], |window| {
    window.has(0, b"QFI\xfb\0\0\0\x01")
});

#[cfg(not(feature = "qed"))]
pub(super) static QED: Off = Off::new("qed", &[], |window| window.has(0, b"QED\0"));

#[cfg(not(feature = "vdi"))]
pub(super) static VDI: Off = Off::new("vdi", &[], |window| window.has(64, b"\x7f\x10\xda\xbe"));

#[cfg(not(feature = "vhdx"))]
pub(super) static VHDX: Off = Off::new("vhdx", &["avhdx"], |window| window.has(0, b"vhdxfile"));

#[cfg(not(feature = "vhd"))]
pub(super) static VHD: Off = Off::new("vhd", &["vpc"], |window| {
    let ends = |distance| window.from_end(distance, 8) == Some(b"conectix");
    window.has(0, b"conectix") || ends(512) || ends(511)
});

#[cfg(not(feature = "vmdk"))]
pub(super) static VMDK: Off = Off::new("vmdk", &[], |window| {
    let magics: [&[u8]; 4] = [
        b"KDMV",
        b"COWD",
        b"\xbe\xba\xfe\xca\0\0\0\0",
        b"\xa2\x72\x19\xf6",
    ];
    magics.iter().any(|magic| window.has(0, magic))
        || (window.has(0, b"#") && mentions(window, b"# Disk DescriptorFile"))
});

#[cfg(not(feature = "parallels"))]
pub(super) static PARALLELS: Off = Off::new("parallels", &[], |window| {
    window.has(0, b"WithoutFreeSpace")
        || window.has(0, b"WithouFreSpacExt")
        || (window.has(0, b"<") && mentions(window, b"<Parallels_disk_image"))
});

#[cfg(not(feature = "ova"))]
pub(super) static OVA: Off = Off::new("ova", &["ovf"], |window| {
    let archive = window.has(257, b"ustar") && mentions(window, b".ovf\0");
    archive || (window.has(0, b"<") && mentions(window, b"Envelope") && mentions(window, b"ovf"))
});

/// Returns true if the first 4 KiB hold these letters.
#[cfg(not(all(feature = "vmdk", feature = "parallels", feature = "ova")))]
fn mentions(window: &Probe<'_>, word: &[u8]) -> bool {
    let head = window.head.get(..4096).unwrap_or(window.head);
    let mut places = head.windows(word.len());
    places.any(|place| place.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::formats::Formats;
    use crate::storage::Memory;
    use crate::{Error, OpenOptions};

    #[test]
    fn a_format_that_is_not_built_in_is_refused_with_the_name_of_its_feature() {
        let at = |offset: usize, magic: &[u8]| {
            let mut file = vec![0; 4096];
            file[offset..offset + magic.len()].copy_from_slice(magic);
            file
        };
        let mut archive = at(0, b"disk.ovf");
        archive[257..262].copy_from_slice(b"ustar");
        let files = [
            ("qcow2", at(0, b"QFI\xfb\0\0\0\x03")),
            ("qcow", at(0, b"QFI\xfb\0\0\0\x01")),
            ("qed", at(0, b"QED\0")),
            ("vdi", at(64, b"\x7f\x10\xda\xbe")),
            ("vhdx", at(0, b"vhdxfile")),
            ("vhd", at(4096 - 512, b"conectix")),
            ("vmdk", at(0, b"KDMV")),
            ("vmdk", at(0, b"# Disk DescriptorFile\n")),
            ("parallels", at(0, b"WithoutFreeSpace")),
            ("parallels", at(0, b"<Parallels_disk_image")),
            ("ova", archive),
            (
                "ova",
                at(
                    0,
                    b"<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/1'>",
                ),
            ),
        ];
        for (name, file) in files {
            if !format!("{:?}", Formats::all().by_name(name).unwrap()).starts_with("Off") {
                continue;
            }
            let error = OpenOptions::new()
                .open(Arc::new(Memory::new(file)))
                .unwrap_err();
            assert!(
                matches!(&error, Error::Unsupported { format, .. } if format.as_str() == name),
                "{name}: {error}"
            );
            let hint = error.hint().unwrap().to_string();
            assert_eq!(hint, format!("build with the feature {name}"));
        }
    }
}
