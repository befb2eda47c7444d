//! What is kept of a stream that went by, and the file as far as it has arrived.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::image::Probe;
use crate::limits::Limits;
use crate::source::{BlockSource, readable, stored_extent};

/// What a stream's size is taken for until its end is seen: more than any table needs, and so far below
/// the largest offset that sums do not overflow.
const UNKNOWN_SIZE: u64 = 1 << 62;
/// How far from that a place counts as one at the end.
const END_ZONE: u64 = 1 << 40;
/// The most bytes that are kept of the start, and of the end. A VHDX has all of its headers in the first
/// MiB, a streamOptimized VMDK its directory of tables in the last.
const MOST: u64 = 1 << 20;
/// What a piece costs besides its bytes.
const PIECE_COST: u64 = 256;

/// Why bytes that a parser asked for are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// They will come by, up to this byte.
    Later(u64),
    /// They are at the end, which was not seen yet.
    AtEnd,
    /// They went by before anybody knew that they would be needed.
    Gone(u64),
    /// They are so many that they may not be kept.
    TooMany(u64),
}

/// The bytes that are kept: the start, the end, and what parsers asked for.
#[derive(Debug)]
pub(super) struct Store {
    head: Vec<u8>,
    head_len: u64,
    /// The last bytes that arrived, and up to as many before them.
    tail: Vec<u8>,
    tail_len: usize,
    /// Bytes wanted, by where they start. They are apart from each other and from the head.
    pieces: BTreeMap<u64, Piece>,
    /// What pieces may still cost.
    room: u64,
    position: u64,
    size: Option<u64>,
    misses: Vec<Miss>,
    /// How many bytes were too many to be kept, if some were.
    refused: Option<u64>,
    /// Bytes that parsers read before the end was seen.
    served: u64,
}

#[derive(Debug)]
struct Piece {
    end: u64,
    bytes: Vec<u8>,
}

impl Store {
    pub(super) fn new(limits: &Limits) -> Self {
        let all = limits.stream_bytes;
        let head_len = (all / 8).clamp(Probe::HEAD as u64, MOST);
        let tail = (all / 16).clamp(Probe::TAIL as u64, MOST);
        Store {
            head: Vec::new(),
            head_len,
            tail: Vec::new(),
            tail_len: usize::try_from(tail).unwrap_or(Probe::TAIL),
            pieces: BTreeMap::new(),
            room: all.saturating_sub(head_len + 2 * tail),
            position: 0,
            size: None,
            misses: Vec::new(),
            refused: None,
            served: 0,
        }
    }

    /// How many bytes are kept.
    pub(super) fn kept(&self) -> u64 {
        let pieces = self.pieces.values().map(|p| p.bytes.capacity() as u64);
        (self.head.capacity() + self.tail.capacity()) as u64 + pieces.sum::<u64>()
    }

    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Bytes of the start that are kept.
    pub(super) fn head_len(&self) -> u64 {
        self.head_len
    }

    pub(super) fn served(&self) -> u64 {
        self.served
    }

