//! The UUIDs that formats write: derived from what an image is, so that the same input gives the same
//! bytes, or fresh where that is asked for.

use std::hash::{BuildHasher, Hasher, RandomState};

use uuid::{Builder, Uuid};

use crate::error::{Error, Result};
use crate::image::OptionSet;

/// Choice of the UUIDs and times of a new image.
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
            Some(text) => match Uuid::try_parse(text) {
                Ok(uuid) if !uuid.is_nil() => Ok(Identity::Given(uuid)),
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

/// FNV-1a of 128 bits. It tells images of one maker apart, and prevents no forgery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest(u128);

impl Digest {
    pub(super) fn of(seed: &[u8]) -> Self {
        let mut digest = Digest(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        digest.add(seed);
        digest
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
    }

    /// The UUID of version 8 for one purpose.
    pub(super) fn uuid(mut self, purpose: &str) -> Uuid {
        self.add(purpose.as_bytes());
        // The last bytes that were added have hardly reached the high bits.
        self.add(&[0; 16]);
        let uuid = Uuid::from_bytes_le(self.0.to_le_bytes());
        Builder::from_custom_bytes(uuid.into_bytes()).into_uuid()
    }
}

/// A UUID of version 8 (RFC 9562, section 5.8) from a digest of `parts`.
pub(super) fn derived(parts: &[&[u8]]) -> Uuid {
    let mut digest = Digest::of(b"");
    for part in parts {
        digest.add(&(part.len() as u64).to_le_bytes());
        digest.add(part);
    }
    Builder::from_custom_bytes(digest.0.to_be_bytes()).into_uuid()
}

/// A random UUID.
fn fresh() -> Uuid {
    // The standard library seeds each of these from the system's random numbers.
    let random = || u128::from(RandomState::new().build_hasher().finish());
    Builder::from_random_bytes((random() << 64 | random()).to_be_bytes()).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(all[0].get_version_num(), 8);
        assert_eq!(fresh().get_version_num(), 4);
        assert_ne!(fresh(), fresh());
    }

    #[test]
    fn digests_differ_by_purpose_and_by_seed_and_stay_the_same() {
        let uuid = |seed: &str, purpose| Digest::of(seed.as_bytes()).uuid(purpose);
        let all = [
            uuid("a", "x"),
            uuid("a", "y"),
            uuid("b", "x"),
            uuid("", "x"),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|other| other != one));
            assert_eq!(one.get_version_num(), 8);
        }
        assert_eq!(
            Digest::of(b"a").0,
            0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964
        );
    }
}
