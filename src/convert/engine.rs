//! The engine: read, find zeros, encode, place, store, on every core.
//!
//! Each worker does this until nothing is left:
//!
//! ```text
//!   slot      wait until fewer than `slots` segments are in flight
//!   claim     under a lock: take the next pieces of the source, and a number
//!   prepare   read them, find the zeros, encode
//!   place     under a lock: in the order of the numbers, ask the writer where everything goes, and
//!             queue it to be stored
//!   store     whoever finds nobody storing empties the queue
//! ```
//!
//! Nobody waits while holding anything but for a slot, and whoever holds the number that is to be
//! placed next is always running: there is no deadlock.

use std::collections::{BTreeMap, VecDeque};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::convert::claim::{Cursor, Ground};
use crate::convert::options::{Cancel, Progress, Summary};
use crate::convert::place::place_steps;
use crate::convert::prepare::Preparer;
use crate::convert::segment::{SEGMENT, Segment, Store};
use crate::error::{Error, Result};
use crate::image::{ImageWriter, Payload, Write, WriteShape};
use crate::source::BlockSource;
use crate::target::{BlockTarget, Zeroes};

/// What a conversion works on.
pub(super) struct Job<'a> {
    pub(super) source: &'a dyn BlockSource,
    pub(super) writer: Box<dyn ImageWriter>,
    pub(super) shape: WriteShape,
    /// One for each of the writer's files.
    pub(super) targets: &'a [Arc<dyn BlockTarget>],
    pub(super) ground: Ground,
    pub(super) threads: usize,
    pub(super) memory: u64,
    pub(super) sparse_size: u64,
    /// Whether the tables have to be on stable storage before the header is written.
    pub(super) sync: bool,
    /// Whether the targets keep their size if it is larger than needed.
    pub(super) keep_size: bool,
    pub(super) cancel: Cancel,
    pub(super) progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

/// Runs a conversion to its end.
pub(super) fn run(job: Job<'_>) -> Result<Summary> {
    let (source, targets, shape) = (job.source, job.targets, &job.shape);
    for write in &shape.preallocation {
        write_table(targets, write, job.sparse_size)?;
    }
    let encoder = job.writer.encoder();
    let capacity = SEGMENT.max(shape.unit).next_multiple_of(shape.unit);
    let per_segment = if encoder.is_some() {
        2 * capacity
    } else {
        capacity
    };
    let affordable = usize::try_from(job.memory / per_segment)
        .unwrap_or(usize::MAX)
        .max(2);
    let useful = usize::try_from(shape.virtual_size / capacity)
        .unwrap_or(usize::MAX)
        .max(1);
    let threads = job.threads.min(affordable).min(useful).max(1);
    // What is packed, or compared with what is below, is so by the unit.
    let by_unit = encoder.is_some() || matches!(job.ground, Ground::Image(_));
    let granule = if by_unit {
        shape.unit
    } else {
        job.sparse_size.max(1).next_multiple_of(shape.zero_unit)
    };
    let engine = Engine {
        targets,
        preparer: Preparer {
            source,
            ground: &job.ground,
            unit: usize::try_from(shape.unit).unwrap_or(usize::MAX),
            granule: usize::try_from(granule.min(capacity)).unwrap_or(usize::MAX),
            encoder,
            find_zeros: job.sparse_size > 0,
        },
        capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
        sparse_size: job.sparse_size,
        cursor: Mutex::new(Cursor::new(
            source,
            &job.ground,
            shape.virtual_size,
            shape.unit,
            capacity,
        )),
        order: Mutex::new(Order {
            writer: job.writer,
            next: 0,
            waiting: BTreeMap::new(),
        }),
        store: Mutex::default(),
        storers: targets
            .iter()
            .map(|t| t.concurrent_writes())
            .min()
            .unwrap_or(1)
            .max(1),
        slots: Mutex::new((2 * threads + 2).min(affordable)),
        slot_free: Condvar::new(),
        free: Mutex::default(),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        cancel: job.cancel.clone(),
        progress: job.progress.clone(),
        total: shape.virtual_size,
        done: AtomicU64::new(0),
        bytes_read: AtomicU64::new(0),
        bytes_written: AtomicU64::new(0),
    };
    engine.work_on(threads)?;

    let summary = Summary {
        virtual_size: shape.virtual_size,
        bytes_read: engine.bytes_read.load(Ordering::Relaxed),
        bytes_written: engine.bytes_written.load(Ordering::Relaxed),
    };
    let order = engine
        .order
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let finish = order.writer.finish()?;
    for write in &finish.tables {
        write_table(targets, write, job.sparse_size)?;
    }
    for (target, size) in targets.iter().zip(&finish.sizes) {
        if !job.keep_size || target.size() < *size {
            target.set_size(*size)?;
        }
    }
    if job.sync {
        targets.iter().try_for_each(|target| target.sync())?;
    }
    for write in &finish.seal {
        write_table(targets, write, job.sparse_size)?;
    }
    if job.sync && !finish.seal.is_empty() {
        targets.iter().try_for_each(|target| target.sync())?;
    }
    engine_progress(
        job.progress.as_deref(),
        shape.virtual_size,
        shape.virtual_size,
    );
    Ok(summary)
}

