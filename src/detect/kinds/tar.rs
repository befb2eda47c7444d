//! Archives of tar (POSIX, "ustar Interchange Format"; GNU tar, "Basic Tar Format"), and what is known
//! by the names in one: XVA, images of containers.

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::name::{ImageName, is_apple_double};
use crate::ondisk::{be, on_disk, until_nul};

use super::look::{Look, of_unknown_size, with_details};
use super::{Family, Found, Kind, found};

const TAR: FormatId = FormatId::new("tar");

static PLAIN: Kind = Kind::other("tar", "tar archive", describe);
static XVA: Kind = Kind::image("xva", "virtual machine of XenServer", describe_machine);
static DOCKER: Kind = Kind::other("docker-archive", "container image of docker save", describe);
static OCI: Kind = Kind::other("oci-archive", "container image in OCI layout", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&PLAIN, &XVA, &DOCKER, &OCI],
    probe,
};

const BLOCK: u64 = 512;
/// Members that are told.
const MEMBERS: usize = 16;
/// Headers that are read to find them.
const HEADERS: usize = 64;
/// Bytes that are read of an extended header for a member's name.
const NAME_LEN: usize = 4096;

on_disk! {
    /// The header of a member.
    struct Header in TAR, "header", Big, 512 bytes {
        name: [u8; 100] = 0,
        mode: [u8; 8] = 100,
        size: [u8; 12] = 124,
        chksum: [u8; 8] = 148,
        typeflag: u8 = 156,
        magic: [u8; 6] = 257,
        prefix: [u8; 155] = 345,
    }
}

/// A member, as far as its own header tells.
struct Member {
    name: Vec<u8>,
    size: u64,
    typeflag: u8,
    /// Offset of the next header.
    next: u64,
}

impl Member {
    /// The member whose header stands at byte `at` of the file; `None` if there is none.
    fn parse(bytes: &[u8], at: u64) -> Option<Self> {
        let bytes = bytes.get(..Header::LEN)?;
        let header = Header::parse(bytes, at).ok()?;
        let sum = |byte: fn(u8) -> i64| {
            let before = bytes.iter().take(148).chain(bytes.iter().skip(156));
            before.map(|b| byte(*b)).sum::<i64>() + 8 * i64::from(b' ')
        };
        let stated = i64::try_from(octal(&header.chksum)?).ok()?;
        // Some old writers added the bytes as signed numbers.
        if header.name.first() == Some(&0)
            || (stated != sum(i64::from) && stated != sum(|b| i64::from(i8::from_ne_bytes([b]))))
        {
            return None;
        }
        let size = number(&header.size)?;
        let mut name = until_nul(&header.name).to_vec();
        let prefix = until_nul(&header.prefix);
        if &header.magic == b"ustar\0" && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        // Links and directories have no content, whatever their size.
        let content = if matches!(header.typeflag, b'1'..=b'6') {
            0
        } else {
            size
        };
        let next = content.checked_next_multiple_of(BLOCK)?;
        let next = at.checked_add(BLOCK)?.checked_add(next)?;
        Some(Member {
            name,
            size: content,
            typeflag: header.typeflag,
            next,
        })
    }

    /// Returns whether this is a member, and not an extended header.
    fn is_real(&self) -> bool {
        !matches!(self.typeflag, b'x' | b'g' | b'L' | b'K' | b'V')
    }

    /// The name without what says that it is relative.
    fn plain_name(&self) -> &[u8] {
        self.name.strip_prefix(b"./").unwrap_or(&self.name)
    }
}

/// A number in octal digits, with blanks around.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = until_nul(field).trim_ascii();
    let digits = std::str::from_utf8(digits).ok()?;
    match digits.is_empty() {
        true => Some(0),
        false => u64::from_str_radix(digits, 8).ok(),
    }
}

/// The same, or GNU's number in binary that a first bit announces.
fn number(field: &[u8; 12]) -> Option<u64> {
    if field.first()? & 0x80 == 0 {
        return octal(field);
    }
    let (high, low) = field.split_at_checked(4)?;
    let fits = high.iter().skip(1).all(|byte| *byte == 0) && high.first() == Some(&0x80);
    fits.then(|| be(low, 0))?
}

