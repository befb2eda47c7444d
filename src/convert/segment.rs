//! A segment: about a mebibyte of guest data on its way through the engine.

use crate::digest::LeafHash;
use crate::image::{Part, Write};
use crate::packed::PackedUnit;
use crate::page_buf::PageBuf;

/// Bytes of guest data in a segment, unless one unit of the target is larger. Large enough that the
/// locks and system calls around it do not count, small enough to stay in a processor's caches.
const SEGMENT: u64 = 1 << 20;

/// Bytes of a segment's buffer for a target of that unit.
pub(super) fn capacity(unit: u64) -> u64 {
    SEGMENT.max(unit).next_multiple_of(unit)
}

/// The most pieces in a segment, so that a source of many tiny runs is cut, too.
pub(super) const MAX_PIECES: usize = 2048;

/// A range that was claimed of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) kind: PieceKind,
    pub(super) guest: u64,
    pub(super) len: u64,
    /// The place in the buffer, where there is room for all but zeros.
    pub(super) at: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// Bytes to be read into the buffer.
    Data,
    /// Bytes that are not read: the target takes the blocks in which the source has them.
    Shared,
    /// Compressed units of the source, which need their room only if they are decompressed.
    Packed,
    /// Bytes that have to read as zero.
    Zero,
}

impl Piece {
    /// The step that this is if nothing is left out of it.
    pub(super) fn whole(self) -> Step {
        let Piece { guest, len, at, .. } = self;
        match self.kind {
            PieceKind::Zero => Step::Zero { guest, len },
            _ => Step::Verbatim { guest, len, at },
        }
    }

    /// The part of the piece before `end`, which may be empty.
    pub(super) fn up_to(self, end: u64) -> Piece {
        let len = self.len.min(end.saturating_sub(self.guest));
        Piece { len, ..self }
    }
}

/// A segment and its buffers, which are reused. All targets of a conversion share it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// Everything of the disk before this offset has been dealt with once the segment is stored.
    pub(super) done: u64,
    pub(super) pieces: Vec<Piece>,
    pub(super) data: PageBuf,
    /// Compressed units as they came from the source, and their places in `taken`.
    pub(super) taken: Vec<u8>,
    pub(super) units: Vec<PackedUnit>,
    /// Compressed units in `taken` that are to be decompressed, and their places in the buffer.
    pub(super) waiting: Vec<(PackedUnit, usize)>,
    /// Leaves of the content digest, in guest order.
    pub(super) leaves: Vec<Leaf>,
}

/// A part of the content on its way into a digest.
#[derive(Debug)]
pub(super) enum Leaf {
    /// A whole leaf.
    Whole { guest: u64, hash: LeafHash },
    /// Bytes of a leaf whose others are elsewhere.
    Part { guest: u64, at: usize, len: usize },
}

impl Segment {
    pub(super) fn new(capacity: usize) -> Self {
        Segment {
            number: 0,
            done: 0,
            pieces: Vec::new(),
            data: PageBuf::new(capacity),
            taken: Vec::new(),
            units: Vec::new(),
            waiting: Vec::new(),
            leaves: Vec::new(),
        }
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.taken.clear();
        self.units.clear();
        self.waiting.clear();
        self.leaves.clear();
    }
}

/// A run that has to be placed, in guest order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes of the segment, stored as they are.
    Verbatim { guest: u64, len: u64, at: usize },
    /// Compressed units: `count` parts from the `first`, whose bytes begin at `at` of their buffer.
    Packed {
        first: usize,
        count: usize,
        at: usize,
    },
    /// Packed units of the segment: `count` of them from the `first`.
    Copied { first: usize, count: usize },
    /// Bytes that have to read as zero.
    Zero { guest: u64, len: u64 },
}

/// A write that is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Store {
    Bytes(Bytes),
    Table(Write),
}

/// Bytes of a buffer, and their place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bytes {
    pub(super) from: Buffer,
    pub(super) at: usize,
    pub(super) len: usize,
    pub(super) file: usize,
    pub(super) host: u64,
}

/// A buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Buffer {
    /// The segment's data.
    Data,
    /// The segment's compressed units.
    Taken,
    /// Units that were compressed for the one target.
    Packed,
}

/// A segment on its way into one target. Its buffers are reused, too.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// The same range of the backing file, where an overlay is compared with it.
    pub(super) below: Vec<u8>,
    pub(super) packed: Vec<u8>,
    pub(super) parts: Vec<Part>,
    pub(super) steps: Vec<Step>,
    pub(super) stores: Vec<Store>,
}

impl Work {
    pub(super) fn clear(&mut self) {
        self.packed.clear();
        self.parts.clear();
        self.steps.clear();
        self.stores.clear();
    }

    /// Makes every piece of a segment a step as it is: nothing in it is searched for.
    pub(super) fn push_pieces_whole(&mut self, segment: &Segment) {
        for piece in &segment.pieces {
            self.push_step(piece.whole());
        }
    }

    /// Adds the unit at `index`, behind those before it if they lie side by side.
    pub(super) fn push_copied(&mut self, units: &[PackedUnit], index: usize, unit: &PackedUnit) {
        const SECTOR: u64 = 512;
        if let Some(Step::Copied { first, count }) = self.steps.last_mut() {
            let last = index
                .checked_sub(1)
                .filter(|last| *last + 1 == *first + *count);
            if let Some(last) = last.and_then(|last| units.get(last)) {
                let end = last.host + last.len as u64;
                let read_together = last.at as u64 + unit.host == unit.at as u64 + last.host;
                if last.host <= unit.host && unit.host < end + SECTOR && read_together {
                    *count += 1;
                    return;
                }
            }
        }
        self.steps.push(Step::Copied {
            first: index,
            count: 1,
        });
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

    /// Adds a write, as part of the one before where it continues both the bytes and their places.
    pub(super) fn push_store(&mut self, store: Store) {
        if let (Some(Store::Bytes(last)), Store::Bytes(next)) = (self.stores.last_mut(), &store) {
            let end = (last.at + last.len, last.host + last.len as u64);
            let same = (last.from, last.file) == (next.from, next.file);
            if same && end == (next.at, next.host) {
                last.len += next.len;
                return;
            }
        }
        self.stores.push(store);
    }
}
