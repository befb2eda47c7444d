//! The digest of a disk's content: the same for every image of the same disk, in any format, and cheap for a
//! sparse disk.
//!
//! # Definition
//!
//! With `H` the algorithm, `‖` for "followed by", and one byte that keeps the three kinds of input
//! apart:
//!
//! - The disk is cut into leaves of 65,536 bytes; the last one is padded with zeros to that length.
//!   There are `n` of them. The hash of a leaf is `H(00 ‖ its 65,536 bytes)`.
//! - Leaves of zeros follow up to the next power of two, 1 at least. Two neighbours `a` and `b` make
//!   one node `H(01 ‖ a ‖ b)`, pair by pair and level by level, until one node, the top, is left.
//! - The digest is `H(02 ‖ the disk's size in bytes, 8 bytes little-endian ‖ top)`.
//!
//! A subtree of zeros has the same hash everywhere, so that a hole of any size costs some dozen hashes
//! at most.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::zero::is_zero;

/// Bytes of a leaf.
pub const LEAF: u64 = 64 << 10;

const LEAF_LEN: usize = 64 << 10;

/// The digest of a disk's content. Its text has `content-` before that of a [`Digest`], since the
/// digest of the disk's bytes in one piece is another: `content-blake3:…`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContentDigest(Digest);

impl ContentDigest {
    /// The algorithm and the bytes.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "content-{}", self.0)
    }
}

impl FromStr for ContentDigest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("content-") {
            Some(digest) => Ok(ContentDigest(digest.parse()?)),
            None => Err(Error::invalid(
                "the digest of a disk's content is written as content-ALGORITHM:HEXADECIMAL",
            )),
        }
    }
}

/// Hashes leaves, on any thread and in any order.
#[derive(Debug, Clone)]
pub struct Leaves {
    start: Hasher,
}

/// The hash of one leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafHash(Option<Digest>);

impl Leaves {
    /// The hash of a leaf: [`LEAF`] bytes, or fewer that are padded with zeros.
    pub fn hash(&self, leaf: &[u8]) -> LeafHash {
        if is_zero(leaf) {
            return LeafHash(None);
        }
        LeafHash(Some(self.hash_any(leaf)))
    }

    fn hash_any(&self, leaf: &[u8]) -> Digest {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut hasher = self.start.clone();
        hasher.update(leaf);
        let mut missing = LEAF_LEN.saturating_sub(leaf.len());
        while missing > 0 {
            let n = missing.min(ZEROS.len());
            hasher.update(ZEROS.get(..n).unwrap_or_default());
            missing -= n;
        }
        hasher.finish()
    }
}

/// Folds the content of a disk, in guest order, into its digest. Bytes that are left out count as zeros.
///
/// ```
/// use blockform::digest::{Algorithm, ContentHasher};
///
/// let mut sparse = ContentHasher::new(Algorithm::Md5, 1 << 40)?;
/// sparse.update(123 << 20, b"the only data of a disk of one TiB")?;
/// println!("{}", sparse.finish());
/// # Ok::<(), blockform::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ContentHasher {
    size: u64,
    leaves: Leaves,
    node: Hasher,
    root: Hasher,
    /// The hash of a subtree of zeros, by its height.
    zeros: Vec<Digest>,
    /// Whole subtrees from left to right, with their heights, which fall.
    stack: Vec<(usize, Digest)>,
    /// Leaves in the stack.
    folded: u64,
    /// The bytes of the next leaf that have come, from its start.
    open: Vec<u8>,
}

impl ContentHasher {
    /// A hasher for a disk of `size` bytes.
    ///
    /// # Errors
    /// As [`Hasher::new`].
    pub fn new(algorithm: Algorithm, size: u64) -> Result<Self> {
        let tagged = |tag: u8| -> Result<Hasher> {
            let mut hasher = Hasher::new(algorithm)?;
            hasher.update(&[tag]);
            Ok(hasher)
        };
        let leaves = Leaves { start: tagged(0)? };
        let zeros = vec![leaves.hash_any(&[])];
        Ok(ContentHasher {
            size,
            leaves,
            node: tagged(1)?,
            root: tagged(2)?,
            zeros,
            stack: Vec::new(),
            folded: 0,
            open: Vec::new(),
        })
    }