    /// Takes the next bytes of the stream.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<()> {
        let start = self.position;
        let end = start + chunk.len() as u64;
        let part = |from: u64, to: u64| {
            let from = usize::try_from(from.clamp(start, end) - start).unwrap_or(0);
            let to = usize::try_from(to.clamp(start, end) - start).unwrap_or(0);
            chunk.get(from..to).unwrap_or_default()
        };
        append(&mut self.head, part(start, self.head_len), self.head_len)?;
        let before = self.pieces.range(..=start).next_back();
        let first = before.map_or(start, |(at, _)| *at);
        for (at, piece) in self.pieces.range_mut(first..end) {
            let have = at + piece.bytes.len() as u64;
            if have < piece.end && have < end {
                append(&mut piece.bytes, part(have, piece.end), piece.end - at)?;
            }
        }
        let recent = chunk.len().saturating_sub(self.tail_len);
        let recent = chunk.get(recent..).unwrap_or_default();
        if self.tail.len() + recent.len() > 2 * self.tail_len {
            let old = self.tail.len() - self.tail_len.min(self.tail.len());
            self.tail.drain(..old);
        }
        if recent.len() == self.tail_len {
            self.tail.clear();
        }
        append(&mut self.tail, recent, 2 * self.tail_len as u64)?;
        self.position = end;
        Ok(())
    }

    /// The stream is over: its size is known, and what is at its end.
    pub(super) fn finish(&mut self) {
        self.size = Some(self.position);
    }

    /// What was asked for in vain since the last call.
    pub(super) fn take_misses(&mut self) -> Vec<Miss> {
        std::mem::take(&mut self.misses)
    }

    /// Where the first of the pieces that are on their way will be whole.
    pub(super) fn next_piece(&self) -> Option<u64> {
        let open = self.pieces.values().filter(|p| p.end > self.position);
        open.map(|piece| piece.end).min()
    }

    fn size(&self) -> u64 {
        self.size.unwrap_or(UNKNOWN_SIZE)
    }

    /// Where the bytes at the end that count begin. What is kept besides depends on how the stream was
    /// cut, and must not be seen.
    fn tail_start(&self) -> u64 {
        self.position - self.tail().len() as u64
    }

    fn tail(&self) -> &[u8] {
        let skip = self.tail.len().saturating_sub(self.tail_len);
        self.tail.get(skip..).unwrap_or_default()
    }

    /// The bytes at `at` that are kept in one place.
    fn run(&self, at: u64) -> Option<&[u8]> {
        let from = |bytes: &'_ [u8], start: u64| -> Option<std::ops::Range<usize>> {
            let skip = usize::try_from(at.checked_sub(start)?).ok()?;
            (skip < bytes.len()).then_some(skip..bytes.len())
        };
        if let Some(range) = from(&self.head, 0) {
            return self.head.get(range);
        }
        if let Some((start, piece)) = self.pieces.range(..=at).next_back() {
            if let Some(range) = from(&piece.bytes, *start) {
                return piece.bytes.get(range);
            }
        }
        let range = from(self.tail(), self.tail_start())?;
        self.tail().get(range)
    }

    /// Copies what is kept from `at` on, as far as it goes on without a gap.
    fn copy(&self, buf: &mut [u8], at: u64) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let Some(run) = self.run(at + done as u64) else {
                break;
            };
            let to = buf.get_mut(done..).unwrap_or_default();
            let n = run.len().min(to.len());
            if let (Some(to), Some(from)) = (to.get_mut(..n), run.get(..n)) {
                to.copy_from_slice(from);
            }
            done += n;
        }
        done
    }

    /// Sees to it that these bytes are kept for good, those that have arrived and those that will.
    ///
    /// # Errors
    /// Why they are not there, or not all of them.
    fn keep(&mut self, start: u64, end: u64) -> Result<(), Miss> {
        if self.size.is_none() && end > UNKNOWN_SIZE - END_ZONE {
            return Err(Miss::AtEnd);
        }
        let mut at = start.max(self.head_len);
        while at < end {
            let before = self.pieces.range(..=at).next_back();
            if let Some((_, piece)) = before.filter(|(_, piece)| piece.end > at) {
                at = piece.end;
                continue;
            }
            let after = self.pieces.range(at..).next();
            let until = after.map_or(end, |(next, _)| end.min(*next));
            self.add_piece(at, until)?;
            at = until;
        }
        match end.min(self.size()) > self.position {
            true => Err(Miss::Later(end)),
            false => Ok(()),
        }
    }

    /// A piece of bytes that no other one has: out of the tail, as far as they went by.
    fn add_piece(&mut self, start: u64, end: u64) -> Result<(), Miss> {
        if start < self.tail_start() && start < self.position {
            return Err(Miss::Gone(start));
        }
        let cost = (end - start).saturating_add(PIECE_COST);
        let Some(room) = self.room.checked_sub(cost) else {
            self.refused = Some(end - start);
            return Err(Miss::TooMany(end - start));
        };
        let mut piece = Piece {
            end,
            bytes: Vec::new(),
        };
        if start < self.position {
            let len = usize::try_from(end.min(self.position) - start).unwrap_or(0);
            let skip = usize::try_from(start - self.tail_start()).unwrap_or(usize::MAX);
            let known = self.tail().get(skip..).and_then(|rest| rest.get(..len));
            append(&mut piece.bytes, known.unwrap_or_default(), end - start)
                .map_err(|_| Miss::TooMany(end - start))?;
        }
        self.room = room;
        self.pieces.insert(start, piece);
        Ok(())
    }

    /// Reads for a parser.
    fn read(&mut self, buf: &mut [u8], at: u64) -> Result<(), Miss> {
        self.served += buf.len() as u64;
        // At the end nothing moves any more, and what is there can be read where it is.
        if self.size.is_none() {
            self.keep(at, at.saturating_add(buf.len() as u64))?;
        }
        let n = self.copy(buf, at);
        if n < buf.len() {
            return Err(match self.refused {
                Some(bytes) => Miss::TooMany(bytes),
                None => Miss::Gone(at + n as u64),
            });
        }
        Ok(())
    }
}

/// Appends to a vector that will never hold more than `most` bytes.
fn append(to: &mut Vec<u8>, bytes: &[u8], most: u64) -> Result<()> {
    let needed = to.len() + bytes.len();
    if needed > to.capacity() {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let capacity = needed
            .max(to.capacity().saturating_mul(2))
            .min(most.max(needed));
        to.try_reserve_exact(capacity - to.len())
            .map_err(|e| Error::io("keep a part of the stream", io::Error::other(e)))?;
    }
    to.extend_from_slice(bytes);
    Ok(())
}

