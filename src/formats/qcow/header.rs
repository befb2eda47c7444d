//! The header, with the field names of `QCowHeader` in QEMU's `block/qcow.c`.

use crate::error::{Error, Result};
use crate::name::ImageName;
use crate::ondisk::on_disk;
use crate::source::{BlockSource, BlockSourceExt};

use super::QCOW;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");

/// Largest length of a backing file's name in bytes.
const MAX_BACKING_NAME: u32 = 1023;

on_disk! {
    /// `QCowHeader`.
    pub(super) struct RawHeader in QCOW, "header", Big, 48 bytes {
        magic: u32 = 0,
        version: u32 = 4,
        backing_file_offset: u64 = 8,
        backing_file_size: u32 = 16,
        mtime: u32 = 20,
        size: u64 = 24,
        cluster_bits: u8 = 32,
        l2_bits: u8 = 33,
        padding: u16 = 34,
        crypt_method: u32 = 36,
        l1_table_offset: u64 = 40,
    }
}

/// The header, checked.
#[derive(Debug, Clone)]
pub(super) struct Header {
    /// Virtual size in bytes.
    pub(super) size: u64,
    /// Logarithm of the cluster size in bytes: 9 to 16.
    pub(super) cluster_bits: u32,
    /// Logarithm of the number of entries in an L2 table: 6 to 13.
    pub(super) l2_bits: u32,
    /// Set if the data is encrypted with AES.
    pub(super) encrypted: bool,
    /// Host offset of the L1 table.
    pub(super) l1_table_offset: u64,
    /// Host offset of the backing file's name, and the name.
    pub(super) backing_file: Option<(u64, ImageName)>,
}

impl Header {
    /// Reads and checks the header of a file.
    pub(super) fn read(file: &dyn BlockSource) -> Result<Self> {
        let mut bytes = [0; RawHeader::LEN];
        let n = file.read_at(&mut bytes, 0)?;
        let raw = RawHeader::parse(bytes.get(..n).unwrap_or_default(), 0)?;
        let bad = |field, problem: String| Err(RawHeader::malformed(0, field, problem));
        let unsupported = |feature: String| Err(Error::unsupported(QCOW, feature, None));
        if raw.magic != MAGIC {
            return bad("magic", "is not QFI\\xfb".to_owned());
        }
        if raw.version != 1 {
            return unsupported(format!("version {}", raw.version));
        }
        if raw.size <= 1 {
            return bad("size", format!("is {}, and has to be 2 at least", raw.size));
        }
        if !(9..=16).contains(&raw.cluster_bits) {
            let problem = format!("is {}, and has to be 9 to 16", raw.cluster_bits);
            return bad("cluster_bits", problem);
        }
        if !(6..=13).contains(&raw.l2_bits) {
            let problem = format!("is {}, and has to be 6 to 13", raw.l2_bits);
            return bad("l2_bits", problem);
        }
        if raw.crypt_method > 1 {
            return unsupported(format!("encryption method {}", raw.crypt_method));
        }
        Ok(Header {
            size: raw.size,
            cluster_bits: raw.cluster_bits.into(),
            l2_bits: raw.l2_bits.into(),
            encrypted: raw.crypt_method == 1,
            l1_table_offset: raw.l1_table_offset,
            backing_file: read_name(&raw, file)?,
        })
    }
}

/// The name stands anywhere in the file: QEMU puts it after the header.
fn read_name(raw: &RawHeader, file: &dyn BlockSource) -> Result<Option<(u64, ImageName)>> {
    let (offset, len) = (raw.backing_file_offset, raw.backing_file_size);
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    if len > MAX_BACKING_NAME {
        let problem = format!("is {len}, over the most, {MAX_BACKING_NAME}");
        return Err(RawHeader::malformed(0, "backing_file_size", problem));
    }
    let end = offset.checked_add(len.into());
    let inside = end.is_some_and(|end| end <= file.size());
    if !inside || offset < RawHeader::LEN as u64 {
        let problem = format!("{offset} is in the header or past the end of the file");
        return Err(RawHeader::malformed(0, "backing_file_offset", problem));
    }
    let mut name = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut name, offset)?;
    Ok(Some((offset, ImageName::new(name))))
}
