//! Compressed files, by their signatures, and the start of their content.
//!
//! Only the window that detection sees is decompressed, out of a bounded piece of the file and with a bounded
//! dictionary. If that fails, only the wrapper is described.

use std::io::{Read, Seek, SeekFrom};

use crate::detect::magic::{self, Magic, Told};
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
    details.insert("legacy", magic::LZ4_LEGACY.is_start(look.window.head));
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

/// Magic at the end of a file in Zstandard's seekable format.
const SEEKABLE: u32 = 0x8f92_eab1;

/// Bytes of a compressed file that are read to decompress its start: a block of the largest kind (lz4's, in its
/// legacy form), and a bit.
const MOST_PACKED: u64 = 9 << 20;

/// Compression of a file.
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

/// Kinds that their signature alone tells.
static PLAIN: [(&Magic, &Kind); 7] = [
    (&magic::GZIP, &GZIP),
    (&magic::XZ, &XZ),
    (&magic::LZ4, &LZ4),
    (&magic::LZ4_LEGACY, &LZ4),
    (&magic::LZIP, &LZIP),
    (&magic::LZOP, &LZOP),
    (&magic::SEVEN_ZIP, &SEVEN_ZIP),
];

fn probe(window: &Probe<'_>) -> Option<Found> {
    let head = window.head;
    if let Some((magic, kind)) = PLAIN.iter().find(|(magic, _)| magic.is_start(head)) {
        return found(kind, magic.text, 0);
    }
    let level = head.get(3).is_some_and(u8::is_ascii_digit);
    let block = [&b"1AY&SY"[..], b"\x17\x72\x45\x38\x50\x90"];
    if magic::BZIP2.is_start(head) && level && block.iter().any(|magic| window.has(4, magic)) {
        return found(&BZIP2, magic::BZIP2.text, 0);
    }
    if magic::COMPRESS.is_start(head) && matches!(head.get(2), Some(0x89..=0x90)) {
        return found(&COMPRESS, magic::COMPRESS.text, 0);
    }
    if is_lzma(head) {
        return found(&LZMA, "5d 00", 0);
    }
    match magic::zstd_told_by(head) {
        Told::At(at) => found(&ZSTD, magic::ZSTD.text, at as u64),
        // The frame behind them is not in the window.
        Told::Skips(_) => found(&ZSTD, magic::ZSTD_SKIPPABLE.text, 0),
        _ => None,
    }
}

/// Recognises the old kind of LZMA, which has no signature, by its properties as all encoders write
/// them, a dictionary of a usual size, a possible file size, and the first compressed
/// byte, which is 0.
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

/// The name of the original file (RFC 1952, section 2.3.1).
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
            Codec::Xz if cfg!(not(feature = "xz")) => Some("xz"),
            Codec::Bzip2 | Codec::Lz4 | Codec::Lzma if cfg!(not(feature = "peek")) => Some("peek"),
            _ => None,
        }
    }
}

/// Decompresses the data at `at` in the file, as many bytes as detection looks at. Fewer bytes, or none, come
/// from damaged data and from data that needs too much memory.
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
            #[cfg(feature = "xz")]
            Codec::Xz => xz(packed),
            #[cfg(feature = "peek")]
            Codec::Lzma => lzma_rust2::LzmaReader::new_mem_limit(packed, LZMA_KIB, None)
                .map_or(Vec::new(), fill),
            #[cfg(feature = "peek")]
            Codec::Bzip2 => fill(bzip2::read::BzDecoder::new(packed)),
            #[cfg(feature = "peek")]
            Codec::Lz4 => fill(lz4_flex::frame::FrameDecoder::new(packed)),
            #[cfg(not(all(feature = "zlib", feature = "zstd", feature = "peek")))]
            _ => Vec::new(),
        }
    }
}

/// Memory that unpacking lzma may take, in KiB: a bit more than its largest preset needs.
#[cfg(feature = "peek")]
const LZMA_KIB: u32 = 72 << 10;

/// Unpacks the start of an xz stream, as [`fill`] does.
#[cfg(feature = "xz")]
fn xz(mut packed: impl Read) -> Vec<u8> {
    /// The dictionary of the largest preset.
    const DICTIONARY: usize = 64 << 20;
    let mut decoder = xz4rust::XzDecoder::with_alloc_dict_size(4096, DICTIONARY);
    let mut input = vec![0; 32 << 10];
    let mut bytes = vec![0; Probe::HEAD];
    let mut done = 0;
    'stream: while let Ok(n @ 1..) = packed.read(&mut input) {
        let mut piece = input.get(..n).unwrap_or_default();
        while !piece.is_empty() {
            let room = bytes.get_mut(done..).unwrap_or_default();
            let Ok(step) = decoder.decode(piece, room) else {
                break 'stream;
            };
            done += step.output_produced();
            piece = piece.get(step.input_consumed()..).unwrap_or_default();
            if step.is_end_of_stream() || !step.made_progress() || done == bytes.len() {
                break 'stream;
            }
        }
    }
    bytes.truncate(done);
    bytes
}

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