    /// Sets the size of a disk whose size was not known at first.
    pub(crate) fn end_at(&mut self, size: u64) {
        self.size = size;
    }

    /// The hasher of leaves for [`push_leaf`](Self::push_leaf).
    pub fn leaves(&self) -> Leaves {
        self.leaves.clone()
    }

    /// Adds the bytes at `guest`, which lie behind all those before.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if they do not, or reach past the end of the disk.
    pub fn update(&mut self, guest: u64, bytes: &[u8]) -> Result<()> {
        self.check(guest, bytes.len() as u64)?;
        let (mut guest, mut rest) = (guest, bytes);
        while !rest.is_empty() {
            self.skip_to(guest);
            let into = usize::try_from(guest % LEAF).unwrap_or(0);
            self.open.resize(into, 0);
            let (now, later) = rest.split_at(rest.len().min(LEAF_LEN - into));
            self.open.extend_from_slice(now);
            guest += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Adds the hash of the whole leaf at `guest`.
    ///
    /// # Errors
    /// As [`update`](Self::update), and if `guest` is not the start of a leaf.
    pub fn push_leaf(&mut self, guest: u64, hash: LeafHash) -> Result<()> {
        let len = LEAF.min(self.size.saturating_sub(guest));
        self.check(guest, len)?;
        if guest % LEAF != 0 || guest >= self.size {
            return Err(Error::invalid(format!("no leaf starts at byte {guest}")));
        }
        self.skip_to(guest);
        if let Some(hash) = hash.0 {
            self.fold_zeros_to(guest / LEAF);
            self.fold(0, hash);
        }
        Ok(())
    }

    /// The digest. Bytes that were not added count as zeros.
    pub fn finish(mut self) -> ContentDigest {
        self.close_leaf();
        let width = self.size.div_ceil(LEAF).max(1).next_power_of_two();
        self.fold_zeros_to(width);
        let mut root = self.root.clone();
        root.update(&self.size.to_le_bytes());
        if let Some((_, top)) = self.stack.first() {
            root.update(top.as_bytes());
        }
        ContentDigest(root.finish())
    }

    fn check(&self, guest: u64, len: u64) -> Result<()> {
        let done = self.folded * LEAF + self.open.len() as u64;
        let fits = guest.checked_add(len).is_some_and(|end| end <= self.size);
        if guest < done || !fits {
            return Err(Error::invalid(format!(
                "{len} bytes at {guest} are out of turn in the digest of a disk of {} bytes",
                self.size
            )));
        }
        Ok(())
    }

    /// Closes the open leaf if `guest` is behind it.
    fn skip_to(&mut self, guest: u64) {
        if guest / LEAF > self.folded && !self.open.is_empty() {
            self.close_leaf();
        }
        if self.open.is_empty() {
            self.fold_zeros_to(guest / LEAF);
        }
    }

    fn close_leaf(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let hash = self.leaves.hash_any(&self.open);
        self.open.clear();
        self.fold(0, hash);
    }

    /// Folds leaves of zeros, in the largest subtrees that fit, up to that many leaves.
    fn fold_zeros_to(&mut self, leaves: u64) {
        while self.folded < leaves {
            let fits = (leaves - self.folded).ilog2();
            let height = match self.folded {
                0 => fits,
                folded => folded.trailing_zeros().min(fits),
            };
            let hash = self.zero(height as usize);
            self.fold(height as usize, hash);
        }
    }

    fn zero(&mut self, height: usize) -> Digest {
        loop {
            if let Some(hash) = self.zeros.get(height) {
                return hash.clone();
            }
            if let Some(last) = self.zeros.last() {
                let next = self.parent(last, last);
                self.zeros.push(next);
            }
        }
    }

    fn parent(&self, left: &Digest, right: &Digest) -> Digest {
        let mut hasher = self.node.clone();
        hasher.update(left.as_bytes());
        hasher.update(right.as_bytes());
        hasher.finish()
    }

    /// Puts a subtree behind the others, and joins those of the same height.
    fn fold(&mut self, height: usize, hash: Digest) {
        self.folded += 1 << height;
        let (mut height, mut hash) = (height, hash);
        while self.stack.last().is_some_and(|(top, _)| *top == height) {
            if let Some((_, left)) = self.stack.pop() {
                hash = self.parent(&left, &hash);
            }
            height += 1;
        }
        self.stack.push((height, hash));
    }
}

#[cfg(test)]
#[cfg(feature = "checksum")]
mod tests {
    use super::*;

    fn h(parts: &[&[u8]]) -> Vec<u8> {
        Algorithm::Md5
            .digest(&parts.concat())
            .unwrap()
            .as_bytes()
            .to_vec()
    }

    /// The definition, level by level.
    fn slowly(disk: &[u8]) -> Vec<u8> {
        let mut level: Vec<Vec<u8>> = disk
            .chunks(LEAF_LEN)
            .map(|chunk| {
                let mut leaf = chunk.to_vec();
                leaf.resize(LEAF_LEN, 0);
                h(&[&[0], &leaf])
            })
            .collect();
        let zero = h(&[&[0], &[0; LEAF_LEN]]);
        level.resize(level.len().max(1).next_power_of_two(), zero);
        while level.len() > 1 {
            level = level.chunks(2).map(|p| h(&[&[1], &p[0], &p[1]])).collect();
        }
        h(&[&[2], &(disk.len() as u64).to_le_bytes(), &level[0]])
    }

    #[test]
    fn it_is_the_tree_of_its_definition() {
        for leaves in [0, 1, 2, 3, 5, 8, 13] {
            for extra in [0, 1, 4096] {
                let size = leaves * LEAF_LEN + extra;
                let mut disk = vec![0; size];
                for (i, byte) in disk.iter_mut().enumerate() {
                    // Every third leaf is zeros.
                    if (i / LEAF_LEN) % 3 != 1 {
                        *byte = u8::try_from(i % 251).unwrap();
                    }
                }
                let want = slowly(&disk);
                let new = || ContentHasher::new(Algorithm::Md5, size as u64).unwrap();
                for step in [1000, 65_536, 100_000, usize::MAX] {
                    let mut pieces = new();
                    let mut at = 0;
                    for piece in disk.chunks(step.min(size.max(1))) {
                        if !is_zero(piece) {
                            pieces.update(at, piece).unwrap();
                        }
                        at += piece.len() as u64;
                    }
                    let got = pieces.finish();
                    assert_eq!(got.digest().as_bytes(), want, "{leaves} {extra} {step}");
                }
                let mut whole = new();
                let hashes = whole.leaves();
                for (i, leaf) in disk.chunks(LEAF_LEN).enumerate() {
                    whole.push_leaf(i as u64 * LEAF, hashes.hash(leaf)).unwrap();
                }
                assert_eq!(whole.finish().digest().as_bytes(), want);
            }
        }
    }

    #[test]
    fn a_hole_of_exabytes_takes_no_time() {
        let mut hasher = ContentHasher::new(Algorithm::Md5, u64::MAX).unwrap();
        hasher.update(1 << 62, b"x").unwrap();
        let one = hasher.finish();
        let none = ContentHasher::new(Algorithm::Md5, u64::MAX)
            .unwrap()
            .finish();
        assert_ne!(one, none);
        assert_eq!(one.to_string().parse::<ContentDigest>().unwrap(), one);
    }

    #[test]
    fn what_is_out_of_turn_is_refused() {
        let mut hasher = ContentHasher::new(Algorithm::Md5, 3 * LEAF).unwrap();
        hasher.update(LEAF + 10, b"ab").unwrap();
        let leaf = hasher.leaves().hash(b"x");
        for guest in [0, LEAF, LEAF + 11, 3 * LEAF, u64::MAX] {
            assert!(hasher.update(guest, b"c").is_err(), "{guest}");
            assert!(hasher.push_leaf(guest, leaf.clone()).is_err(), "{guest}");
        }
        assert!(hasher.push_leaf(2 * LEAF + 1, leaf.clone()).is_err());
        hasher.push_leaf(2 * LEAF, leaf).unwrap();
    }
}
