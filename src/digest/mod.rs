//! Digests of bytes as they come, and of the content of a disk.
//!
//! [`Hasher`] is the flat digest of a stream of bytes, as `sha256sum` has it. The digest of a disk's
//! content, whatever the format of the image, is a tree: see [`ContentHasher`].

mod content;
mod state;
mod stream;
mod whole;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

pub use content::{ContentDigest, ContentHasher, LEAF, LeafHash, Leaves};
pub use stream::{DigestReader, DigestWriter};
pub use whole::digest_of;

/// A digest algorithm. Digests need the feature `checksum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Algorithm {
    /// MD5 (RFC 1321), against accidents only: what people publish beside images.
    Md5,
    /// SHA-1 (FIPS 180-4), against accidents only: what OVF manifests have.
    Sha1,
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// SHA-512 (FIPS 180-4).
    Sha512,
    /// BLAKE3, with 32 bytes of output.
    Blake3,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 5] = [
        Algorithm::Md5,
        Algorithm::Sha1,
        Algorithm::Sha256,
        Algorithm::Sha512,
        Algorithm::Blake3,
    ];

    /// Its name: `md5`, `sha1`, `sha256`, `sha512` or `blake3`.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Md5 => "md5",
            Algorithm::Sha1 => "sha1",
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
            Algorithm::Blake3 => "blake3",
        }
    }

    /// Length of a digest in bytes.
    pub fn output_len(self) -> usize {
        match self {
            Algorithm::Md5 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 | Algorithm::Blake3 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    /// The digest of `bytes`.
    ///
    /// # Errors
    /// As [`Hasher::new`].
    pub fn digest(self, bytes: &[u8]) -> Result<Digest> {
        let mut hasher = Hasher::new(self)?;
        hasher.update(bytes);
        Ok(hasher.finish())
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    /// The algorithm of this name, in any case and with or without hyphens.
    fn from_str(name: &str) -> Result<Self> {
        let plain: String = name.chars().filter(|c| *c != '-').collect();
        let mut all = Algorithm::ALL.into_iter();
        all.find(|algorithm| algorithm.as_str().eq_ignore_ascii_case(&plain))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "there is no digest {name:?}; take md5, sha1, sha256, sha512 or blake3"
                ))
            })
    }
}

/// A digest. Its text is the algorithm and the bytes in hexadecimal: `sha256:9f86d0…`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl Digest {
    /// A digest of these bytes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the algorithm makes longer or shorter ones.
    pub fn new(algorithm: Algorithm, bytes: Vec<u8>) -> Result<Self> {
        if bytes.len() != algorithm.output_len() {
            return Err(Error::invalid(format!(
                "a digest of {algorithm} has {} bytes, and this one has {}",
                algorithm.output_len(),
                bytes.len()
            )));
        }
        Ok(Digest { algorithm, bytes })
    }

    /// The digest whose bytes are `hex`, in either case.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it is not that.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Result<Self> {
        let byte = |pair: &[u8]| {
            let pair = std::str::from_utf8(pair).ok()?;
            let plain = pair.bytes().all(|byte| byte.is_ascii_hexdigit());
            u8::from_str_radix(pair, 16).ok().filter(|_| plain)
        };
        let bytes: Option<Vec<u8>> = match hex.len() % 2 {
            0 => hex.as_bytes().chunks(2).map(byte).collect(),
            _ => None,
        };
        let bytes = bytes
            .ok_or_else(|| Error::invalid("a digest is written in pairs of hexadecimal digits"))?;
        Digest::new(algorithm, bytes)
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its bytes as lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        self.bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.to_hex())
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// The digest that its text means: an algorithm, a colon and hexadecimal digits.
    fn from_str(text: &str) -> Result<Self> {
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| {
            Error::invalid("a digest is written as ALGORITHM:HEXADECIMAL, sha256:9f86… say")
        })?;
        Digest::from_hex(algorithm.parse()?, hex)
    }
}

/// A digest that is being computed.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    state: Box<dyn state::State>,
}

impl Hasher {
    /// A hasher of no bytes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for algorithms of the feature `checksum` where that is not built in.
    pub fn new(algorithm: Algorithm) -> Result<Self> {
        let state = state::of(algorithm).ok_or_else(|| {
            Error::invalid(format!(
                "digests of {algorithm} are not built in; build blockform with the feature checksum"
            ))
        })?;
        Ok(Hasher { algorithm, state })
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Adds `bytes` behind those before.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// The digest of all bytes.
    pub fn finish(self) -> Digest {
        Digest {
            algorithm: self.algorithm,
            bytes: self.state.finish(),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hasher").field(&self.algorithm()).finish()
    }
}

#[cfg(test)]
#[cfg(feature = "checksum")]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_their_standards() {
        let abc = [
            (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            #[cfg(feature = "checksum")]
            (Algorithm::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            #[cfg(feature = "checksum")]
            (
                Algorithm::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            #[cfg(feature = "checksum")]
            (
                Algorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
            #[cfg(feature = "checksum")]
            (
                Algorithm::Blake3,
                "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            ),
        ];
        for (algorithm, hex) in abc {
            let mut hasher = Hasher::new(algorithm).unwrap();
            hasher.update(b"a");
            hasher.update(b"bc");
            let digest = hasher.finish();
            assert_eq!(digest.to_hex(), hex, "{algorithm}");
            assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            assert_eq!(hex.to_uppercase().len(), 2 * algorithm.output_len());
        }
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for text in [
            "",
            "md5",
            "md5:",
            "md5:0",
            "md5:zz",
            "md5:+f",
            "crc:00",
            "sha256:00",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert_eq!("SHA-512".parse::<Algorithm>().unwrap(), Algorithm::Sha512);
    }
}
