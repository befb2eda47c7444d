//! GUIDs, whose first three parts stand in little-endian order on disk.

use std::fmt;

use crate::ondisk::{FieldType, Order};

/// A GUID as its bytes stand in the image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Guid(pub(super) [u8; 16]);

impl Guid {
    pub(super) const ZERO: Guid = Guid([0; 16]);

    /// The GUID `{a-b-c-d}`, where `d` is the last two groups of its text.
    pub(super) const fn new(a: u32, b: u16, c: u16, d: [u8; 8]) -> Self {
        let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) =
            (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
        Guid([
            a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7,
        ])
    }

    /// The GUID that a text means, with or without braces.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let inner = match text.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}')?,
            None => text,
        };
        let groups: Vec<&str> = inner.split('-').collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        let digits: String = groups.concat();
        if lengths != [8, 4, 4, 4, 12] || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let value = u128::from_str_radix(&digits, 16).ok()?;
        Some(Guid(swap(value.to_be_bytes())))
    }
}

/// Turns the order of the text into that of the disk, and back.
fn swap(bytes: [u8; 16]) -> [u8; 16] {
    let [
        a0,
        a1,
        a2,
        a3,
        b0,
        b1,
        c0,
        c1,
        d0,
        d1,
        d2,
        d3,
        d4,
        d5,
        d6,
        d7,
    ] = bytes;
    [
        a3, a2, a1, a0, b1, b0, c1, c0, d0, d1, d2, d3, d4, d5, d6, d7,
    ]
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", u128::from_be_bytes(swap(self.0)));
        for (i, digit) in digits.chars().enumerate() {
            if matches!(i, 8 | 12 | 16 | 20) {
                f.write_str("-")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FieldType for Guid {
    type Bytes = [u8; 16];
    const LEN: usize = 16;
    fn get(bytes: &[u8], offset: usize, order: Order) -> Option<Self> {
        <[u8; 16]>::get(bytes, offset, order).map(Guid)
    }
    fn bytes(&self, _: Order) -> [u8; 16] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_differ_in_the_first_three_parts() {
        let bat = Guid::new(
            0x2dc2_7766,
            0xf623,
            0x4200,
            [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08],
        );
        let text = "2dc27766-f623-4200-9d64-115e9bfd4a08";
        assert_eq!(bat.to_string(), text);
        assert_eq!(bat.0[..4], [0x66, 0x77, 0xc2, 0x2d]);
        for text in [
            text.to_owned(),
            format!("{{{}}}", text.to_ascii_uppercase()),
        ] {
            assert_eq!(Guid::parse(&text), Some(bat));
        }
        for text in [
            "",
            "{}",
            "2dc27766-f623-4200-9d64-115e9bfd4a0",
            "{2dc27766-f623-4200-9d64-115e9bfd4a08",
            "+dc27766-f623-4200-9d64-115e9bfd4a08",
        ] {
            assert_eq!(Guid::parse(text), None, "{text}");
        }
    }
}
