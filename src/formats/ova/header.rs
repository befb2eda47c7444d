//! The blocks that a tar archive is made of: ustar (POSIX.1-1988), pax (POSIX.1-2001) and the extensions
//! of GNU tar.

use crate::error::{Error, Result};
use crate::name::{ImageName, is_apple_double};
use crate::ondisk::{on_disk, until_nul};

use super::OVA;

/// Unit of everything in an archive, in bytes.
pub(super) const BLOCK: u64 = 512;
pub(super) const BLOCK_LEN: usize = 512;

on_disk! {
    /// `ustar` header block; POSIX.1-1988, section 10.1.1, "Extended tar Format".
    pub(super) struct Header in OVA, "tar header", Big, 512 bytes {
        name: [u8; 100] = 0,
        mode: [u8; 8] = 100,
        uid: [u8; 8] = 108,
        gid: [u8; 8] = 116,
        size: [u8; 12] = 124,
        mtime: [u8; 12] = 136,
        chksum: [u8; 8] = 148,
        typeflag: u8 = 156,
        linkname: [u8; 100] = 157,
        magic: [u8; 6] = 257,
        version: [u8; 2] = 263,
        uname: [u8; 32] = 265,
        gname: [u8; 32] = 297,
        devmajor: [u8; 8] = 329,
        devminor: [u8; 8] = 337,
        prefix: [u8; 155] = 345,
    }
}

on_disk! {
    /// Fields of GNU tar in place of `prefix` in the header of a sparse file; tar.h, `oldgnu_header`.
    pub(super) struct OldGnuHeader in OVA, "tar header", Big, 512 bytes {
        sparse: [u8; 96] = 386,
        is_extended: u8 = 482,
        real_size: [u8; 12] = 483,
    }
}

on_disk! {
    /// tar.h, `sparse_header`.
    pub(super) struct SparseHeader in OVA, "tar sparse header", Big, 512 bytes {
        sparse: [u8; 504] = 0,
        is_extended: u8 = 504,
    }
}

/// Sums the bytes of a header with `chksum` taken for spaces, as unsigned and as signed bytes, which
/// some old archivers took them for.
fn checksums(block: &[u8]) -> (u64, i64) {
    let mut sums = (0_u64, 0_i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        };
        sums.0 += u64::from(byte);
        sums.1 += i64::from(i8::from_ne_bytes([byte]));
    }
    sums
}

/// Returns whether a block is a header: its checksum is the only magic that all of them have.
pub(super) fn has_checksum(block: &[u8], header: &Header) -> bool {
    let (unsigned, signed) = checksums(block);
    let stated = number(&header.chksum);
    stated.is_some_and(|stated| stated == unsigned || i64::try_from(stated) == Ok(signed))
}

/// A number of a header: octal digits, or base 256 where the first bit is set. Nothing at all is 0.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // 0xff begins a negative number.
        let mut value = u64::from(first & 0x7f);
        if value > 0x3f {
            return None;
        }
        for byte in rest {
            value = value
                .checked_mul(256)
                .and_then(|value| value.checked_add(u64::from(*byte)))?;
        }
        return Some(value);
    }
    let digits = until_nul(field).trim_ascii();
    let mut value = 0_u64;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// The name of the first file, if the start of a file shows an archive and as much of it. Folders stand
/// before what is in them.
pub(super) fn first_name(head: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0_usize;
    let mut extended: Option<Vec<u8>> = None;
    // A few extended headers may stand before the member that they speak of.
    for _ in 0..16 {
        let block = head.get(at..at.checked_add(BLOCK_LEN)?)?;
        let header = Header::parse(block, 0).ok()?;
        if until_nul(&header.name).is_empty() || !has_checksum(block, &header) {
            return None;
        }
        let size = usize::try_from(number(&header.size)?).ok()?;
        let start = at.checked_add(BLOCK_LEN)?;
        let body = || head.get(start..start.checked_add(size)?);
        match header.typeflag {
            b'x' => {
                let records = pax_records(body()?)?;
                let path = records.iter().rev().find(|(key, _)| *key == b"path");
                extended = path.map(|(_, value)| value.to_vec()).or(extended);
            }
            b'L' => extended = Some(until_nul(body()?).to_vec()),
            b'g' | b'K' => {}
            b'5' => extended = None,
            _ => {
                let name = extended.take().unwrap_or_else(|| name_of(&header));
                // Before there were types a folder was told by its name.
                if !is_apple_double(&name) && !name.ends_with(b"/") {
                    return Some(name);
                }
            }
        }
        at = start.checked_add(size.checked_next_multiple_of(BLOCK_LEN)?)?;
    }
    None
}