fn engine_progress(report: Option<&(dyn Fn(Progress) + Send + Sync)>, done: u64, total: u64) {
    if let Some(report) = report {
        report(Progress { done, total });
    }
}

/// Writes what is not the guest's.
fn write_table(targets: &[Arc<dyn BlockTarget>], write: &Write, sparse_size: u64) -> Result<()> {
    let target = target_of(targets, write.file)?;
    let offset = write.offset;
    match &write.payload {
        Payload::Bytes(bytes) => target.write_all_at(bytes, offset),
        Payload::Allocate(len) => target.allocate(offset, *len),
        // The caller wants no holes.
        Payload::Zeroes(len) if sparse_size == 0 => {
            target.write_zeroes_at(offset, *len, Zeroes::Keep)
        }
        Payload::Zeroes(_) if target.reads_as_zero() => Ok(()),
        Payload::Zeroes(len) => target.write_zeroes_at(offset, *len, Zeroes::Discard),
        Payload::WrittenZeroes(len) => {
            crate::storage::write_zeroes_by(offset, *len, |zeroes, at| {
                target.write_all_at(zeroes, at)
            })
        }
    }
}

fn target_of(targets: &[Arc<dyn BlockTarget>], file: usize) -> Result<&Arc<dyn BlockTarget>> {
    targets
        .get(file)
        .ok_or_else(|| Error::invalid(format!("there is no target for file {file}")))
}

struct Engine<'a> {
    targets: &'a [Arc<dyn BlockTarget>],
    preparer: Preparer<'a>,
    capacity: usize,
    sparse_size: u64,
    cursor: Mutex<Cursor<'a>>,
    order: Mutex<Order>,
    store: Mutex<StoreQueue>,
    /// How many threads may store at once.
    storers: usize,
    /// How many more segments may be in flight.
    slots: Mutex<usize>,
    slot_free: Condvar,
    /// Segments that are not in use.
    free: Mutex<Vec<Segment>>,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    cancel: Cancel,
    progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    total: u64,
    done: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

struct Order {
    writer: Box<dyn ImageWriter>,
    /// The number of the segment to be placed next.
    next: u64,
    /// Segments that are prepared before their turn.
    waiting: BTreeMap<u64, Segment>,
}

#[derive(Default)]
struct StoreQueue {
    queue: VecDeque<Segment>,
    storing: usize,
}

/// Stops everybody else when a worker leaves by an error or a panic.
struct StopOnDrop<'a, 'b> {
    engine: &'a Engine<'b>,
    armed: bool,
}

