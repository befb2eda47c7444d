//! Archives of cpio: what the kernel takes as its first root (cpio(5); Linux,
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use crate::error::Result;
use crate::image::{ImageInfo, Probe, Value};
use crate::name::ImageName;
use crate::ondisk::{FieldType, Order, until_nul};

use super::look::{Look, with_details};
use super::{Family, Found, Kind, found};

static KIND: Kind = Kind::other("cpio", "cpio archive", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

/// Members that are looked at to find the end of the first archive.
const MEMBERS: usize = 1000;
/// Names that are told.
const NAMES: usize = 16;
/// Longest name that is told, in bytes.
const NAME_LEN: u64 = 256;
/// Largest gap between two archives.
const GAP: usize = 4096;
const END: &[u8] = b"TRAILER!!!";
/// Path of early microcode.
const MICROCODE: &[u8] = b"kernel/x86/microcode/";

/// The variants by how they begin, with their names.
const VARIANTS: [(&[u8], &str, &str); 5] = [
    (b"070701", "070701", "newc"),
    (b"070702", "070702", "crc"),
    (b"070707", "070707", "odc"),
    (b"\xc7\x71", "c7 71", "binary, little-endian"),
    (b"\x71\xc7", "71 c7", "binary, big-endian"),
];

/// A member: its name, and where the next header is.
struct Member {
    name: Vec<u8>,
    next: u64,
}

/// Reads the member whose header is at an offset; `None` if there is none.
type Walk = fn(&Look<'_>, u64) -> Result<Option<Member>>;

fn probe(window: &Probe<'_>) -> Option<Found> {
    let mut variants = VARIANTS.iter();
    let (magic, what, _) = variants.find(|(magic, _, _)| window.has(0, magic))?;
    // Two bytes are no evidence without a header that makes sense behind them.
    let fits = match *magic {
        b"\xc7\x71" => is_binary(window, Order::Little),
        b"\x71\xc7" => is_binary(window, Order::Big),
        _ => {
            let digits = window.at(6, 70).unwrap_or_default();
            digits.len() == 70 && digits.iter().all(u8::is_ascii_hexdigit)
        }
    };
    fits.then(|| found(&KIND, what, 0)).flatten()
}

/// Checks a header of the old kind: the name's length and the NUL at its end.
fn is_binary(window: &Probe<'_>, order: Order) -> bool {
    let len = window.at(20, 2).and_then(|raw| u16::get(raw, 0, order));
    let len = usize::from(len.unwrap_or(0));
    let name = window.at(26, len).unwrap_or_default();
    (2..4096).contains(&len) && name.iter().position(|byte| *byte == 0) == Some(len - 1)
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let head = look.window.head;
    let mut variants = VARIANTS.iter();
    let variant = variants.find(|(magic, _, _)| head.starts_with(magic));
    let (magic, _, name) = variant.copied().unwrap_or((b"", "", ""));
    let mut details = Value::map();
    details.insert("variant", name);
    let walk: Option<Walk> = match magic {
        b"070701" | b"070702" => Some(new_member),
        b"070707" => Some(old_member),
        _ => None,
    };
    let Some(walk) = walk else {
        return Ok(with_details(details));
    };
    let mut names = Vec::new();
    let mut microcode = false;
    let mut at = 0;
    let mut end = None;
    for _ in 0..MEMBERS {
        let Some(member) = walk(look, at)? else {
            break;
        };
        at = member.next;
        if member.name == END {
            end = Some(at);
            break;
        }
        microcode |= member.name.starts_with(MICROCODE);
        if names.len() < NAMES {
            names.push(Value::from(ImageName::new(member.name)));
        }
    }
    details.insert("first-members", names);
    details.insert("microcode", microcode);
    if let Some(end) = end {
        follow(look, end, &mut details)?;
    }
    Ok(with_details(details))
}

/// Tells what comes behind the first archive, which is where most of an initial root is: zeros pad it.
fn follow(look: &Look<'_>, end: u64, details: &mut Value) -> Result<()> {
    let bytes = look.read(end, GAP + Probe::HEAD)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    if zeros > GAP || zeros == bytes.len() {
        return Ok(());
    }
    let rest = bytes.get(zeros..).unwrap_or_default();
    if let Some(inside) = look.inside(rest) {
        details.insert("next-at", end.saturating_add(zeros as u64));
        details.insert("next", inside);
    }
    Ok(())
}

/// A member of the new kinds: numbers of eight hexadecimal digits, and parts padded to four bytes.
fn new_member(look: &Look<'_>, at: u64) -> Result<Option<Member>> {
    let header = look.read(at, 110)?;
    let digits = |index: usize| number(&header, 6 + index * 8, 8, 16);
    if !header.starts_with(b"07070") {
        return Ok(None);
    }
    let (Some(size), Some(name_len)) = (digits(6), digits(11)) else {
        return Ok(None);
    };
    let name = name(look, at + 110, name_len)?;
    let next = (at + 110)
        .checked_add(name_len)
        .and_then(|end| end.checked_next_multiple_of(4))
        .and_then(|start| start.checked_add(size))
        .and_then(|end| end.checked_next_multiple_of(4));
    Ok(next.map(|next| Member { name, next }))
}

/// A member of the portable old kind: octal digits, and nothing padded.
fn old_member(look: &Look<'_>, at: u64) -> Result<Option<Member>> {
    let header = look.read(at, 76)?;
    let name_len = number(&header, 59, 6, 8);
    let size = number(&header, 65, 11, 8);
    let (true, Some(size), Some(name_len)) = (header.starts_with(b"070707"), size, name_len) else {
        return Ok(None);
    };
    let name = name(look, at + 76, name_len)?;
    let next = (at + 76)
        .checked_add(name_len)
        .and_then(|start| start.checked_add(size));
    Ok(next.map(|next| Member { name, next }))
}

fn name(look: &Look<'_>, at: u64, len: u64) -> Result<Vec<u8>> {
    let len = usize::try_from(len.min(NAME_LEN)).unwrap_or(0);
    Ok(until_nul(&look.read(at, len)?).to_vec())
}

fn number(bytes: &[u8], at: usize, len: usize, radix: u32) -> Option<u64> {
    let digits = std::str::from_utf8(bytes.get(at..at + len)?).ok()?;
    u64::from_str_radix(digits, radix).ok()
}
