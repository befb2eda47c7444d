//! Signatures of compressed files, each declared once: for detection, for streams and for decoders.

use crate::ondisk::{FieldType, Order};

/// The bytes that a file of a kind begins with.
#[derive(Debug)]
pub(crate) struct Magic {
    bytes: &'static [u8],
    /// The bits that count, of as many of the bytes as are masked.
    mask: &'static [u8],
    /// The signature for a person to read.
    pub(crate) text: &'static str,
}

/// Result of comparing the first bytes of a file with a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    No,
    /// The signature is at this byte.
    At(usize),
    /// All bytes fit so far, and this many are needed.
    Needs(usize),
    /// Skippable frames alone were seen, and this many bytes are needed.
    Skips(usize),
}

/// RFC 1952, section 2.3.1: deflate, and flags of which the upper three are 0.
pub(crate) static GZIP: Magic = Magic {
    mask: b"\xff\xff\xff\xe0",
    ..Magic::new(b"\x1f\x8b\x08\0", "1f 8b 08")
};
pub(crate) static XZ: Magic = Magic::new(b"\xfd7zXZ\0", "fd 7zXZ 00");
pub(super) static BZIP2: Magic = Magic::new(b"BZh", "BZh");
pub(super) static LZ4: Magic = Magic::new(b"\x04\x22\x4d\x18", "04 22 4d 18");
pub(super) static LZ4_LEGACY: Magic = Magic::new(b"\x02\x21\x4c\x18", "02 21 4c 18");
pub(super) static LZIP: Magic = Magic::new(b"LZIP\x01", "LZIP");
pub(super) static LZOP: Magic = Magic::new(b"\x89LZO\0\x0d\x0a\x1a\x0a", "89 LZO");
pub(super) static COMPRESS: Magic = Magic::new(b"\x1f\x9d", "1f 9d");
pub(super) static SEVEN_ZIP: Magic = Magic::new(b"7z\xbc\xaf\x27\x1c", "7z bc af 27 1c");
pub(super) static ZSTD: Magic = Magic::new(b"\x28\xb5\x2f\xfd", "28 b5 2f fd");
/// RFC 8878, section 3.1.2.
pub(super) static ZSTD_SKIPPABLE: Magic = Magic {
    mask: b"\xf0",
    ..Magic::new(b"\x50\x2a\x4d\x18", "a skippable frame")
};

impl Magic {
    const fn new(bytes: &'static [u8], text: &'static str) -> Self {
        let mask = b"";
        Magic { bytes, mask, text }
    }

    pub(super) fn is_start(&self, head: &[u8]) -> bool {
        self.told_by(head) == Told::At(0)
    }

    /// Looks for the signature in the start of a file.
    pub(crate) fn told_by(&self, head: &[u8]) -> Told {
        let masks = self.mask.iter().copied().chain(std::iter::repeat(0xff));
        let mut bytes = self.bytes.iter().zip(head).zip(masks);
        match bytes.all(|((known, byte), mask)| known & mask == byte & mask) {
            false => Told::No,
            true if head.len() < self.bytes.len() => Told::Needs(self.bytes.len()),
            true => Told::At(0),
        }
    }
}

/// Looks for a Zstandard frame in the start of a file, behind any number of skippable ones.
pub(crate) fn zstd_told_by(head: &[u8]) -> Told {
    let needs = |at, len| match at {
        0 => Told::Needs(len),
        at => Told::Skips(len.saturating_add(at)),
    };
    let mut at = 0_usize;
    loop {
        let rest = head.get(at..).unwrap_or_default();
        match (ZSTD.told_by(rest), ZSTD_SKIPPABLE.told_by(rest)) {
            (Told::At(_), _) => return Told::At(at),
            (_, Told::At(_)) => {}
            (Told::No, Told::No) => return Told::No,
            _ => return needs(at, ZSTD.bytes.len()),
        }
        let Some(len) = u32::get(rest, 4, Order::Little) else {
            return needs(at, 8);
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        at = at.saturating_add(8).saturating_add(len);
    }
}
