//! The window of a stream: its last bytes, and earlier ones that are kept.

use std::collections::BTreeMap;
use std::io;

use crate::error::{Error, Result};

/// The length of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// The end was seen.
    Known(u64),
    /// This many bytes have arrived, and the end was not seen.
    AtLeast(u64),
}

impl Length {
    /// The longest stream that is read: more than a table needs, and so far below the largest offset
    /// that sums do not overflow.
    const MOST: u64 = 1 << 62;

    pub(crate) fn known(self) -> Option<u64> {
        match self {
            Length::Known(len) => Some(len),
            Length::AtLeast(_) => None,
        }
    }

    /// The end that no byte of the stream is behind.
    pub(crate) fn bound(self) -> u64 {
        self.known().unwrap_or(Self::MOST)
    }
}

/// The reason why bytes of a stream are not at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Miss {
    /// They will come by, up to this byte.
    Later(u64),
    /// They went by before a reader asked for them; the first is this byte.
    Gone(u64),
    /// They are too many to be kept; so much would be needed.
    TooMany(u64),
}

/// The bytes of a stream that are at hand: the last ones, and those that are kept for good.
///
/// It takes bytes in by [`room`](Self::room) and [`took`](Self::took), or by [`push`](Self::push).
#[derive(Debug)]
pub(crate) struct Window {
    /// Byte `n` of the stream is at `n` modulo `recent_len`. It grows to that with the stream.
    recent: Vec<u8>,
    recent_len: usize,
    kept: Kept,
    position: u64,
    ended: bool,
}

impl Window {
    /// The window on the last `recent` bytes of a stream, with room to keep others at a cost of `kept`.
    pub(crate) fn new(recent: usize, kept: u64) -> Self {
        Window {
            recent: Vec::new(),
            recent_len: recent.max(1),
            kept: Kept::new(kept),
            position: 0,
            ended: false,
        }
    }

