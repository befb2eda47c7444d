//! GUIDs from what an image is made of.

use crate::formats::vhdx::guid::Guid;

/// A digest that is the same on every machine and in every version: FNV-1a of 128 bits. It tells images
/// apart that are different by chance, not by intent, which is all that a GUID does.
#[derive(Debug, Clone, Copy)]
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

    /// The GUID for one purpose, marked as one of the maker's own kind (RFC 9562, version 8).
    pub(super) fn guid(mut self, purpose: &str) -> Guid {
        self.add(purpose.as_bytes());
        // The last bytes that were added have hardly reached the high bits.
        self.add(&[0; 16]);
        let mut bytes = self.0.to_le_bytes();
        let [_, _, _, _, _, _, _, version, variant, ..] = &mut bytes;
        *version = (*version & 0x0f) | 0x80;
        *variant = (*variant & 0x3f) | 0x80;
        Guid(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guids_differ_by_purpose_and_by_seed_and_stay_the_same() {
        let guid = |seed: &str, purpose| Digest::of(seed.as_bytes()).guid(purpose).to_string();
        let all = [
            guid("a", "x"),
            guid("a", "y"),
            guid("b", "x"),
            guid("", "x"),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|other| other != one));
            assert_eq!((&one[14..15], one.len()), ("8", 36));
        }
        assert_eq!(Digest::of(b"").0, 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(
            Digest::of(b"a").0,
            0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964
        );
    }
}
