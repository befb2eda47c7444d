//! Bytes that are kept of an inspected stream, and the file as far as it has arrived.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::image::Probe;
use crate::limits::Limits;
use crate::source::{BlockSource, readable, stored_extent};
use crate::storage::{Miss, Window};

/// The most bytes that are kept of the start, and of the end. A VHDX has all of its headers in the first
/// MiB, a streamOptimized VMDK its directory of tables in the last.
const MOST: u64 = 1 << 20;
/// The bytes that are kept: the start, the end, and those that parsers asked for.
#[derive(Debug)]
pub(super) struct Store {
    window: Window,
    head_len: u64,
    /// The cost of the last bytes.
    tail: u64,
    misses: Vec<Miss>,
    /// The reason why bytes were not kept, if they were too many.
    refused: Option<Miss>,
    /// Bytes that parsers read before the end was seen.
    served: u64,
}

impl Store {
    pub(super) fn new(limits: &Limits) -> Self {
        let all = limits.stream_bytes;
        let head_len = (all / 8).clamp(Probe::HEAD as u64, MOST);
        let tail = (all / 16).clamp(Probe::TAIL as u64, MOST);
        let mut store = Store {
            window: Window::new(
                usize::try_from(tail).unwrap_or(Probe::TAIL),
                all.saturating_sub(tail).max(head_len + tail),
            ),
            head_len,
            tail,
            misses: Vec::new(),
            refused: None,
            served: 0,
        };
        let _ = store.keep(0, head_len);
        store
    }

    /// Number of bytes kept.
    pub(super) fn kept(&self) -> u64 {
        self.window.memory()
    }

    pub(super) fn head(&self) -> &[u8] {
        self.window.kept_from(0)
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
        self.window.push(chunk)
    }

    /// The stream is over: its size is known, and what is at its end.
    pub(super) fn finish(&mut self) {
        self.window.end();
    }

    /// Takes the misses since the last call.
    pub(super) fn take_misses(&mut self) -> Vec<Miss> {
        std::mem::take(&mut self.misses)
    }

    /// End of the first piece that has not arrived as a whole.
    pub(super) fn next_piece(&self) -> Option<u64> {
        self.window.next_kept()
    }

    /// Copies what is kept from `at` on, as far as it goes on without a gap.
    fn copy(&self, buf: &mut [u8], at: u64) -> usize {
        let mut done = 0;
        loop {
            let rest = buf.get_mut(done..).unwrap_or_default();
            match self.window.copy(rest, at + done as u64, 0) {
                0 => return done,
                n => done += n,
            }
        }
    }

    /// Keeps these bytes for good, those that have arrived and those that will.
    ///
    /// # Errors
    /// The reason why they are not there, or not all of them.
    fn keep(&mut self, start: u64, end: u64) -> Result<(), Miss> {
        self.window.keep(start, end).map_err(|miss| match miss {
            Miss::TooMany(cost) => {
                let miss = Miss::TooMany(cost + self.tail);
                self.refused = Some(miss);
                miss
            }
            miss => miss,
        })?;
        match end > self.window.position() {
            true => Err(Miss::Later(end)),
            false => Ok(()),
        }
    }

    /// Reads for a parser.
    fn read(&mut self, buf: &mut [u8], at: u64) -> Result<(), Miss> {
        self.served += buf.len() as u64;
        // At the end nothing moves any more, and what is there can be read where it is.
        if self.window.length().known().is_none() {
            self.keep(at, at.saturating_add(buf.len() as u64))?;
        }
        match self.copy(buf, at) {
            n if n < buf.len() => Err(self.refused.unwrap_or(Miss::Gone(at + n as u64))),
            _ => Ok(()),
        }
    }
}

/// The answer to reads of bytes that have not arrived.
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

/// Error of a read of bytes that are not at hand.
#[derive(Debug, thiserror::Error)]
#[error("{} bytes at byte {offset} of the stream are not at hand", len)]
struct NotAtHand {
    offset: u64,
    len: usize,
}

impl BlockSource for Arrived {
    fn size(&self) -> u64 {
        lock(&self.store).window.length().bound()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut store = lock(&self.store);
        let n = readable(buf.len(), offset, store.window.length().bound());
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
        let at = lock(store).window.position();
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
        let misses = lock(&kept).take_misses();
        assert!(matches!(misses[..], [Miss::TooMany(bytes)] if bytes > 100_000));
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
