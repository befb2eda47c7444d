//! Files that are packed as a whole, by their signatures, and what begins in them.
//!
//! Of a packed file no more is unpacked than the window that detection sees, out of a bounded piece of
//! it, with a bounded dictionary. What cannot be unpacked is not an error: the wrapper is named alone.

use std::io::{Read, Seek, SeekFrom};

use crate::error::Result;
use crate::image::{ImageInfo, Probe, Value};
use crate::name::ImageName;
use crate::ondisk::le;
use crate::storage::SourceReader;

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found};

static GZIP: Kind = Kind::packed("gzip", "gzip file", |look| {
    let mut details = Value::map();
    if let Some(name) = gzip_name(look.window.head) {
        details.insert("name", name);
    }
    describe(look, Codec::Gzip, details)
});
static XZ: Kind = Kind::packed("xz", "xz file", |look| {
    describe(look, Codec::Xz, Value::map())
});
static BZIP2: Kind = Kind::packed("bzip2", "bzip2 file", |look| {
    describe(look, Codec::Bzip2, Value::map())
});
static ZSTD: Kind = Kind::packed("zstd", "Zstandard file", |look| {
    let mut details = Value::map();
    let seekable = look.window.from_end(4, 4) == Some(&SEEKABLE.to_le_bytes());
    details.insert("seekable", seekable);
    describe(look, Codec::Zstd, details)
});
static LZ4: Kind = Kind::packed("lz4", "lz4 file", |look| {
    let mut details = Value::map();
    details.insert("legacy", look.window.has(0, LZ4_LEGACY_MAGIC));
    describe(look, Codec::Lz4, details)
});
static LZMA: Kind = Kind::packed("lzma", "lzma file", |look| {
    describe(look, Codec::Lzma, Value::map())
});
static LZIP: Kind = Kind::packed("lzip", "lzip file", name_alone);
static LZOP: Kind = Kind::packed("lzop", "lzop file", name_alone);
static COMPRESS: Kind = Kind::packed("compress", "file of compress", name_alone);
static SEVEN_ZIP: Kind = Kind::packed("7z", "7z archive", name_alone);

pub(super) const FAMILY: Family = Family {
    kinds: &[
        &GZIP, &XZ, &BZIP2, &ZSTD, &LZ4, &LZMA, &LZIP, &LZOP, &COMPRESS, &SEVEN_ZIP,
    ],
    probe,
};

const ZSTD_MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";
const LZ4_MAGIC: &[u8] = b"\x04\x22\x4d\x18";
const LZ4_LEGACY_MAGIC: &[u8] = b"\x02\x21\x4c\x18";
/// What ends a file in Zstandard's seekable format.
const SEEKABLE: u32 = 0x8f92_eab1;

/// How much of a packed file is read to unpack its start: a block of the largest kind (lz4's, in its
/// legacy form), and a bit.
const MOST_PACKED: u64 = 9 << 20;

/// How something is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// Not at all.
    Stored,
    /// Deflate without a header, as ZIP has it.
    Deflate,
    Gzip,
    Xz,
    Bzip2,
    Zstd,
    Lz4,
    Lzma,
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    let starts = |magic: &[u8]| window.has(0, magic);
    // Of a whole header more is known than its first bytes.
    if starts(b"\x1f\x8b\x08") && window.head.get(3).is_some_and(|flags| flags & 0xe0 == 0) {
        return found(&GZIP, "1f 8b 08", 0);
    }
    if starts(b"\xfd7zXZ\0") {
        return found(&XZ, "fd 7zXZ 00", 0);
    }
    let level = window.head.get(3).is_some_and(u8::is_ascii_digit);
    let block = [&b"1AY&SY"[..], b"\x17\x72\x45\x38\x50\x90"];
    if starts(b"BZh") && level && block.iter().any(|magic| window.has(4, magic)) {
        return found(&BZIP2, "BZh", 0);
    }
    if starts(LZ4_MAGIC) {
        return found(&LZ4, "04 22 4d 18", 0);
    }
    if starts(LZ4_LEGACY_MAGIC) {
        return found(&LZ4, "02 21 4c 18", 0);
    }
    if starts(b"LZIP\x01") {
        return found(&LZIP, "LZIP", 0);
    }
    if starts(b"\x89LZO\0\x0d\x0a\x1a\x0a") {
        return found(&LZOP, "89 LZO", 0);
    }
    if starts(b"7z\xbc\xaf\x27\x1c") {
        return found(&SEVEN_ZIP, "7z bc af 27 1c", 0);
    }
    if starts(b"\x1f\x9d") && matches!(window.head.get(2), Some(0x89..=0x90)) {
        return found(&COMPRESS, "1f 9d", 0);
    }
    if is_lzma(window.head) {
        return found(&LZMA, "5d 00", 0);
    }
    zstd(window)
}

/// A frame of Zstandard, behind any number of frames that are to be skipped.
fn zstd(window: &Probe<'_>) -> Option<Found> {
    let mut at = 0_usize;
    loop {
        let rest = window.head.get(at..).unwrap_or_default();
        if rest.starts_with(ZSTD_MAGIC) {
            return found(&ZSTD, "28 b5 2f fd", at as u64);
        }
        let skippable =
            rest.get(1..4) == Some(b"\x2a\x4d\x18") && rest.first().is_some_and(|b| b >> 4 == 5);
        if !skippable {
            // What lies behind the window is not seen.
            let unseen = at > 0 && rest.is_empty() && at as u64 <= window.size;
            return unseen
                .then(|| found(&ZSTD, "a skippable frame", 0))
                .flatten();
        }
        let len = usize::try_from(le::<u32>(rest, 4)?).ok()?;
        at = at.checked_add(8)?.checked_add(len)?;
    }
}

