//! Text and identifiers out of superblocks.

use uuid::Uuid;

use crate::name::ImageName;
use crate::ondisk::{self, Order};

/// The bytes before the first NUL, without blanks at the end; `None` if nothing is left.
pub(super) fn label(field: &[u8]) -> Option<ImageName> {
    let text = ondisk::until_nul(field);
    let end = text.iter().rposition(|byte| *byte != b' ')?;
    text.get(..=end).map(ImageName::from)
}

/// UTF-16 up to the first NUL. What is none of its characters becomes U+FFFD.
pub(super) fn utf16(field: &[u8], order: Order) -> Option<ImageName> {
    label(ondisk::utf16(field, order).as_bytes())
}

/// A UUID whose bytes stand in the order of its text; `None` if all are zero.
pub(super) fn uuid(bytes: &[u8; 16]) -> Option<String> {
    let uuid = Uuid::from_bytes(*bytes);
    (!uuid.is_nil()).then(|| uuid.to_string())
}

/// A GUID in capitals, as UEFI writes it.
pub(super) fn guid(guid: &Uuid) -> String {
    format!("{:X}", guid.hyphenated())
}

/// A serial number of 32 bits as FAT's tools write it.
pub(super) fn serial(number: u32) -> String {
    format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
}

/// The checksum of UDF's descriptors (ECMA-167, 7.2.6): the polynomial 0x1021, from 0.
pub(super) fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let crc = crc ^ u16::from(*byte) << 8;
        (0..8).fold(crc, |crc, _| match crc >> 15 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_as_their_tools_write_them() {
        let bytes = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\0\xa0\xc9\x3e\xc9\x3b";
        assert_eq!(
            guid(&Uuid::from_bytes_le(bytes)),
            "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
        );
        assert_eq!(
            uuid(&bytes).unwrap(),
            "28732ac1-1ff8-d211-ba4b-00a0c93ec93b"
        );
        assert_eq!(uuid(&[0; 16]), None);
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(label(b"a b  \0x"), Some(ImageName::from("a b")));
        assert_eq!(label(b"   "), None);
        assert_eq!(
            utf16(b"\0a\0\xe9\0\0\0x", Order::Big),
            Some(ImageName::from("aé"))
        );
    }
}
