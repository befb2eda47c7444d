//! A segment: about a mebibyte of guest data on its way through the engine.

use crate::image::{Part, Write};

/// Bytes of guest data in a segment, unless one unit of the target is larger. Large enough that the
/// locks and system calls around it do not count, small enough to stay in a processor's caches.
pub(super) const SEGMENT: u64 = 1 << 20;

/// The most pieces in a segment, so that a source of many tiny runs is cut, too.
pub(super) const MAX_PIECES: usize = 2048;

/// Page-aligned memory: the kernel copies to and from it markedly faster.
#[derive(Debug)]
pub(super) struct PageBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

const PAGE: usize = 4096;

impl PageBuf {
    pub(super) fn new(len: usize) -> Self {
        let memory = vec![0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        PageBuf { memory, start, len }
    }

    pub(super) fn get(&self, at: usize, len: usize) -> &[u8] {
        let end = (at + len).min(self.len);
        self.memory
            .get(self.start + at..self.start + end)
            .unwrap_or_default()
    }

    pub(super) fn get_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        let end = (at + len).min(self.len);
        self.memory
            .get_mut(self.start + at..self.start + end)
            .unwrap_or_default()
    }
}

/// What was claimed of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes to be read into the buffer at `at`.
    Data { guest: u64, len: u64, at: usize },
    /// Bytes that have to read as zero.
    Zero { guest: u64, len: u64 },
}

/// What has to be placed, in guest order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes of the buffer, stored as they are.
    Verbatim { guest: u64, len: u64, at: usize },
    /// Packed units: `count` parts from the `first`, whose bytes begin at `at` of the packed buffer.
    Packed {
        first: usize,
        count: usize,
        at: usize,
    },
    /// Bytes that have to read as zero.
    Zero { guest: u64, len: u64 },
}

/// What has to be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// Bytes of the buffer.
    Data {
        file: usize,
        host: u64,
        at: usize,
        len: usize,
    },
    /// Bytes of the packed buffer.
    Packed {
        file: usize,
        host: u64,
        at: usize,
        len: usize,
    },
    /// A table.
    Table(Write),
}

/// A segment and its buffers, which are used again.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// Everything of the disk before this offset has been dealt with once the segment is stored.
    pub(super) done: u64,
    pub(super) pieces: Vec<Piece>,
    pub(super) data: PageBuf,
    /// The same range of the backing file, where an overlay is compared with it.
    pub(super) below: Vec<u8>,
    pub(super) packed: Vec<u8>,
    pub(super) parts: Vec<Part>,
    pub(super) steps: Vec<Step>,
    pub(super) stores: Vec<Store>,
}

impl Segment {
    pub(super) fn new(capacity: usize) -> Self {
        Segment {
            number: 0,
            done: 0,
            pieces: Vec::new(),
            data: PageBuf::new(capacity),
            below: Vec::new(),
            packed: Vec::new(),
            parts: Vec::new(),
            steps: Vec::new(),
            stores: Vec::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.packed.clear();
        self.parts.clear();
        self.steps.clear();
        self.stores.clear();
    }

    /// Adds a step, as part of the one before where they are one run.
    pub(super) fn push_step(&mut self, step: Step) {
        match (self.steps.last_mut(), step) {
            (
                Some(Step::Verbatim { guest, len, at }),
                Step::Verbatim {
                    guest: next,
                    len: more,
                    at: next_at,
                },
            ) if *guest + *len == next && *at as u64 + *len == next_at as u64 => *len += more,
            (
                Some(Step::Zero { guest, len }),
                Step::Zero {
                    guest: next,
                    len: more,
                },
            ) if *guest + *len == next => {
                *len += more;
            }
            (Some(Step::Packed { count, .. }), Step::Packed { count: more, .. }) => *count += more,
            _ => self.steps.push(step),
        }
    }

    /// Adds a write, as part of the one before where both the bytes and their places go on.
    pub(super) fn push_store(&mut self, store: Store) {
        match (self.stores.last_mut(), &store) {
            (
                Some(Store::Data {
                    file,
                    host,
                    at,
                    len,
                }),
                Store::Data {
                    file: next_file,
                    host: next,
                    at: next_at,
                    len: more,
                },
            )
            | (
                Some(Store::Packed {
                    file,
                    host,
                    at,
                    len,
                }),
                Store::Packed {
                    file: next_file,
                    host: next,
                    at: next_at,
                    len: more,
                },
            ) if file == next_file && *host + *len as u64 == *next && *at + *len == *next_at => {
                *len += more;
            }
            _ => self.stores.push(store),
        }
    }
}
