//! ZIP archives (PKWARE, "APPNOTE.TXT - .ZIP File Format Specification"), and AFF4, which is one.

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{Probe, Value};
use crate::name::ImageName;
use crate::ondisk::on_disk;

use super::look::{Look, of_unknown_size, with_details};
use super::packed::{Codec, first_bytes};
use super::{Family, Found, Kind, found};

const ZIP: FormatId = FormatId::new("zip");

static PLAIN: Kind = Kind::packed("zip", "ZIP archive", |look| {
    let mut details = members(look)?;
    if let Some(inside) = inside(look) {
        details.insert("inside", inside);
    }
    Ok(with_details(details))
});
static AFF4: Kind = Kind::image("aff4", "Advanced Forensic Format 4", |look| {
    Ok(of_unknown_size(members(look)?))
});

pub(super) const FAMILY: Family = Family {
    kinds: &[&PLAIN, &AFF4],
    probe,
};

const LOCAL: &[u8; 4] = b"PK\x03\x04";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const END: &[u8; 4] = b"PK\x05\x06";
const SPANNED: &[u8; 8] = b"PK\x07\x08PK\x03\x04";

/// Names that are told.
const NAMES: usize = 16;
/// Largest piece of the central directory that is read for them, in bytes.
const DIRECTORY: usize = 64 << 10;
/// A field that says that the number is elsewhere (ZIP64).
const ELSEWHERE: u32 = u32::MAX;

on_disk! {
    /// 4.3.7, "Local file header".
    struct Local in ZIP, "local file header", Little, 30 bytes {
        signature: [u8; 4] = 0,
        version: u16 = 4,
        flags: u16 = 6,
        method: u16 = 8,
        compressed_size: u32 = 18,
        uncompressed_size: u32 = 22,
        name_len: u16 = 26,
        extra_len: u16 = 28,
    }
}

on_disk! {
    /// 4.3.12, "Central directory structure", a file header.
    struct Central in ZIP, "central directory", Little, 46 bytes {
        signature: [u8; 4] = 0,
        uncompressed_size: u32 = 24,
        name_len: u16 = 28,
        extra_len: u16 = 30,
        comment_len: u16 = 32,
    }
}

on_disk! {
    /// 4.3.16, "End of central directory record".
    struct End in ZIP, "end of central directory", Little, 22 bytes {
        signature: [u8; 4] = 0,
        entries: u16 = 10,
        size: u32 = 12,
        offset: u32 = 16,
        comment_len: u16 = 20,
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    if window.has(0, END) && window.size <= (End::LEN + usize::from(u16::MAX)) as u64 {
        return found(&PLAIN, "PK 05 06", 0);
    }
    let (at, what) = match window.has(0, SPANNED) {
        true => (4, "PK 07 08"),
        false => (0, "PK 03 04"),
    };
    let (header, name) = local(window.head.get(at..)?)?;
    let first = [&b"container.description"[..], b"information.turtle"];
    if first.contains(&name) {
        return found(&AFF4, "a ZIP archive with the first name of AFF4", 0);
    }
    // The version is tens and ones; no specification has reached 10.0.
    (header.version & 0xff < 100 && !name.is_empty())
        .then(|| found(&PLAIN, what, 0))
        .flatten()
}

/// The header at the start of these bytes, and the name behind it.
fn local(bytes: &[u8]) -> Option<(Local, &[u8])> {
    let header = Local::parse(bytes, 0).ok()?;
    let name = bytes.get(Local::LEN..Local::LEN + usize::from(header.name_len));
    (&header.signature == LOCAL).then_some((header, name?))
}

/// The names in the central directory, which counts; that of the first member, where there is none.
fn members(look: &Look<'_>) -> Result<Value> {
    let mut details = Value::map();
    let mut members = Vec::new();
    if let Some(end) = end(look)? {
        details.insert("members", u32::from(end.entries));
        if end.offset != ELSEWHERE {
            let len = usize::try_from(end.size).map_or(DIRECTORY, |len| len.min(DIRECTORY));
            let directory = look.read(end.offset.into(), len)?;
            let mut rest = directory.as_slice();
            while let Some((member, next)) = central(rest).filter(|_| members.len() < NAMES) {
                members.push(member);
                rest = next;
            }
        }
    } else if let Some((_, name)) = local(look.window.head) {
        let mut entry = Value::map();
        entry.insert("name", ImageName::from(name));
        members.push(entry);
    }
    details.insert("first-members", members);
    Ok(details)
}

/// A member at the start of these bytes of the directory, and what comes after it.
fn central(bytes: &[u8]) -> Option<(Value, &[u8])> {
    let header = Central::parse(bytes, 0).ok()?;
    if &header.signature != CENTRAL {
        return None;
    }
    let (name, rest) = bytes
        .get(Central::LEN..)?
        .split_at_checked(header.name_len.into())?;
    let mut entry = Value::map();
    entry.insert("name", ImageName::from(name));
    if header.uncompressed_size != ELSEWHERE {
        entry.insert("size", header.uncompressed_size);
    }
    let skip = usize::from(header.extra_len) + usize::from(header.comment_len);
    Some((entry, rest.get(skip..)?))
}

/// The record at the end of the file, before its comment.
fn end(look: &Look<'_>) -> Result<Option<End>> {
    let len = End::LEN + usize::from(u16::MAX);
    let start = look.file.size().saturating_sub(len as u64);
    let tail = look.read(start, len)?;
    let mut places = (0..=tail.len().saturating_sub(End::LEN)).rev();
    let record = places.find_map(|at| {
        let bytes = tail.get(at..)?;
        let end = End::parse(bytes, start).ok()?;
        let fits = usize::from(end.comment_len) == bytes.len() - End::LEN;
        (&end.signature == END && fits).then_some(end)
    });
    Ok(record)
}

/// Description of the start of the first member.
fn inside(look: &Look<'_>) -> Option<Value> {
    const ENCRYPTED: u16 = 1;
    let (header, name) = local(look.window.head)?;
    let codec = match header.method {
        0 => Codec::Stored,
        8 => Codec::Deflate,
        93 => Codec::Zstd,
        95 => Codec::Xz,
        _ => return None,
    };
    if header.flags & ENCRYPTED != 0 {
        return None;
    }
    let at = Local::LEN + name.len() + usize::from(header.extra_len);
    let mut bytes = first_bytes(look, at as u64, codec);
    if codec == Codec::Stored {
        // What comes after it is another member's.
        bytes.truncate(usize::try_from(header.compressed_size).unwrap_or(0));
    }
    look.inside(&bytes)
}