impl Drop for StopOnDrop<'_, '_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        self.engine.stop.store(true, Ordering::Relaxed);
        // Whoever is about to wait holds this lock: the news cannot fall between its check and its
        // sleep.
        let _slots = lock(&self.engine.slots);
        self.engine.slot_free.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine<'_> {
    /// Runs `threads` workers, this thread among them, and returns the first error.
    fn work_on(&self, threads: usize) -> Result<()> {
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map_while(|i| {
                    let builder = std::thread::Builder::new().name(format!("convert-{i}"));
                    // Where the system gives no more threads, fewer do it too.
                    builder.spawn_scoped(scope, || self.worker()).ok()
                })
                .collect();
            self.worker();
            for other in others {
                if let Err(panic) = other.join() {
                    resume_unwind(panic);
                }
            }
        });
        match lock(&self.failure).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn worker(&self) {
        let mut guard = StopOnDrop {
            engine: self,
            armed: true,
        };
        match self.work() {
            Ok(()) => guard.armed = false,
            Err(error) => {
                lock(&self.failure).get_or_insert(error);
            }
        }
    }

    fn work(&self) -> Result<()> {
        while self.take_slot() {
            let mut segment = self.free_segment();
            let stopped = || self.is_stopped();
            if !lock(&self.cursor).claim(&mut segment, &stopped)? {
                self.release(segment);
                break;
            }
            let read = self.preparer.prepare(&mut segment)?;
            self.bytes_read.fetch_add(read, Ordering::Relaxed);
            self.place(segment)?;
            self.store()?;
        }
        if self.cancel.is_cancelled() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }

    /// Waits for a slot; `false` if the work was stopped.
    fn take_slot(&self) -> bool {
        let slots = lock(&self.slots);
        let blocked = |slots: &mut usize| *slots == 0 && !self.is_stopped();
        let waited = self.slot_free.wait_while(slots, blocked);
        let mut slots = waited.unwrap_or_else(PoisonError::into_inner);
        if self.is_stopped() {
            return false;
        }
        *slots -= 1;
        true
    }

    fn free_segment(&self) -> Segment {
        let free = lock(&self.free).pop();
        free.unwrap_or_else(|| Segment::new(self.capacity))
    }

    fn release(&self, segment: Segment) {
        lock(&self.free).push(segment);
        *lock(&self.slots) += 1;
        self.slot_free.notify_one();
    }

    /// Hands a prepared segment in, and places those whose turn has come.
    fn place(&self, segment: Segment) -> Result<()> {
        let mut order = lock(&self.order);
        order.waiting.insert(segment.number, segment);
        loop {
            let next = order.next;
            let Some(mut segment) = order.waiting.remove(&next) else {
                return Ok(());
            };
            place_steps(order.writer.as_mut(), &mut segment)?;
            order.next += 1;
            // While the order is locked: what is queued first is stored first.
            lock(&self.store).queue.push_back(segment);
        }
    }

    /// Empties the store queue, if not enough others do.
    fn store(&self) -> Result<()> {
        {
            let mut store = lock(&self.store);
            if store.storing >= self.storers {
                return Ok(());
            }
            store.storing += 1;
        }
        loop {
            let segment = {
                let mut store = lock(&self.store);
                let next = store.queue.pop_front();
                if next.is_none() {
                    store.storing -= 1;
                }
                next
            };
            let Some(segment) = segment else {
                return Ok(());
            };
            if self.is_stopped() {
                return Ok(());
            }
            self.store_segment(&segment)?;
            let done = self
                .done
                .fetch_max(segment.done, Ordering::Relaxed)
                .max(segment.done);
            engine_progress(self.progress.as_deref(), done, self.total);
            self.release(segment);
        }
    }

    fn store_segment(&self, segment: &Segment) -> Result<()> {
        for store in &segment.stores {
            let (file, host, bytes) = match store {
                Store::Table(write) => {
                    write_table(self.targets, write, self.sparse_size)?;
                    continue;
                }
                Store::Data {
                    file,
                    host,
                    at,
                    len,
                } => (*file, *host, segment.data.get(*at, *len)),
                Store::Packed {
                    file,
                    host,
                    at,
                    len,
                } => (
                    *file,
                    *host,
                    segment.packed.get(*at..*at + *len).unwrap_or_default(),
                ),
            };
            target_of(self.targets, file)?.write_all_at(bytes, host)?;
            self.bytes_written
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}