/// Whether a file is of the old kind of LZMA, which has no signature: properties as everybody writes
/// them, a dictionary of a size that encoders make, a size that can be, and the first byte of what is
/// packed, which is 0.
fn is_lzma(head: &[u8]) -> bool {
    let dictionary = le::<u32>(head, 1).unwrap_or(0);
    let size = le::<u64>(head, 5).unwrap_or(0);
    let low = dictionary.trailing_zeros();
    let is_usual = dictionary >> low.min(31) == 1 || dictionary >> low.min(31) == 3;
    head.first() == Some(&0x5d)
        && dictionary >= 4096
        && (is_usual || dictionary == u32::MAX)
        && (size == u64::MAX || (size > 0 && size < 1 << 40))
        && head.get(13) == Some(&0)
}

/// The name of the file that was packed (RFC 1952, section 2.3.1).
fn gzip_name(head: &[u8]) -> Option<ImageName> {
    const FEXTRA: u8 = 4;
    const FNAME: u8 = 8;
    const MOST: usize = 256;
    let flags = *head.get(3)?;
    let mut at = 10;
    if flags & FEXTRA != 0 {
        at += 2 + usize::from(le::<u16>(head, at)?);
    }
    let rest = head.get(at..).filter(|_| flags & FNAME != 0)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    let name = rest.get(..end.min(MOST))?;
    Some(ImageName::from(name))
}

fn name_alone(_: &Look<'_>) -> Result<ImageInfo> {
    Ok(with_details(Value::map()))
}

fn describe(look: &Look<'_>, codec: Codec, mut details: Value) -> Result<ImageInfo> {
    let mut warnings = Vec::new();
    match codec.feature() {
        Some(feature) => warnings.push(format!(
            "what is inside was not looked at: this was built without {feature}"
        )),
        None => {
            let unpacked = first_bytes(look, 0, codec);
            if let Some(inside) = look.inside(&unpacked) {
                details.insert("inside", inside);
            }
        }
    }
    let mut info = with_details(details);
    info.warnings = warnings;
    Ok(info)
}

impl Codec {
    /// The feature that this build would need to unpack it.
    fn feature(self) -> Option<&'static str> {
        match self {
            Codec::Deflate | Codec::Gzip if cfg!(not(feature = "zlib")) => Some("zlib"),
            Codec::Zstd if cfg!(not(feature = "zstd")) => Some("zstd"),
            Codec::Xz | Codec::Bzip2 | Codec::Lz4 | Codec::Lzma if cfg!(not(feature = "peek")) => {
                Some("peek")
            }
            _ => None,
        }
    }
}

/// The first bytes of what is packed at `at` in the file, as many as detection looks at; fewer, or
/// none, where it is damaged or more is needed than is granted.
pub(super) fn first_bytes(look: &Look<'_>, at: u64, codec: Codec) -> Vec<u8> {
    let mut reader = SourceReader::new(look.file);
    if reader.seek(SeekFrom::Start(at)).is_err() {
        return Vec::new();
    }
    codec.unpack(reader.take(MOST_PACKED))
}

impl Codec {
    #[cfg_attr(
        not(all(feature = "zlib", feature = "zstd", feature = "peek")),
        allow(clippy::match_same_arms, reason = "what is not built is not unpacked")
    )]
    fn unpack(self, packed: impl Read) -> Vec<u8> {
        match self {
            Codec::Stored => fill(packed),
            #[cfg(feature = "zlib")]
            Codec::Deflate => fill(flate2::read::DeflateDecoder::new(packed)),
            #[cfg(feature = "zlib")]
            Codec::Gzip => fill(flate2::read::GzDecoder::new(packed)),
            #[cfg(feature = "zstd")]
            Codec::Zstd => {
                const WINDOW_LOG: u32 = 27;
                let decoder = zstd::stream::read::Decoder::new(packed);
                let decoder = decoder.and_then(|mut decoder| {
                    decoder.window_log_max(WINDOW_LOG)?;
                    Ok(decoder)
                });
                decoder.map_or(Vec::new(), fill)
            }
            #[cfg(feature = "peek")]
            Codec::Xz => fill(lzma_rust2::XzReader::new_mem_limit(packed, false, LZMA_KIB)),
            #[cfg(feature = "peek")]
            Codec::Lzma => lzma_rust2::LzmaReader::new_mem_limit(packed, LZMA_KIB, None)
                .map_or(Vec::new(), fill),
            #[cfg(feature = "peek")]
            Codec::Bzip2 => fill(bzip2_rs::DecoderReader::new(packed)),
            #[cfg(feature = "peek")]
            Codec::Lz4 => fill(lz4_flex::frame::FrameDecoder::new(packed)),
            #[cfg(not(all(feature = "zlib", feature = "zstd", feature = "peek")))]
            _ => Vec::new(),
        }
    }
}

/// What unpacking xz and lzma may take, in KiB: a bit more than their largest preset.
#[cfg(feature = "peek")]
const LZMA_KIB: u32 = 72 << 10;

/// Reads a window's worth, or what there is before something is wrong.
fn fill(mut reader: impl Read) -> Vec<u8> {
    let mut bytes = vec![0; Probe::HEAD];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) | Err(_) => break,
            Ok(n) => done += n,
        }
    }
    bytes.truncate(done);
    bytes
}
