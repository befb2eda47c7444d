//! Reading and comparing, on every core.
//!
//! Each worker claims the next window under a lock and compares it without one. A decision is kept with its
//! offset. No worker claims a window behind it, and of several decisions the first on the disk counts, so that
//! the result does not depend on timing.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::compare::claim::{Cursor, Decision, Piece, Window};
use crate::compare::{CompareOptions, Comparison, Failure, Phase, Side};
use crate::lock::lock;
use crate::page_buf::PageBuf;
use crate::progress::Report;
use crate::source::{BlockSource, BlockSourceExt};
use crate::zero::is_zero;

/// Bytes of a window, unless a unit of the sources is larger.
const WINDOW: u64 = 1 << 20;
/// The largest window in bytes: so long are the largest compressed units, and a unit that two
/// windows share is decompressed twice.
const MAX_WINDOW: u64 = 2 << 20;

pub(super) fn run(options: &CompareOptions, sources: [&dyn BlockSource; 2]) -> Decision {
    let units = sources.map(|source| source.block_size());
    let large = units
        .into_iter()
        .any(|unit| unit > WINDOW && unit <= MAX_WINDOW);
    let length = if large { MAX_WINDOW } else { WINDOW };
    let cursor = Cursor::new(sources, options.strict, length);
    let total = cursor.size();
    let wanted = options.work.threads();
    let at_most = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let threads = wanted
        .min(at_most(options.work.memory / (2 * length)))
        .min(at_most(total / length))
        .max(1);
    let engine = Engine {
        options,
        sources,
        length: at_most(length),
        total,
        report: Report::new(options.work.progress.clone()),
        cursor: Mutex::new(cursor),
        decided: Mutex::new(None),
        limit: AtomicU64::new(u64::MAX),
        done: AtomicU64::new(0),
    };
    engine.work_on(threads);
    let decided = lock(&engine.decided).take();
    if engine.is_cancelled() {
        return Err(Failure::Cancelled);
    }
    match decided {
        Some((_, decision)) => decision,
        None => {
            engine.report.tell(Phase::Done, total, total);
            Ok(Comparison::Same)
        }
    }
}

struct Engine<'a> {
    options: &'a CompareOptions,
    sources: [&'a dyn BlockSource; 2],
    length: usize,
    total: u64,
    report: Report,
    cursor: Mutex<Cursor<'a>>,
    /// The first known decision, and its offset.
    decided: Mutex<Option<(u64, Decision)>>,
    /// That offset, for a look without the lock.
    limit: AtomicU64,
    done: AtomicU64,
}

impl Engine<'_> {
    fn work_on(&self, threads: usize) {
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map_while(|i| {
                    let builder = std::thread::Builder::new().name(format!("compare-{i}"));
                    // Where the system gives no more threads, fewer do it too.
                    builder.spawn_scoped(scope, || self.work()).ok()
                })
                .collect();
            self.work();
            for other in others {
                if let Err(panic) = other.join() {
                    resume_unwind(panic);
                }
            }
        });
    }

    fn work(&self) {
        let mut window = Window::default();
        let mut buffers = [self.length, self.length].map(PageBuf::new);
        loop {
            let claimed = {
                let mut cursor = lock(&self.cursor);
                let stopped = || self.is_over();
                if stopped() {
                    return;
                }
                cursor.claim(&mut window, &stopped)
            };
            let go_on = match claimed {
                Ok(some) => some,
                // What was claimed before may still hold a difference, and that would be the first.
                Err((offset, decision)) => {
                    self.decide(offset, decision);
                    false
                }
            };
            for piece in &window.pieces {
                if self.is_cancelled() {
                    return;
                }
                if let Err((offset, decision)) = self.compare(*piece, window.start, &mut buffers) {
                    self.decide(offset, decision);
                    return;
                }
            }
            if !go_on {
                return;
            }
            let before = self.done.fetch_max(window.end, Ordering::Relaxed);
            let done = before.max(window.end);
            self.report.tell(Phase::Copying, done, self.total);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.options.work.cancel.is_cancelled() || self.report.broken.is_cancelled()
    }

    /// Returns true if no unclaimed window can matter: windows are claimed in order, so that a known decision lies
    /// before all of them.
    fn is_over(&self) -> bool {
        self.is_cancelled() || self.limit.load(Ordering::Relaxed) < u64::MAX
    }

    fn decide(&self, offset: u64, decision: Decision) {
        let mut decided = lock(&self.decided);
        if decided.as_ref().is_none_or(|(known, _)| offset < *known) {
            *decided = Some((offset, decision));
            self.limit.store(offset, Ordering::Relaxed);
        }
    }

    /// Reads a piece, and fails with what it decides.
    fn compare(
        &self,
        piece: Piece,
        window: u64,
        buffers: &mut [PageBuf; 2],
    ) -> Result<(), (u64, Decision)> {
        let Piece { only, offset, len } = piece;
        let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let (at, len) = (place(offset - window), place(len));
        let [first, second] = buffers;
        let [one, other] = self.sources;
        let read = |side, source: &dyn BlockSource, buffer: &mut PageBuf| {
            let read = source.read_exact_at(buffer.get_mut(at, len), offset);
            read.map_err(|source| {
                let failure = Failure::Read {
                    side,
                    offset,
                    source,
                };
                (offset, Err(failure))
            })
        };
        if only != Some(Side::Second) {
            read(Side::First, one, first)?;
        }
        if only != Some(Side::First) {
            read(Side::Second, other, second)?;
        }
        let difference = match only {
            None => first_difference(first.get(at, len), second.get(at, len)),
            Some(Side::First) => first_nonzero(first.get(at, len)),
            Some(Side::Second) => first_nonzero(second.get(at, len)),
        };
        match difference {
            None => Ok(()),
            Some(into) => {
                let offset = offset + into as u64;
                Err((offset, Ok(Comparison::Differ { offset })))
            }
        }
    }
}

/// Bytes of a step in the search for a difference in what is known to have one.
const STEP: usize = 4096;

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    let steps = a.chunks(STEP).zip(b.chunks(STEP));
    let step = steps.take_while(|(a, b)| a == b).count();
    let bytes = a.iter().zip(b).skip(step * STEP);
    Some(step * STEP + bytes.take_while(|(a, b)| a == b).count())
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) {
        return None;
    }
    bytes.iter().position(|byte| *byte != 0)
}
