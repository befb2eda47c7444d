//! Window that all probes see, and their verdicts.

use crate::error::Result;
use crate::source::{BlockSource, readable};

/// Part of a file that decides its format: its start, its end, and its size.
///
/// Every probe sees the same window, so that none of them does I/O, and detection reads a file once.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// The first bytes of the file: [`Self::HEAD`] of them, or all where the file is shorter.
    pub head: &'a [u8],
    /// The last bytes of the file: [`Self::TAIL`] of them, or all where the file is shorter.
    pub tail: &'a [u8],
    /// Size of the file in bytes.
    pub size: u64,
}

impl<'a> Probe<'a> {
    /// Bytes at the start of the file that a probe sees: enough for the superblock of Btrfs, and
    /// for the signature of swap space in pages of 64 KiB.
    pub const HEAD: usize = 68 << 10;
    /// Bytes at the end of the file that a probe sees.
    pub const TAIL: usize = 4 << 10;

    /// The `len` bytes at `offset` from the start, if the window has them.
    pub fn at(&self, offset: usize, len: usize) -> Option<&'a [u8]> {
        self.head.get(offset..offset.checked_add(len)?)
    }

    /// Returns true if the bytes at `offset` from the start are `magic`.
    pub fn has(&self, offset: usize, magic: &[u8]) -> bool {
        self.at(offset, magic.len()) == Some(magic)
    }

    /// The bytes that begin `distance` before the end of the file, if the window has them.
    pub fn from_end(&self, distance: usize, len: usize) -> Option<&'a [u8]> {
        let start = self.tail.len().checked_sub(distance)?;
        self.tail.get(start..start.checked_add(len)?)
    }
}

/// Returns true if a file that begins with `head` cannot have `magic` at `offset`.
pub(crate) fn disagrees(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    let shown = head.get(offset..).unwrap_or_default();
    shown.iter().zip(magic).any(|(is, wanted)| is != wanted)
}

fn read(source: &dyn BlockSource, len: usize, offset: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; readable(len, 0, source.size())];
    let n = source.read_at(&mut bytes, offset)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// The bytes behind a [`Probe`].
#[derive(Debug, Clone)]
pub(crate) struct Window {
    head: Vec<u8>,
    tail: Vec<u8>,
    size: u64,
}

impl Window {
    /// Reads the window of a file, in two reads.
    pub(crate) fn read(source: &dyn BlockSource) -> Result<Self> {
        let mut window = Window::read_start(source)?;
        let end = window.size.saturating_sub(Probe::TAIL as u64);
        window.tail = read(source, Probe::TAIL, end)?;
        Ok(window)
    }

    /// Reads the window of a file whose end is not at hand.
    pub(crate) fn read_start(source: &dyn BlockSource) -> Result<Self> {
        Ok(Window {
            head: read(source, Probe::HEAD, 0)?,
            tail: Vec::new(),
            size: source.size(),
        })
    }

    pub(crate) fn probe(&self) -> Probe<'_> {
        Probe {
            head: &self.head,
            tail: &self.tail,
            size: self.size,
        }
    }
}

/// Verdict of a format's probe on a window.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Not of this format.
    Reject,
    /// Of this format.
    Match(Evidence),
}

/// Evidence for a match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Signature that was found, as text for a person.
    pub what: &'static str,
    /// Offset from the start of the file in bytes.
    pub offset: u64,
}

impl Verdict {
    /// A match by `what` at `offset` if it `is` there.
    pub fn found_if(is: bool, what: &'static str, offset: u64) -> Self {
        match is {
            true => Verdict::found(what, offset),
            false => Verdict::Reject,
        }
    }

    /// A match by `what` at `offset`.
    pub fn found(what: &'static str, offset: u64) -> Self {
        Verdict::Match(Evidence { what, offset })
    }
}
