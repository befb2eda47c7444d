//! The digest of a source's bytes, holes and all.

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::source::BlockSource;

/// The digest of all bytes of `source`, as `hasher` makes it: of a file what `sha256sum` prints, of an
/// image that of the raw disk. `stopped` is asked now and then.
///
/// # Errors
/// Errors of reading, and [`Error::Cancelled`] if it was stopped.
pub fn digest_of(
    source: &dyn BlockSource,
    hasher: Hasher,
    stopped: &dyn Fn() -> bool,
) -> Result<Digest> {
    const CHUNK: usize = 1 << 20;
    let (mut hasher, mut buf, mut offset) = (hasher, vec![0; CHUNK], 0);
    while offset < source.size() {
        if stopped() {
            return Err(Error::Cancelled);
        }
        let n = source.read_at(&mut buf, offset)?;
        if n == 0 {
            return Err(Error::out_of_range(offset, 1, source.size()));
        }
        hasher.update(buf.get(..n).unwrap_or_default());
        offset += n as u64;
    }
    Ok(hasher.finish())
}

#[cfg(test)]
#[cfg(feature = "checksum")]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::storage::Memory;

    #[test]
    fn it_is_that_of_the_bytes_and_can_be_stopped() {
        let bytes = [b"ab".repeat(1 << 20), b"c".to_vec()].concat();
        let source = Memory::new(bytes.clone());
        let hasher = || Hasher::new(Algorithm::Md5).unwrap();
        let found = digest_of(&source, hasher(), &|| false).unwrap();
        assert_eq!(found, Algorithm::Md5.digest(&bytes).unwrap());
        let stopped = digest_of(&source, hasher(), &|| true);
        assert!(matches!(stopped, Err(Error::Cancelled)));
    }
}
