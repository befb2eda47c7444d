//! Streams as sources: bytes that come once, one behind the other.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::extent::ExtentKind;
use crate::progress::Cancel;
use crate::source::{BlockSource, check_extent, readable};
use crate::storage::kept::Kept;
use crate::storage::spill::Spill;

/// What the size of a stream is taken for until its end is seen: more than any table needs, and so far
/// below the largest offset that sums do not overflow.
pub(crate) const UNKNOWN_SIZE: u64 = 1 << 62;
/// How far from that a place counts as one at the end.
const END_ZONE: u64 = 1 << 40;
/// The most bytes that are read from the stream at once.
const CHUNK: usize = 256 << 10;
/// By how much the stream may be ahead of what was asked for.
const AHEAD: u64 = 4 << 20;
/// The least by which a table may be ahead before there is data to be lost.
const FIRST_GAP: u64 = 16 << 20;
/// The most reads that are refused and whose bytes are kept for later.
const MOST_REFUSED: usize = 1024;
/// Bytes before a gap that are spilled with it: packed units share their sectors.
const SLACK: u64 = 4 << 10;
/// Bytes of the blocks that are kept because only a part of them was read.
const BLOCKS: u64 = 4 << 20;

/// Whether a size is that of a stream whose end was not seen.
pub(crate) fn is_unknown(size: u64) -> bool {
    size > UNKNOWN_SIZE - END_ZONE
}

/// An [`io::Read`] as a source that is read about in its order.
///
/// The bytes before the furthest one that was asked for are at hand for the length of a window, and so is
/// what was read as a [table](Self::keep), for good. Bytes that went by are an [`Error::OutOfOrder`],
/// unless there is a spill file. Until the end is seen the size is [`UNKNOWN_SIZE`] and what is asked for
/// at the end is zeros: whoever reads that has to ask again when the end [was seen](Self::ended).
pub(crate) struct Incoming {
    state: Mutex<State>,
}

struct State {
    reader: Box<dyn Read + Send>,
    /// The last bytes that arrived: byte `n` of the stream is at `n` modulo `ring_len`. It grows to that
    /// with the stream, so that a short one takes little.
    ring: Vec<u8>,
    ring_len: usize,
    /// How many bytes arrived.
    position: u64,
    /// The end of the furthest bytes that were asked for.
    demanded: u64,
    /// How many bytes before that are sure to be at hand, however the reader cuts them.
    window: u64,
    size: Option<u64>,
    kept: Kept,
    keeps: bool,
    /// Whether something else than a table was read.
    begun: bool,
    /// Bytes that are kept when they come by: in order, apart, and none of them behind.
    owed: VecDeque<(u64, u64)>,
    /// How many of them were asked for too early.
    refused: usize,
    /// Bytes of a block: packed units that lie in one may come at any time. 1 where there are none.
    block: u64,
    /// The blocks of which a part was read last, the last one first.
    blocks: VecDeque<(u64, Vec<u8>)>,
    hashers: Vec<Hasher>,
    spill: Option<Spill>,
    cancel: Cancel,
    /// Whether the reader failed: nobody knows what would come next.
    failed: bool,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Incoming")
            .field("position", &state.position)
            .field("size", &state.size)
            .finish_non_exhaustive()
    }
}

/// What a stream may take up.
pub(crate) struct Room {
    /// Bytes of the window.
    pub(crate) window: u64,
    /// Bytes of tables that are kept.
    pub(crate) tables: u64,
    pub(crate) spill: Option<Spill>,
}

