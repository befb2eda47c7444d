//! The states of the algorithms.

use crate::digest::Algorithm;

/// The state of one algorithm.
pub(super) trait State: Send + Sync {
    fn update(&mut self, bytes: &[u8]);
    fn finish(&self) -> Vec<u8>;
    fn copy(&self) -> Box<dyn State>;
}

impl Clone for Box<dyn State> {
    fn clone(&self) -> Self {
        (**self).copy()
    }
}

/// The state of no bytes; `None` for an algorithm that is not built in.
#[cfg(not(feature = "checksum"))]
pub(super) fn of(_: Algorithm) -> Option<Box<dyn State>> {
    None
}

#[cfg(feature = "checksum")]
pub(super) fn of(algorithm: Algorithm) -> Option<Box<dyn State>> {
    Some(match algorithm {
        Algorithm::Md5 => Box::new(md5::Md5::default()),
        Algorithm::Sha1 => Box::new(sha1::Sha1::default()),
        Algorithm::Sha256 => Box::new(sha2::Sha256::default()),
        Algorithm::Sha512 => Box::new(sha2::Sha512::default()),
        Algorithm::Blake3 => Box::new(Blake3::default()),
    })
}

#[cfg(feature = "checksum")]
impl<D: md5::Digest + Clone + Send + Sync + 'static> State for D {
    fn update(&mut self, bytes: &[u8]) {
        md5::Digest::update(self, bytes);
    }

    fn finish(&self) -> Vec<u8> {
        self.clone().finalize().to_vec()
    }

    fn copy(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

#[cfg(feature = "checksum")]
#[derive(Clone, Default)]
struct Blake3(blake3::Hasher);

#[cfg(feature = "checksum")]
impl State for Blake3 {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> Vec<u8> {
        self.0.finalize().as_bytes().to_vec()
    }

    fn copy(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}