/// The members of a file of which `read` has the bytes at an offset, as many as are asked for or as
/// there are. What stands before a member to tell its name has told it.
fn members(read: impl Fn(u64, usize) -> Result<Vec<u8>>) -> impl Iterator<Item = Result<Member>> {
    let mut at = 0_u64;
    let mut told = None;
    let mut headers = 0..HEADERS;
    let mut next = move || -> Result<Option<Member>> {
        while headers.next().is_some() {
            let Some(mut member) = Member::parse(&read(at, Header::LEN)?, at) else {
                return Ok(None);
            };
            let content = || {
                let len = usize::try_from(member.size).unwrap_or(NAME_LEN);
                read(at.saturating_add(BLOCK), len.min(NAME_LEN))
            };
            match member.typeflag {
                b'L' => told = Some(until_nul(&content()?).to_vec()),
                b'x' => told = pax_path(&content()?).or(told.take()),
                _ => {}
            }
            at = member.next;
            if member.is_real() {
                member.name = told.take().unwrap_or(member.name);
                return Ok(Some(member));
            }
        }
        Ok(None)
    };
    std::iter::from_fn(move || next().transpose())
}

/// The name in the records of pax (POSIX, "pax Extended Header"): a length, a key and a value each.
fn pax_path(records: &[u8]) -> Option<Vec<u8>> {
    let mut rest = records;
    loop {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let len = std::str::from_utf8(rest.get(..digits)?).ok()?;
        let (record, next) = rest.split_at_checked(len.parse().ok()?)?;
        let record = record.get(digits..)?.strip_suffix(b"\n")?;
        if let Some(path) = record.strip_prefix(b" path=") {
            return Some(path.to_vec());
        }
        rest = next;
    }
}

fn probe(window: &Probe<'_>) -> Option<Found> {
    Member::parse(window.head, 0)?;
    let members: Vec<Member> = members(|at, len| {
        let rest = usize::try_from(at)
            .ok()
            .and_then(|at| window.head.get(at..));
        let rest = rest.unwrap_or_default();
        Ok(rest.get(..len).unwrap_or(rest).to_vec())
    })
    .map_while(Result::ok)
    .collect();
    let files = members.iter().filter(|member| member.typeflag != b'5');
    let mut names = files.map(Member::plain_name);
    let name = names.find(|name| !is_apple_double(name) && !name.ends_with(b"/"));
    let name = name.unwrap_or_default();
    if name.to_ascii_lowercase().ends_with(b".ovf") {
        // It is an appliance, which is read.
        return None;
    }
    if name == b"ova.xml" {
        return found(&XVA, "a tar archive that begins with ova.xml", 0);
    }
    let mut names = members.iter().map(Member::plain_name);
    match names.find_map(container) {
        Some(found) => Some(found),
        None => found(&PLAIN, "the checksum of a tar header", 148),
    }
}

/// Kind of container image that has a member of this name.
fn container(name: &[u8]) -> Option<Found> {
    if name == b"oci-layout" || name.starts_with(b"blobs/") {
        return found(&OCI, "a tar archive with the names of an OCI layout", 0);
    }
    let is_layer = name.split_at_checked(64).is_some_and(|(hex, rest)| {
        hex.iter().all(u8::is_ascii_hexdigit)
            && (rest.starts_with(b"/") || rest == b".json" || rest == b".tar")
    });
    if is_layer || name == b"manifest.json" || name == b"repositories" {
        return found(&DOCKER, "a tar archive with the names of docker save", 0);
    }
    None
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    Ok(with_details(details(look)?))
}

fn describe_machine(look: &Look<'_>) -> Result<ImageInfo> {
    Ok(of_unknown_size(details(look)?))
}

/// The first members: their headers are wherever the ones before end.
fn details(look: &Look<'_>) -> Result<Value> {
    let mut told = Vec::new();
    for member in members(|at, len| look.read(at, len)).take(MEMBERS) {
        let member = member?;
        let mut entry = Value::map();
        entry.insert("name", ImageName::new(member.plain_name()));
        entry.insert("size", member.size);
        told.push(entry);
    }
    let mut details = Value::map();
    details.insert("first-members", told);
    Ok(details)
}
