//! The UUIDs that formats write: derived from what an image is, so that the same input gives the same
//! bytes, or fresh where that is asked for.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::error::{Error, Result};
use crate::image::OptionSet;

/// A UUID in the order in which it is written as text.
pub(super) type Uuid = [u8; 16];

/// A UUID that means none.
pub(super) const NIL: Uuid = [0; 16];

/// Which UUIDs and times a new image gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Identity {
    /// Those that its options and its layout lead to.
    #[default]
    Derived,
    /// New ones.
    Fresh,
    /// This UUID, and what it leads to.
    Given(Uuid),
}

impl Identity {
    /// Takes the options `fresh` and `uuid` out.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for values that they cannot have.
    pub(super) fn parse(set: &mut OptionSet<'_>) -> Result<Self> {
        let fresh = set.switch("fresh")?.unwrap_or(false);
        match set.text("uuid") {
            Some(_) if fresh => Err(Error::invalid("options uuid and fresh exclude each other")),
            Some(text) => match from_text(text) {
                Some(uuid) if uuid != NIL => Ok(Identity::Given(uuid)),
                _ => Err(Error::invalid(
                    "option uuid has to be a UUID that is not all zeros",
                )),
            },
            None if fresh => Ok(Identity::Fresh),
            None => Ok(Identity::Derived),
        }
    }

    /// The UUID for what `parts` describe.
    pub(super) fn uuid(self, parts: &[&[u8]]) -> Uuid {
        match self {
            Identity::Derived => derived(parts),
            Identity::Fresh => fresh(),
            Identity::Given(uuid) => uuid,
        }
    }
}

/// A UUID of version 8 (RFC 9562, section 5.8) from a hash of `parts`.
pub(super) fn derived(parts: &[&[u8]]) -> Uuid {
    // FNV-1a of 128 bits: it has to tell images of one maker apart, and keeps nobody from forging one.
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = OFFSET;
    for part in parts {
        let len = (part.len() as u64).to_le_bytes();
        for byte in len.iter().chain(part.iter()) {
            hash = (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }
    versioned(hash, 8)
}

/// A UUID of version 4 that nobody else has.
fn fresh() -> Uuid {
    // The standard library seeds each of these from the system's random numbers.
    let random = || u128::from(RandomState::new().build_hasher().finish());
    versioned(random() << 64 | random(), 4)
}

fn versioned(bits: u128, version: u128) -> Uuid {
    let bits = bits & !(0xf << 76) & !(0x3 << 62);
    (bits | version << 76 | 0x2 << 62).to_be_bytes()
}

/// Reads a UUID as people write it, with braces or without.
pub(super) fn from_text(text: &str) -> Option<Uuid> {
    let text = text.strip_prefix('{').unwrap_or(text);
    let text = text.strip_suffix('}').unwrap_or(text);
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let digits = groups.concat();
    let whole = matches!(lengths.as_slice(), [8, 4, 4, 4, 12] | [32]);
    if !whole || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&digits, 16)
        .ok()
        .map(u128::to_be_bytes)
}

/// A UUID as people write it.
pub(super) fn to_text(uuid: &Uuid) -> String {
    let hex = format!("{:032x}", u128::from_be_bytes(*uuid));
    let group = |from, to| hex.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        group(0, 8),
        group(8, 12),
        group(12, 16),
        group(16, 20),
        group(20, 32)
    )
}

/// Turns a UUID between the order of text and that of the formats whose first three fields are
/// little-endian numbers; its own inverse.
pub(super) fn mixed_endian(uuid: Uuid) -> Uuid {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_lead_to_each_other() {
        let text = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        let uuid = from_text(text).unwrap();
        assert_eq!(to_text(&uuid), text);
        assert_eq!(from_text(&format!("{{{text}}}")), Some(uuid));
        assert_eq!(mixed_endian(uuid)[..4], [0x3c, 0x2d, 0x1e, 0x0f]);
        assert_eq!(mixed_endian(mixed_endian(uuid)), uuid);
        for bad in [
            "",
            "0f1e",
            "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1fg",
            "+f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
        ] {
            assert_eq!(from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_derived_uuid_depends_on_every_part_and_on_where_it_ends() {
        let all = [
            derived(&[b"ab", b"c"]),
            derived(&[b"a", b"bc"]),
            derived(&[b"ab", b"d"]),
        ];
        assert_ne!(all[0], all[1]);
        assert_ne!(all[0], all[2]);
        assert_eq!(all[0], derived(&[b"ab", b"c"]));
        assert_eq!(to_text(&all[0]).as_bytes()[14], b'8');
        assert_ne!(fresh(), fresh());
    }
}