    /// The number of bytes that have arrived.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn length(&self) -> Length {
        match self.ended {
            true => Length::Known(self.position),
            false => Length::AtLeast(self.position),
        }
    }

    /// The memory in use, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.recent.capacity() as u64 + self.kept.memory()
    }

    /// The number of last bytes that it holds.
    pub(crate) fn recent_len(&self) -> u64 {
        self.recent_len as u64
    }

    /// The first of the last bytes.
    pub(crate) fn oldest(&self) -> u64 {
        self.position.saturating_sub(self.recent_len as u64)
    }

    fn in_ring(&self, at: u64) -> usize {
        usize::try_from(at % self.recent_len as u64).unwrap_or(0)
    }

    /// The place for the next bytes of the stream, `most` of them or fewer.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no memory for the window.
    pub(crate) fn room(&mut self, most: usize) -> Result<&mut [u8]> {
        if self.recent.capacity() < self.recent_len {
            self.recent
                .try_reserve_exact(self.recent_len)
                .map_err(no_memory)?;
        }
        let at = self.in_ring(self.position);
        let end = at.saturating_add(most).min(self.recent_len);
        if self.recent.len() < end {
            self.recent.resize(end, 0);
        }
        Ok(self.recent.get_mut(at..end).unwrap_or_default())
    }

    /// Takes in the first `len` bytes of the [room](Self::room), and returns them.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no memory to keep them, [`Error::InvalidInput`] where the stream is
    /// too long.
    pub(crate) fn took(&mut self, len: usize) -> Result<&[u8]> {
        let at = self.in_ring(self.position);
        let fresh = self.recent.get(at..at + len).unwrap_or_default();
        self.kept.pass(self.position, fresh)?;
        self.position += fresh.len() as u64;
        match self.position < Length::MOST {
            true => Ok(fresh),
            false => Err(Error::invalid("the stream does not end")),
        }
    }

    /// Takes in the next bytes of the stream.
    ///
    /// # Errors
    /// As [`room`](Self::room) and [`took`](Self::took).
    pub(crate) fn push(&mut self, mut chunk: &[u8]) -> Result<()> {
        while !chunk.is_empty() {
            let room = self.room(chunk.len())?;
            let (now, later) = chunk.split_at(room.len().min(chunk.len()));
            room.copy_from_slice(now);
            self.took(now.len())?;
            chunk = later;
        }
        Ok(())
    }

    /// Marks the end of the stream.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// The bytes from `at` to `end` among the last ones, in one piece.
    pub(crate) fn recent(&self, at: u64, end: u64) -> &[u8] {
        if at >= self.position || at < self.oldest() {
            return &[];
        }
        let held = self.recent.get(self.in_ring(at)..).unwrap_or_default();
        let left = usize::try_from(end.min(self.position).saturating_sub(at));
        held.get(..left.unwrap_or(usize::MAX)).unwrap_or(held)
    }

    /// Copies bytes from `at` on, in one piece: kept ones, or last ones that are not before `oldest`.
    /// Returns the number of bytes.
    pub(crate) fn copy(&self, buf: &mut [u8], at: u64, oldest: u64) -> usize {
        let kept = self.kept.from(at);
        let held = match kept.is_empty() && at >= oldest {
            true => self.recent(at, at.saturating_add(buf.len() as u64)),
            false => kept,
        };
        copy_start(buf, held)
    }

    /// The bytes that are kept from `at` on, in one piece.
    pub(crate) fn kept_from(&self, at: u64) -> &[u8] {
        self.kept.from(at)
    }

    /// Keeps the bytes from `start` to `end` for good: last ones at once, later ones when they arrive.
    ///
    /// # Errors
    /// The reason why they cannot all be kept.
    pub(crate) fn keep(&mut self, start: u64, end: u64) -> Result<(), Miss> {
        while let Some((start, end)) = self.kept.gap(start, end) {
            if start < self.oldest() {
                return Err(Miss::Gone(start));
            }
            let first = self.recent(start, end);
            let rest = self.recent(start + first.len() as u64, end);
            let both = [first, rest].concat();
            self.kept.add(start, end, &both)?;
        }
        Ok(())
    }

    /// Keeps these bytes of the stream, which begin at `start`.
    ///
    /// # Errors
    /// As [`keep`](Self::keep).
    pub(crate) fn keep_these(&mut self, start: u64, bytes: &[u8]) -> Result<(), Miss> {
        let all = start.saturating_add(bytes.len() as u64);
        while let Some((from, to)) = self.kept.gap(start, all) {
            self.kept.add(from, to, part(bytes, start, from, to))?;
        }
        Ok(())
    }

    /// The end of the first range that is kept and has not arrived as a whole.
    pub(crate) fn next_kept(&self) -> Option<u64> {
        let ends = self.kept.pieces.values().map(|piece| piece.end);
        ends.filter(|end| *end > self.position).min()
    }
}

/// The cost of a piece besides its bytes.
const PIECE_COST: u64 = 96;

/// Bytes that are kept, no more than a limit allows.
#[derive(Debug)]
struct Kept {
    /// Pieces by their start, apart from each other. A piece holds all of its bytes that have arrived.
    pieces: BTreeMap<u64, Piece>,
    cost: u64,
    most: u64,
}

#[derive(Debug)]
struct Piece {
    end: u64,
    bytes: Vec<u8>,
}

impl Kept {
    fn new(most: u64) -> Self {
        Kept {
            pieces: BTreeMap::new(),
            cost: 0,
            most,
        }
    }

    fn memory(&self) -> u64 {
        let pieces = self.pieces.values();
        pieces.map(|piece| piece.bytes.capacity() as u64).sum()
    }

    /// The bytes from `at` on, in one piece.
    fn from(&self, at: u64) -> &[u8] {
        let before = self.pieces.range(..=at).next_back();
        let held = before.and_then(|(start, piece)| {
            let skip = usize::try_from(at - start).ok()?;
            piece.bytes.get(skip..)
        });
        held.unwrap_or_default()
    }

    fn gap(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        gap(&self.pieces, |piece| piece.end, start, end)
    }

