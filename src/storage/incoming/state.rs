//! What a stream has brought: the window, what is kept, and how to go on.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};

use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::source::readable;
use crate::storage::kept::{Kept, copy_part};
use crate::storage::spill::Spill;

use super::{UNKNOWN_SIZE, is_unknown};

/// The most bytes that are read from the stream at once.
const CHUNK: usize = 256 << 10;
/// The least by which a table may be ahead before there is data to be lost.
const FIRST_GAP: u64 = 16 << 20;
/// The most reads that are refused and whose bytes are kept for later.
const MOST_REFUSED: usize = 1024;
/// Bytes before a gap that are spilled with it: packed units share their sectors.
const SLACK: u64 = 4 << 10;
/// Bytes of the blocks that are kept because only a part of them was read.
const BLOCKS: u64 = 4 << 20;

/// An error of the reader that can be told more than once.
#[derive(Debug)]
pub(super) struct Failure {
    kind: ErrorKind,
    code: Option<i32>,
    text: String,
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        Failure {
            kind: error.kind(),
            code: error.raw_os_error(),
            text: error.to_string(),
        }
    }

    fn error(&self) -> Error {
        let again = match self.code {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.kind, self.text.as_str()),
        };
        Error::io("read the stream", again)
    }
}

pub(super) struct State {
    pub(super) reader: Box<dyn Read + Send>,
    /// The last bytes that arrived: byte `n` of the stream is at `n` modulo `ring_len`. It grows to that
    /// with the stream, so that a short one takes little.
    pub(super) ring: Vec<u8>,
    pub(super) ring_len: usize,
    /// How many bytes arrived.
    pub(super) position: u64,
    /// The end of the furthest bytes that were asked for.
    pub(super) demanded: u64,
    /// How many bytes before that are sure to be at hand, however the reader cuts them.
    pub(super) window: u64,
    pub(super) size: Option<u64>,
    pub(super) kept: Kept,
    pub(super) keeps: bool,
    /// Whether something else than a table was read.
    pub(super) begun: bool,
    /// Bytes that are kept when they come by: in order, apart, and none of them behind.
    pub(super) owed: VecDeque<(u64, u64)>,
    /// How many of them were asked for too early.
    pub(super) refused: usize,
    /// Bytes of a block: packed units that lie in one may come at any time. 1 where there are none.
    pub(super) block: u64,
    /// The blocks of which a part was read last, the last one first.
    pub(super) blocks: VecDeque<(u64, Vec<u8>)>,
    pub(super) hashers: Vec<Hasher>,
    pub(super) spill: Option<Spill>,
    pub(super) cancel: Cancel,
    /// What the reader failed with: nobody knows what would come next, and whoever asks is told the same,
    /// so that of several threads it does not matter which one says it.
    pub(super) failure: Option<Failure>,
}

impl State {
    pub(super) fn size(&self) -> u64 {
        self.size.unwrap_or(UNKNOWN_SIZE)
    }

    /// Reads the next bytes of the stream, or sees its end.
    pub(super) fn fill(&mut self, spilled: bool) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if let Some(failure) = &self.failure {
            return Err(failure.error());
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
                self.failure = Some(Failure::of(&e));
                return Err(Error::io("read the stream", e));
            }
        };
        if n == 0 {
            self.size = Some(self.position);
            return Ok(());
        }
        let Some(fresh) = room.get(..n) else {
            let problem = "the reader returned more than was asked for";
            self.failure = Some(Failure::of(&io::Error::new(
                ErrorKind::InvalidData,
                problem,
            )));
            return Err(Error::invalid(problem));
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

    pub(super) fn owe(&mut self, ranges: Vec<(u64, u64)>) -> Result<()> {
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
        copy_part(buf, bytes, at - start)
    }

    /// Where the bytes begin that nobody was given.
    pub(super) fn gap_start(&self) -> u64 {
        self.demanded.saturating_sub(SLACK)
    }

    /// Spills what has arrived from `start` on.
    pub(super) fn spill_window(&mut self, start: u64) -> Result<()> {
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

    pub(super) fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<usize> {
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
