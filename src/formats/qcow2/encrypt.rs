//! Description of the encryption (section "Full disk encryption header pointer").

use crate::error::{Error, Result};
use crate::image::Value;
use crate::ondisk::{luks, on_disk};
use crate::source::{BlockSource, BlockSourceExt};

use super::QCOW2;
use super::header::{Encryption, Header, extension};

on_disk! {
    /// The extension that points to the encryption's own header.
    struct HeaderPointer in QCOW2, "full disk encryption header pointer", Big, 16 bytes {
        offset: u64 = 0,
        length: u64 = 8,
    }
}

/// Returns offset and length of the encryption's own header.
pub(super) fn header_place(header: &Header) -> Result<Option<(u64, u64)>> {
    let Some(pointer) = header.extension(extension::FULL_DISK_ENCRYPTION) else {
        return Ok(None);
    };
    let pointer = HeaderPointer::parse(pointer, 0)?;
    Ok(Some((pointer.offset, pointer.length)))
}

/// The encryption under the names of QEMU's `ImageInfoSpecificQCow2Encryption`.
pub(super) fn describe(
    scheme: Encryption,
    header: &Header,
    file: &dyn BlockSource,
) -> Result<Value> {
    if scheme == Encryption::Aes {
        let mut info = Value::map();
        info.insert("format", scheme.name());
        return Ok(info);
    }
    let Some((offset, len)) = header_place(header)? else {
        let problem =
            "no full disk encryption header pointer, and the image is encrypted with LUKS";
        return Err(Error::malformed(QCOW2, "header extensions", None, problem));
    };
    let inside = offset
        .checked_add(len)
        .is_some_and(|end| end <= file.size());
    if !inside || len < luks::HEADER_LEN as u64 {
        return Err(HeaderPointer::malformed(
            0,
            "offset",
            "points to no whole header in the file",
        ));
    }
    let mut bytes = [0; luks::HEADER_LEN];
    file.read_exact_at(&mut bytes, offset)?;
    luks::describe(&bytes, offset)
}
