//! The file type identifier and the two headers (MS-VHDX 2.2.1 and 2.2.2).

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::ondisk::on_disk;
use crate::source::BlockSource;

use super::VHDX;

/// `vhdxfile`.
pub(super) const FILE_SIGNATURE: [u8; 8] = *b"vhdxfile";
/// `head`.
pub(super) const HEADER_SIGNATURE: [u8; 4] = *b"head";
/// Host offsets of the two headers.
pub(super) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Bytes of a header, all of which its checksum covers.
pub(super) const HEADER_LEN: usize = 4096;
/// The unit of everything that is allocated in a file: 1 MiB.
pub(super) const MIB: u64 = 1 << 20;

on_disk! {
    /// The file type identifier.
    pub(super) struct FileIdentifier in VHDX, "file type identifier", Little, 520 bytes {
        signature: [u8; 8] = 0,
        creator: [u8; 512] = 8,
    }
}

on_disk! {
    /// A header. What follows up to 4 KiB is reserved.
    pub(super) struct Header in VHDX, "header", Little, 80 bytes {
        signature: [u8; 4] = 0,
        checksum: u32 = 4,
        sequence_number: u64 = 8,
        file_write_guid: Uuid = 16,
        data_write_guid: Uuid = 32,
        log_guid: Uuid = 48,
        log_version: u16 = 64,
        version: u16 = 66,
        log_length: u32 = 68,
        log_offset: u64 = 72,
    }
}

/// The header in force, and a warning about the other.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) header: Header,
    /// Host offset.
    pub(super) offset: u64,
    pub(super) warning: Option<String>,
}

/// CRC-32C of a structure whose checksum field counts as zero; it stands at one place in all of them.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let (head, rest) = bytes.split_at(bytes.len().min(Header::checksum.offset));
    let rest = rest.get(4..).unwrap_or_default();
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    crc32c::crc32c_append(crc, rest)
}

/// Sets the checksum of a structure.
pub(super) fn set_checksum(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    Header::checksum.put(bytes, sum);
}

/// Reads `len` bytes of a structure that has to be in the file whole.
pub(super) fn read(
    source: &dyn BlockSource,
    offset: u64,
    len: usize,
    structure: &'static str,
) -> Result<Vec<u8>> {
    let file_size = source.size();
    let fits = offset
        .checked_add(len as u64)
        .is_some_and(|end| end <= file_size);
    let cut = |have| {
        let problem =
            format!("needs {len} bytes and only {have} are there: the file was cut short");
        Error::malformed(VHDX, structure, offset, problem)
    };
    if !fits {
        return Err(cut(file_size.saturating_sub(offset)));
    }
    let mut bytes = vec![0; len];
    let n = source.read_at(&mut bytes, offset)?;
    if n < len {
        return Err(cut(n as u64));
    }
    Ok(bytes)
}

/// Fails unless the file begins as a VHDX file does.
pub(super) fn check_identifier(source: &dyn BlockSource) -> Result<()> {
    let bytes = read(source, 0, FileIdentifier::LEN, "file type identifier")?;
    let identifier = FileIdentifier::parse(&bytes, 0)?;
    if identifier.signature != FILE_SIGNATURE {
        return Err(FileIdentifier::malformed(0, "signature", "is not vhdxfile"));
    }
    Ok(())
}

/// The one of the two headers that is current: valid, and newer than the other if that is valid, too.
pub(super) fn read_current(source: &dyn BlockSource) -> Result<Current> {
    let [first, second] = HEADERS.map(|offset| read_one(source, offset));
    let current = match (first, second) {
        (Ok(first), Ok(second)) => newer(first, second)?,
        (Ok((header, _)), Err(problem)) => single(header, HEADERS[0], problem)?,
        (Err(problem), Ok((header, _))) => single(header, HEADERS[1], problem)?,
        (Err(problem), Err(_)) => return Err(problem),
    };
    if current.header.version != 1 {
        return Err(Error::unsupported(
            VHDX,
            format!("version {}", current.header.version),
            None,
        ));
    }
    Ok(current)
}

fn read_one(source: &dyn BlockSource, offset: u64) -> Result<(Header, Vec<u8>)> {
    let bytes = read(source, offset, HEADER_LEN, "header")?;
    let header = Header::parse(&bytes, offset)?;
    if header.signature != HEADER_SIGNATURE {
        return Err(Header::malformed(offset, "signature", "is not head"));
    }
    let computed = checksum(&bytes);
    if header.checksum != computed {
        let problem = format!("is {:08x}, and has to be {computed:08x}", header.checksum);
        return Err(Header::malformed(offset, "checksum", problem));
    }
    Ok((header, bytes))
}

fn single(header: Header, offset: u64, other: Error) -> Result<Current> {
    match other {
        // A header that cannot be read may be the newer one.
        Error::Io { .. } => Err(other),
        other => Ok(Current {
            header,
            offset,
            warning: Some(format!("one of the two headers is damaged ({other})")),
        }),
    }
}

fn newer(first: (Header, Vec<u8>), second: (Header, Vec<u8>)) -> Result<Current> {
    let [at_first, at_second] = HEADERS;
    let (header, offset) = if first.0.sequence_number > second.0.sequence_number {
        (first.0, at_first)
    } else if first.0.sequence_number < second.0.sequence_number {
        (second.0, at_second)
    } else if first.1 == second.1 {
        // Disk2VHD writes the same header twice.
        (first.0, at_first)
    } else {
        return Err(Header::malformed(
            at_second,
            "sequence_number",
            "is that of the first header, which is another one: neither is current",
        ));
    };
    Ok(Current {
        header,
        offset,
        warning: None,
    })
}
