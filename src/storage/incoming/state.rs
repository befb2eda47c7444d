//! State of a stream that is read: its window, the bytes that are kept, and the reader.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};

use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::source::readable;
use crate::storage::spill::Spill;
use crate::storage::window::{Miss, Window, copy_start};

/// The most bytes that are read from the stream at once.
const CHUNK: usize = 256 << 10;
/// The least by which a table may be ahead before there is data to be lost.
const FIRST_GAP: u64 = 16 << 20;
/// The most reads that are refused and whose bytes are kept for later.
const MOST_REFUSED: usize = 1024;
/// Bytes before a gap that are spilled with it: compressed units share their sectors.
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
    pub(super) arrived: Window,
    /// The end of the furthest bytes that were asked for.
    pub(super) demanded: u64,
    /// Number of bytes before `demanded` that are at hand for any sizes of reads.
    pub(super) window: u64,
    /// The most that the tables that are kept may cost.
    pub(super) tables: u64,
    pub(super) keeps: bool,
    /// True once guest data was read.
    pub(super) begun: bool,
    /// Number of tables that were asked for too early.
    pub(super) refused: usize,
    /// Bytes of a block, of which the compressed units are read in any order; 1 without such units.
    pub(super) block: u64,
    /// The blocks of which a part was read last, the last one first.
    pub(super) blocks: VecDeque<(u64, Vec<u8>)>,
    pub(super) hashers: Vec<Hasher>,
    pub(super) spill: Option<Spill>,
    pub(super) cancel: Cancel,
    /// The error that the reader failed with. All later reads fail with it, in every thread.
    pub(super) failure: Option<Failure>,
}

impl State {
    pub(super) fn ended(&self) -> bool {
        self.arrived.length().known().is_some()
    }

    /// Reads the next bytes of the stream, or sees its end.
    pub(super) fn fill(&mut self, spilled: bool) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if let Some(failure) = &self.failure {
            return Err(failure.error());
        }
        let position = self.arrived.position();
        let room = self.arrived.room(CHUNK)?;
        let n = match self.reader.read(room) {
            Ok(0) => {
                self.arrived.end();
                return Ok(());
            }
            Ok(n) if n <= room.len() => n,
            Ok(_) => {
                let problem = "the reader returned more than was asked for";
                let error = io::Error::new(ErrorKind::InvalidData, problem);
                self.failure = Some(Failure::of(&error));
                return Err(Error::invalid(problem));
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(e) => {
                self.failure = Some(Failure::of(&e));
                return Err(Error::io("read the stream", e));
            }
        };
        let fresh = self.arrived.took(n)?;
        for hasher in &mut self.hashers {
            hasher.update(fresh);
        }
        if let (true, Some(spill)) = (spilled, &mut self.spill) {
            spill.write(position, fresh)?;
        }
        Ok(())
    }

    /// Keeps these bytes when they arrive.
    pub(super) fn owe(&mut self, start: u64, end: u64) -> Result<()> {
        let start = start.max(self.arrived.oldest());
        let kept = self.arrived.keep(start, end);
        kept.map_err(|miss| self.not_kept(miss))
    }

    fn not_kept(&self, miss: Miss) -> Error {
        match miss {
            Miss::TooMany(value) => Error::LimitExceeded {
                limit: "stream_bytes",
                what: "the tables of an image in a stream",
                value,
                maximum: self.tables,
            },
            Miss::Gone(at) | Miss::Later(at) => self.out_of_order(at),
        }
    }

    /// Keeps the block in which a read ended, if it did not end with it: the rest may be read much later.
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
        while self.arrived.position() < stop && !self.ended() {
            self.fill(false)?;
        }
        let most = usize::try_from(BLOCKS / self.block).unwrap_or(1).max(2);
        let oldest = match self.blocks.len() >= most {
            true => self.blocks.pop_back(),
            false => None,
        };
        let mut bytes = oldest.map_or_else(Vec::new, |(_, bytes)| bytes);
        bytes.clear();
        while start + (bytes.len() as u64) < stop.min(self.arrived.position()) {
            let more = self.arrived.recent(start + bytes.len() as u64, stop);
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
        copy_start(buf, bytes.get(skip..).unwrap_or_default())
    }

    /// Start of the bytes that were not read yet.
    pub(super) fn gap_start(&self) -> u64 {
        self.demanded.saturating_sub(SLACK)
    }

    /// Spills what has arrived from `start` on.
    pub(super) fn spill_window(&mut self, start: u64) -> Result<()> {
        let mut at = start.max(self.arrived.oldest());
        while at < self.arrived.position() {
            let bytes = self.arrived.recent(at, u64::MAX);
            if let Some(spill) = &mut self.spill {
                spill.write(at, bytes)?;
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn out_of_order(&self, offset: u64) -> Error {
        Error::OutOfOrder {
            offset,
            position: self.demanded,
        }
    }

    pub(super) fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.arrived.length().bound());
        let buf = buf.get_mut(..want).unwrap_or_default();
        if buf.is_empty() {
            return Ok(0);
        }
        if !self.ended() {
            self.go_to(offset, offset + want as u64)?;
        }
        let demanded = self.demanded;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            // Older bytes are at hand by chance: that depends on the sizes of the reads.
            let oldest = match self.ended() {
                true => 0,
                false => demanded.saturating_sub(self.window),
            };
            let mut n = self.arrived.copy(rest, at, oldest);
            if n == 0 {
                n = self.copy_of_blocks(rest, at);
            }
            if let (0, Some(spill)) = (n, &self.spill) {
                n = spill.read(rest, at)?;
            }
            if n > 0 {
                done += n;
            } else if at < self.arrived.position() {
                return Err(self.out_of_order(at));
            } else if self.ended() {
                break;
            } else {
                self.fill(false)?;
            }
        }
        let end = offset + done as u64;
        self.demanded = self.demanded.max(end);
        match (self.keeps, self.ended()) {
            (true, false) => {
                let bytes = buf.get(..done).unwrap_or_default();
                let kept = self.arrived.keep_these(offset, bytes);
                kept.map_err(|miss| self.not_kept(miss))?;
            }
            (false, false) => self.keep_block(end)?,
            (_, true) => {}
        }
        Ok(done)
    }

    /// Goes on to `offset`, if that is ahead.
    fn go_to(&mut self, offset: u64, end: u64) -> Result<()> {
        let Some(gap) = offset.checked_sub(self.demanded).filter(|gap| *gap > 0) else {
            return Ok(());
        };
        if self.spill.is_none() {
            // Skipping so much for a table would lose the data.
            let most = match self.begun {
                true => self.window,
                false => self.window.max(FIRST_GAP),
            };
            if self.keeps && gap > most {
                if self.refused < MOST_REFUSED {
                    self.refused += 1;
                    self.owe(offset, end)?;
                }
                return Err(self.out_of_order(offset));
            }
        } else {
            let from = self.gap_start();
            self.spill_window(from)?;
        }
        while self.arrived.position() < offset && !self.ended() {
            self.fill(true)?;
        }
        Ok(())
    }
}