    /// Adds a piece, of which these bytes have arrived.
    fn add(&mut self, start: u64, end: u64, bytes: &[u8]) -> Result<(), Miss> {
        let cost = self.cost.saturating_add(end - start + PIECE_COST);
        let mut piece = Piece {
            end,
            bytes: Vec::new(),
        };
        if cost > self.most || append(&mut piece.bytes, bytes, end - start).is_err() {
            return Err(Miss::TooMany(cost));
        }
        self.cost = cost;
        self.pieces.insert(start, piece);
        Ok(())
    }

    /// Keeps what is to be kept of these bytes, which arrive at `start`.
    fn pass(&mut self, start: u64, fresh: &[u8]) -> Result<()> {
        let end = start + fresh.len() as u64;
        let before = self.pieces.range(..=start).next_back();
        let first = before.map_or(start, |(at, _)| *at);
        for (at, piece) in self.pieces.range_mut(first..end) {
            let have = at + piece.bytes.len() as u64;
            let bytes = part(fresh, start, have, piece.end);
            append(&mut piece.bytes, bytes, piece.end - at)?;
        }
        Ok(())
    }
}

/// The first range from `start` to `end` that none of these ranges has.
pub(super) fn gap<V>(
    ranges: &BTreeMap<u64, V>,
    end_of: impl Fn(&V) -> u64,
    start: u64,
    end: u64,
) -> Option<(u64, u64)> {
    let mut at = start;
    while let Some((_, range)) = ranges.range(..=at).next_back() {
        match end_of(range) {
            known if known > at => at = known,
            _ => break,
        }
    }
    let next = ranges.range(at..).next();
    (at < end).then(|| (at, next.map_or(end, |(next, _)| end.min(*next))))
}

/// The part from `from` to `to` of bytes that begin at `start`, as far as they reach.
pub(super) fn part(bytes: &[u8], start: u64, from: u64, to: u64) -> &[u8] {
    let end = start.saturating_add(bytes.len() as u64);
    let at = |offset: u64| usize::try_from(offset.clamp(start, end) - start).unwrap_or(0);
    bytes.get(at(from)..at(to)).unwrap_or_default()
}

/// Copies as many of these bytes as there is room for. Returns the number.
pub(super) fn copy_start(buf: &mut [u8], bytes: &[u8]) -> usize {
    let n = bytes.len().min(buf.len());
    if let (Some(to), Some(from)) = (buf.get_mut(..n), bytes.get(..n)) {
        to.copy_from_slice(from);
    }
    n
}

/// Appends to a vector that will never hold more than `most` bytes.
fn append(to: &mut Vec<u8>, bytes: &[u8], most: u64) -> Result<()> {
    let needed = to.len() + bytes.len();
    if needed > to.capacity() {
        let most = usize::try_from(most).unwrap_or(usize::MAX).max(needed);
        let capacity = to.capacity().saturating_mul(2).max(needed).min(most);
        to.try_reserve_exact(capacity - to.len())
            .map_err(no_memory)?;
    }
    to.extend_from_slice(bytes);
    Ok(())
}

fn no_memory(error: std::collections::TryReserveError) -> Error {
    Error::io("keep a part of the stream", io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_overlap_are_kept_once() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut window = Window::new(1, 256 + 6 * PIECE_COST);
        for (start, end) in [(10, 20), (30, 40), (0, 60), (15, 35), (50, 256)] {
            window.keep_these(start as u64, &bytes[start..end]).unwrap();
        }
        let mut all = vec![0; 256];
        let mut at = 0;
        while at < 256 {
            let n = window.copy(&mut all[at..], at as u64, 0);
            assert!(n > 0, "{at}");
            at += n;
        }
        assert_eq!(all, bytes);
        assert_eq!(window.copy(&mut all, 256, 0), 0);
        let cost = 512 + 7 * PIECE_COST;
        assert_eq!(window.keep_these(1000, &bytes), Err(Miss::TooMany(cost)));
    }
}