/// The name in a header, with its prefix in archives that have one.
pub(super) fn name_of(header: &Header) -> Vec<u8> {
    let name = until_nul(&header.name);
    let prefix = until_nul(&header.prefix);
    match &header.magic == b"ustar\0" && !prefix.is_empty() {
        true => [prefix, b"/", name].concat(),
        false => name.to_vec(),
    }
}

/// The records `LENGTH KEY=VALUE\n` of an extended header; `None` if they are not whole.
pub(super) fn pax_records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let len = decimal(bytes.get(..space)?)?;
        let len = usize::try_from(len).ok()?;
        let record = bytes.get(space.checked_add(1)?..len)?;
        let record = record.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        records.push((record.get(..equals)?, record.get(equals + 1..)?));
        bytes = bytes.get(len..)?;
    }
    Some(records)
}

/// A number in decimal digits and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    text.parse().ok()
}

/// The header of a plain file in a new archive (ustar). Sizes that eleven octal digits cannot hold are
/// written in base 256, as GNU tar and VMware's tools have it.
///
/// # Errors
/// [`Error::InvalidInput`] for a name that does not fit.
pub(super) fn file_header(name: &str, size: u64, mtime: u64) -> Result<Vec<u8>> {
    fn octal<const N: usize>(value: u64) -> [u8; N] {
        let mut field = [0; N];
        let digits = format!("{value:0width$o}", width = N - 1);
        for (to, digit) in field.iter_mut().zip(digits.bytes().take(N - 1)) {
            *to = digit;
        }
        field
    }
    fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
        let mut field = [0; N];
        for (to, byte) in field.iter_mut().zip(text) {
            *to = *byte;
        }
        field
    }
    if name.is_empty() || name.len() > 100 {
        return Err(Error::invalid(format!(
            "a file in the archive cannot be called {}: a name has 1 to 100 bytes",
            ImageName::from(name).quoted()
        )));
    }
    let mut size_field = octal::<12>(size);
    if size >= 1 << 33 {
        size_field = [0; 12];
        for (to, byte) in size_field.iter_mut().skip(4).zip(size.to_be_bytes()) {
            *to = byte;
        }
        if let Some(first) = size_field.first_mut() {
            *first = 0x80;
        }
    }
    let mut header = Header {
        name: padded(name.as_bytes()),
        mode: octal(0o644),
        uid: octal(0),
        gid: octal(0),
        size: size_field,
        mtime: octal(mtime),
        chksum: *b"        ",
        typeflag: b'0',
        linkname: [0; 100],
        magic: *b"ustar\0",
        version: *b"00",
        uname: [0; 32],
        gname: [0; 32],
        devmajor: octal(0),
        devminor: octal(0),
        prefix: [0; 155],
    };
    let (sum, _) = checksums(&header.encode());
    header.chksum = padded(format!("{sum:06o}\0 ").as_bytes());
    Ok(header.encode().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_kind() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"    ", Some(0)),
            (b"0008\0", None),
            (b"-1\0\0", None),
            (b"\x80\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff", None),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff", Some(u64::MAX)),
            (b"\x80\x01\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn a_header_that_is_written_is_read() {
        for size in [0, 1, (1 << 33) - 1, 1 << 33, 1 << 40] {
            let block = file_header("disk.vmdk", size, 1_700_000_000).unwrap();
            let header = Header::parse(&block, 0).unwrap();
            assert!(has_checksum(&block, &header));
            assert_eq!(number(&header.size), Some(size));
            assert_eq!(number(&header.mtime), Some(1_700_000_000));
            assert_eq!(first_name(&block).as_deref(), Some(&b"disk.vmdk"[..]));
        }
        assert!(file_header(&"x".repeat(101), 0, 0).is_err());
    }

    #[test]
    fn records_have_to_be_whole() {
        let records = pax_records(b"13 path=a=b\n\n12 size=100\n").unwrap();
        assert_eq!(records[0], (&b"path"[..], &b"a=b\n"[..]));
        assert_eq!(records[1].1, b"100");
        for bad in [
            &b"14 path=a=b\n"[..],
            b"x path=a\n",
            b"3 a\n",
            b"0 a=b\n",
            b"99999999999999999999 a=b\n",
        ] {
            assert!(pax_records(bad).is_none(), "{bad:?}");
        }
    }
}