/// How a file that has not arrived as a whole answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// With the bytes, or with an error that says that they are not there.
    Truth,
    /// With zeros for what is not there, so that a parser goes on and tells what else it will need. What
    /// it makes of them is worth nothing.
    Guess,
    /// With fewer bytes than were asked for, as at the end of a file.
    Prefix,
}

/// A stream as a file, as far as it has arrived.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    store: Arc<Mutex<Store>>,
    answer: Answer,
}

impl Arrived {
    pub(super) fn new(store: &Arc<Mutex<Store>>, answer: Answer) -> Self {
        Arrived {
            store: Arc::clone(store),
            answer,
        }
    }
}

pub(super) fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a read of bytes that have not arrived fails with: ask again later.
#[derive(Debug, thiserror::Error)]
#[error("{} bytes at byte {offset} of the stream are not at hand", len)]
struct NotAtHand {
    offset: u64,
    len: usize,
}

impl BlockSource for Arrived {
    fn size(&self) -> u64 {
        lock(&self.store).size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut store = lock(&self.store);
        let n = readable(buf.len(), offset, store.size());
        let buf = buf.get_mut(..n).unwrap_or_default();
        if self.answer == Answer::Prefix {
            return Ok(store.copy(buf, offset));
        }
        let Err(miss) = store.read(buf, offset) else {
            return Ok(n);
        };
        store.misses.push(miss);
        if self.answer == Answer::Guess && !matches!(miss, Miss::TooMany(_)) {
            let known = store.copy(buf, offset);
            buf.get_mut(known..).unwrap_or_default().fill(0);
            return Ok(n);
        }
        let len = buf.len();
        let source = io::Error::new(io::ErrorKind::WouldBlock, NotAtHand { offset, len });
        Err(Error::io("read the stream's table", source))
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        stored_extent(offset, limit, self.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(bytes: u64) -> Arc<Mutex<Store>> {
        let limits = Limits {
            stream_bytes: bytes,
            ..Limits::default()
        };
        Arc::new(Mutex::new(Store::new(&limits)))
    }

    fn byte(at: u64) -> u8 {
        u8::try_from(at * 31 % 251).unwrap()
    }

    fn push(store: &Mutex<Store>, len: usize) {
        let at = lock(store).position;
        let chunk: Vec<u8> = (at..).take(len).map(byte).collect();
        lock(store).push(&chunk).unwrap();
    }

    #[test]
    fn what_was_asked_for_is_kept_and_the_rest_is_gone() {
        let kept = store(1 << 20);
        let file = Arrived::new(&kept, Answer::Truth);
        push(&kept, 200_000);
        let mut buf = [0; 5000];
        assert!(file.read_at(&mut buf, 300_000).is_err());
        assert_eq!(lock(&kept).take_misses(), [Miss::Later(305_000)]);
        assert_eq!(lock(&kept).next_piece(), Some(305_000));
        for len in [1, 99_999, 4999, 7, 800_000] {
            push(&kept, len);
        }
        file.read_at(&mut buf, 300_000).unwrap();
        assert!(buf.iter().zip(300_000..).all(|(b, at)| *b == byte(at)));
        // The head, across into what is only in the tail no longer.
        file.read_at(&mut buf, 100_000).unwrap();
        assert!(file.read_at(&mut buf, 500_000).is_err());
        assert_eq!(lock(&kept).take_misses(), [Miss::Gone(500_000)]);
        // The tail, which is kept from then on although it moves on.
        file.read_at(&mut buf, 1_090_000).unwrap();
        push(&kept, 500_000);
        file.read_at(&mut buf, 1_090_000).unwrap();
        assert!(buf.iter().zip(1_090_000..).all(|(b, at)| *b == byte(at)));
        lock(&kept).finish();
        let size = file.size();
        assert_eq!(size, 200_000 + 99_999 + 5007 + 800_000 + 500_000);
        assert_eq!(file.read_at(&mut buf, size - 100).unwrap(), 100);
        assert_eq!(buf[99], byte(size - 1));
        assert!(lock(&kept).kept() <= 1 << 20);
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let kept = store(100_000);
        let file = Arrived::new(&kept, Answer::Guess);
        let mut buf = vec![1; 90_000];
        assert!(file.read_at(&mut buf, 1 << 30).is_err());
        assert_eq!(lock(&kept).take_misses(), [Miss::TooMany(90_000)]);
        for at in 0..1000 {
            let _ = file.read_at(&mut buf[..10_000], 40_000 + at * 20_000);
        }
        for _ in 0..400 {
            push(&kept, 50_000);
        }
        let bytes = lock(&kept).kept();
        assert!(bytes > 60_000 && bytes <= 100_000, "{bytes}");
    }
}