impl Incoming {
    /// A stream of which nothing was read.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no memory for the window.
    pub(crate) fn new(
        reader: Box<dyn Read + Send>,
        room: Room,
        hashers: Vec<Hasher>,
        cancel: Cancel,
    ) -> Result<Self> {
        let window = room.window.max(AHEAD);
        let len = usize::try_from(window + AHEAD).unwrap_or(usize::MAX);
        let mut ring = Vec::new();
        ring.try_reserve_exact(len)
            .map_err(|e| Error::io("keep a part of the stream", io::Error::other(e)))?;
        Ok(Incoming {
            state: Mutex::new(State {
                reader,
                ring,
                ring_len: len,
                position: 0,
                demanded: 0,
                window,
                size: None,
                kept: Kept::new(room.tables),
                keeps: true,
                begun: false,
                owed: VecDeque::new(),
                refused: 0,
                block: 1,
                blocks: VecDeque::new(),
                hashers,
                spill: room.spill,
                cancel,
                failed: false,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what is read from now on is a table, and kept.
    pub(crate) fn keep(&self, keeps: bool) {
        let mut state = self.lock();
        state.keeps = keeps;
        state.begun |= !keeps;
    }

    /// Sees to it that these ranges of bytes are kept when they come by.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if those that are here already are too many.
    pub(crate) fn owe(&self, ranges: Vec<(u64, u64)>) -> Result<()> {
        self.lock().owe(ranges)
    }

    /// Says of how many bytes the blocks are in which packed units lie together.
    pub(crate) fn set_block(&self, bytes: u64) {
        self.lock().block = bytes.clamp(64 << 10, 2 << 20);
    }

    /// Whether the end was seen, so that the size is known.
    pub(crate) fn ended(&self) -> bool {
        self.lock().size.is_some()
    }

    /// Bytes of memory that the window takes.
    pub(crate) fn memory(&self) -> u64 {
        self.lock().ring_len as u64
    }

    pub(crate) fn spills(&self) -> bool {
        self.lock().spill.is_some()
    }

    /// Waits until this byte is at hand, no more than some MiB ahead, or the end is seen.
    ///
    /// # Errors
    /// What the reader fails with.
    pub(crate) fn arrive(&self, end: u64) -> Result<()> {
        let mut state = self.lock();
        while state.position < end && state.size.is_none() {
            state.fill(false)?;
        }
        Ok(())
    }

    /// Reads to the end. What comes by is spilled if `spilled`.
    ///
    /// # Errors
    /// What the reader fails with, and [`Error::LimitExceeded`] if the spill file would be too large.
    pub(crate) fn drain(&self, spilled: bool) -> Result<()> {
        let mut state = self.lock();
        if spilled {
            let from = state.gap_start();
            state.spill_window(from)?;
        }
        while state.size.is_none() {
            state.fill(spilled)?;
        }
        Ok(())
    }

    /// The digests of all that arrived.
    pub(crate) fn take_digests(&self) -> Vec<Digest> {
        let hashers = std::mem::take(&mut self.lock().hashers);
        hashers.into_iter().map(Hasher::finish).collect()
    }
}

impl State {
    fn size(&self) -> u64 {
        self.size.unwrap_or(UNKNOWN_SIZE)
    }

    /// Reads the next bytes of the stream, or sees its end.
    fn fill(&mut self, spilled: bool) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let failed = |source| Error::io("read the stream", source);
        if self.failed {
            return Err(failed(io::Error::other("an earlier read failed")));
        }
        let at = self.in_ring(self.position);
        let end = (at + CHUNK).min(self.ring_len);
        if self.ring.len() < end {
            self.ring.resize(end, 0);
        }
        let room = self.ring.get_mut(at..end).unwrap_or_default();
        let n = match self.reader.read(room) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(e) => {
                self.failed = true;
                return Err(failed(e));
            }
        };
        if n == 0 {
            self.size = Some(self.position);
            return Ok(());
        }
        let Some(fresh) = room.get(..n) else {
            self.failed = true;
            return Err(Error::invalid(
                "the reader returned more than was asked for",
            ));
        };
        for hasher in &mut self.hashers {
            hasher.update(fresh);
        }
        let after = self.position + n as u64;
        while let Some((start, end)) = self.owed.front().filter(|(start, _)| *start < after) {
            let (from, until) = (self.position.max(*start), after.min(*end));
            let skip = usize::try_from(from - self.position).unwrap_or(usize::MAX);
            let take = usize::try_from(until.saturating_sub(from)).unwrap_or(0);
            let bytes = fresh.get(skip..).and_then(|rest| rest.get(..take));
            self.kept.insert(from, bytes.unwrap_or_default())?;
            if *end > after {
                break;
            }
            self.owed.pop_front();
        }
        if let (true, Some(spill)) = (spilled, &mut self.spill) {
            spill.write(self.position, fresh)?;
        }
        self.position += n as u64;
        if is_unknown(self.position) {
            return Err(Error::invalid("the stream does not end"));
        }
        Ok(())
    }

    fn owe(&mut self, ranges: Vec<(u64, u64)>) -> Result<()> {
        let mut all: Vec<(u64, u64)> = self.owed.drain(..).chain(ranges).collect();
        all.sort_unstable();
        for (start, end) in all {
            let start = start.max(self.oldest());
            if start >= end {
                continue;
            }
            match self.owed.back_mut().filter(|(_, last)| *last >= start) {
                Some((_, last)) => *last = end.max(*last),
                None => self.owed.push_back((start, end)),
            }
        }
        while let Some((start, end)) = self.owed.front().copied() {
            let mut at = start;
            while at < end.min(self.position) {
                let held = self.held(at, end).to_vec();
                self.kept.insert(at, &held)?;
                at += (held.len() as u64).max(1);
            }
            if end > self.position {
                break;
            }
            self.owed.pop_front();
        }
        Ok(())
    }

    /// What the window holds of the bytes from `at` to `end`, in one piece.
    fn held(&self, at: u64, end: u64) -> &[u8] {
        if at >= self.position || at < self.oldest() {
            return &[];
        }
        let held = self.ring.get(self.in_ring(at)..).unwrap_or_default();
        let left = usize::try_from(end.min(self.position) - at).unwrap_or(usize::MAX);
        held.get(..left).unwrap_or(held)
    }

    /// Keeps the block in which a read ended, if it did not end with it: what else is in it may be
    /// asked for when it has long gone by.
    fn keep_block(&mut self, end: u64) -> Result<()> {
        let start = end - end % self.block;
        if start == end {
            return Ok(());
        }
        if let Some(known) = self.blocks.iter().position(|(at, _)| *at == start) {
            let block = self.blocks.remove(known);
            self.blocks.extend(block);
            self.blocks.rotate_right(1);
            return Ok(());
        }
        let stop = start + self.block;
        while self.position < stop && self.size.is_none() {
            self.fill(false)?;
        }
        let most = usize::try_from(BLOCKS / self.block).unwrap_or(1).max(2);
        let oldest = match self.blocks.len() >= most {
            true => self.blocks.pop_back(),
            false => None,
        };
        let mut bytes = oldest.map_or_else(Vec::new, |(_, bytes)| bytes);
        bytes.clear();
        while start + (bytes.len() as u64) < stop.min(self.position) {
            let more = self.held(start + bytes.len() as u64, stop);
            if more.is_empty() {
                return Ok(());
            }
            bytes.extend_from_slice(more);
        }
        self.blocks.push_front((start, bytes));
        Ok(())
    }

    /// Copies what is kept of blocks from `at` on, in one piece.
    fn copy_of_blocks(&self, buf: &mut [u8], at: u64) -> usize {
        let start = at - at % self.block;
        let Some((_, bytes)) = self.blocks.iter().find(|(known, _)| *known == start) else {
            return 0;
        };
        let skip = usize::try_from(at - start).unwrap_or(usize::MAX);
        let held = bytes.get(skip..).unwrap_or_default();
        let n = held.len().min(buf.len());
        if let (Some(to), Some(held)) = (buf.get_mut(..n), held.get(..n)) {
            to.copy_from_slice(held);
        }
        n
    }

    /// Where the bytes begin that nobody was given.
    fn gap_start(&self) -> u64 {
        self.demanded.saturating_sub(SLACK)
    }

    /// Spills what has arrived from `start` on.
    fn spill_window(&mut self, start: u64) -> Result<()> {
        let mut at = start.max(self.oldest());
        while at < self.position {
            let from = self.in_ring(at);
            let bytes = self.ring.get(from..).unwrap_or_default();
            let left = usize::try_from(self.position - at).unwrap_or(usize::MAX);
            let bytes = bytes.get(..left).unwrap_or(bytes);
            if let Some(spill) = &mut self.spill {
                spill.write(at, bytes)?;
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// The first byte that the window holds.
    fn oldest(&self) -> u64 {
        self.position.saturating_sub(self.ring_len as u64)
    }

    fn in_ring(&self, at: u64) -> usize {
        usize::try_from(at % (self.ring_len as u64).max(1)).unwrap_or(0)
    }

    /// Copies from the window what it holds from `at` on, in one piece.
    fn copy_of_window(&self, buf: &mut [u8], at: u64, demanded: u64) -> usize {
        // What is at hand by chance is not served: it would depend on how the reader cuts.
        let sure = self.size.is_some() || at + self.window >= demanded;
        if !sure {
            return 0;
        }
        let held = self.held(at, at.saturating_add(buf.len() as u64));
        if let Some(to) = buf.get_mut(..held.len()) {
            to.copy_from_slice(held);
        }
        held.len()
    }

    fn out_of_order(&self, offset: u64) -> Error {
        Error::OutOfOrder {
            offset,
            position: self.demanded,
        }
    }

    fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size());
        let buf = buf.get_mut(..want).unwrap_or_default();
        if buf.is_empty() {
            return Ok(0);
        }
        let end = offset + want as u64;
        if self.size.is_none() {
            if is_unknown(end) {
                buf.fill(0);
                return Ok(want);
            }
            self.go_to(offset, end)?;
        }
        let demanded = self.demanded;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let mut n = self.kept.copy(rest, at);
            if n == 0 {
                n = self.copy_of_window(rest, at, demanded);
            }
            if n == 0 {
                n = self.copy_of_blocks(rest, at);
            }
            if let (0, Some(spill)) = (n, &self.spill) {
                n = spill.read(rest, at)?;
            }
            if n > 0 {
                done += n;
            } else if at < self.position {
                return Err(self.out_of_order(at));
            } else if self.size.is_some() {
                break;
            } else {
                self.fill(false)?;
            }
        }
        self.demanded = self.demanded.max(offset + done as u64);
        match (self.keeps, self.size) {
            (true, None) => self
                .kept
                .insert(offset, buf.get(..done).unwrap_or_default())?,
            (false, None) => self.keep_block(offset + done as u64)?,
            (_, Some(_)) => {}
        }
        Ok(done)
    }

    /// Goes on to `offset`, if that is ahead.
    fn go_to(&mut self, offset: u64, end: u64) -> Result<()> {
        let Some(gap) = offset.checked_sub(self.demanded).filter(|gap| *gap > 0) else {
            return Ok(());
        };
        if self.spill.is_none() {
            // To skip so much for a table is to lose the data.
            let most = match self.begun {
                true => self.window,
                false => self.window.max(FIRST_GAP),
            };
            if self.keeps && gap > most {
                if self.refused < MOST_REFUSED {
                    self.refused += 1;
                    self.owe(vec![(offset, end)])?;
                }
                return Err(self.out_of_order(offset));
            }
        } else {
            let from = self.gap_start();
            self.spill_window(from)?;
        }
        while self.position < offset && self.size.is_none() {
            self.fill(true)?;
        }
        Ok(())
    }
}

impl BlockSource for Incoming {
    fn size(&self) -> u64 {
        self.lock().size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.lock().read(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        Ok(Extent {
            start: offset,
            len: check_extent(offset, limit, self.size())?,
            kind: ExtentKind::Data,
            depth: 0,
            host_offset: Some(offset),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    /// Gives as many bytes at a time as it says.
    struct Cut {
        at: u64,
        len: u64,
        size: usize,
    }

    fn byte(at: u64) -> u8 {
        u8::try_from(at * 31 % 251).unwrap()
    }

    impl Read for Cut {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let left = usize::try_from(self.len - self.at).unwrap();
            let n = left.min(buf.len()).min(self.size);
            for (byte_of, at) in buf.iter_mut().take(n).zip(self.at..) {
                *byte_of = byte(at);
            }
            self.at += n as u64;
            Ok(n)
        }
    }

    fn incoming(len: u64, size: usize, spill: Option<Spill>) -> Incoming {
        let reader = Box::new(Cut { at: 0, len, size });
        let room = Room {
            window: 0,
            tables: 1 << 20,
            spill,
        };
        let hasher = Hasher::new(Algorithm::Md5).unwrap();
        Incoming::new(reader, room, vec![hasher], Cancel::new()).unwrap()
    }

    fn read(from: &Incoming, at: u64, len: usize) -> Result<usize> {
        let mut buf = vec![0; len];
        let n = from.read_at(&mut buf, at)?;
        let mut some = buf[..n].iter().zip(at..).step_by(97);
        assert!(some.all(|(b, at)| *b == byte(at)));
        Ok(n)
    }

    #[test]
    fn what_went_by_is_there_as_far_as_the_window_goes_however_it_is_cut() {
        const MIB: u64 = 1 << 20;
        for size in [4099, 1 << 30] {
            let stream = incoming(20 * MIB, size, None);
            assert!(is_unknown(stream.size()));
            // A table, which stays.
            assert_eq!(read(&stream, 100, 5000).unwrap(), 5000);
            // What is told by the end is not known.
            let mut end = [1; 512];
            stream.read_at(&mut end, stream.size() - 512).unwrap();
            assert_eq!(end, [0; 512]);
            stream.owe(vec![(7 * MIB, 7 * MIB + 300)]).unwrap();
            stream.keep(false);
            for at in 0..11 {
                assert_eq!(read(&stream, at * MIB, 1 << 20).unwrap(), 1 << 20);
            }
            assert_eq!(read(&stream, 7 * MIB, 4 << 20).unwrap(), 4 << 20);
            let gone = read(&stream, 7 * MIB - 1, 10).unwrap_err();
            assert!(matches!(gone, Error::OutOfOrder { offset, .. } if offset == 7 * MIB - 1));
            assert_eq!(read(&stream, 200, 4900).unwrap(), 4900);
            // A table that is far ahead is refused, and nothing is lost; then it is kept.
            stream.keep(true);
            assert!(read(&stream, 16 * MIB, 100).is_err());
            stream.keep(false);
            assert_eq!(read(&stream, 11 * MIB, 9 << 20).unwrap(), 9 << 20);
            assert_eq!(read(&stream, 7 * MIB, 300).unwrap(), 300);
            assert_eq!(read(&stream, 19 * MIB, 2 << 20).unwrap(), 1 << 20);
            assert_eq!(stream.size(), 20 * MIB);
            assert_eq!(read(&stream, 16 * MIB, 100).unwrap(), 100);
            let all: Vec<u8> = (0..20 * MIB).map(byte).collect();
            assert_eq!(
                stream.take_digests(),
                [Algorithm::Md5.digest(&all).unwrap()]
            );
        }
    }

    #[test]
    fn a_block_of_which_a_part_was_read_stays() {
        let stream = incoming(20 << 20, 70_000, None);
        stream.set_block(64 << 10);
        stream.keep(false);
        read(&stream, 0, 1000).unwrap();
        read(&stream, 10 << 20, 1 << 20).unwrap();
        assert_eq!(read(&stream, 1000, 64_000).unwrap(), 64_000);
        assert!(read(&stream, 70_000, 10).is_err());
    }

    #[test]
    fn what_is_left_out_is_spilled_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::create(folder.path(), 9 << 20).unwrap();
        let stream = incoming(30 << 20, 100_000, Some(spill));
        stream.keep(false);
        read(&stream, 0, 1 << 20).unwrap();
        read(&stream, 8 << 20, 1 << 20).unwrap();
        read(&stream, 9 << 20, 8 << 20).unwrap();
        for at in (1..8).rev() {
            assert_eq!(read(&stream, at << 20, 1 << 20).unwrap(), 1 << 20);
        }
        assert!(matches!(
            read(&stream, 0, 10),
            Err(Error::OutOfOrder { .. })
        ));
        let error = read(&stream, 25 << 20, 10).unwrap_err();
        assert!(error.to_string().contains("a larger spill file"), "{error}");
    }
}
