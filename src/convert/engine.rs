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
use crate::convert::segment::{Piece, SEGMENT, Segment, Step, Store};
use crate::convert::zero::is_zero;
use crate::error::{Error, Result};
use crate::image::{
    Encoder, Form, ImageWriter, Part, Payload, Placed, Write, WriteRun, WriteShape,
};
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
    let engine = Engine {
        source,
        targets,
        encoder,
        zero_unit: job.sparse_size.max(1).next_multiple_of(shape.zero_unit),
        unit: shape.unit,
        capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
        sparse_size: job.sparse_size,
        ground: &job.ground,
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
    source: &'a dyn BlockSource,
    targets: &'a [Arc<dyn BlockTarget>],
    encoder: Option<Arc<dyn Encoder>>,
    zero_unit: u64,
    unit: u64,
    capacity: usize,
    sparse_size: u64,
    ground: &'a Ground,
    cursor: Mutex<Cursor<'a>>,
    order: Mutex<Order>,
    store: Mutex<StoreQueue>,
    /// How many threads may store at once.
    storers: usize,
    /// How many more segments may be in flight.
    slots: Mutex<usize>,
    slot_free: Condvar,
    /// Segments that are not in use.
    #[allow(
        clippy::vec_box,
        reason = "a segment changes hands without being copied"
    )]
    free: Mutex<Vec<Box<Segment>>>,
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
    waiting: BTreeMap<u64, Box<Segment>>,
}

#[derive(Default)]
struct StoreQueue {
    queue: VecDeque<Box<Segment>>,
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
            self.prepare(&mut segment)?;
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

    fn free_segment(&self) -> Box<Segment> {
        let free = lock(&self.free).pop();
        free.unwrap_or_else(|| Box::new(Segment::new(self.capacity)))
    }

    fn release(&self, segment: Box<Segment>) {
        lock(&self.free).push(segment);
        *lock(&self.slots) += 1;
        self.slot_free.notify_one();
    }

    /// Reads the pieces, drops the zeros and encodes the rest.
    fn prepare(&self, segment: &mut Segment) -> Result<()> {
        let pieces = std::mem::take(&mut segment.pieces);
        for piece in &pieces {
            match *piece {
                Piece::Zero { guest, len } => segment.push_step(Step::Zero { guest, len }),
                Piece::Data { guest, len, at } => {
                    let len_in_memory = usize::try_from(len).unwrap_or(usize::MAX);
                    let buf = segment.data.get_mut(at, len_in_memory);
                    let n = self.source.read_at(buf, guest)?;
                    buf.get_mut(n..).unwrap_or_default().fill(0);
                    self.bytes_read.fetch_add(n as u64, Ordering::Relaxed);
                    self.read_below(segment, guest, len_in_memory)?;
                    self.cut(segment, guest, at, len_in_memory)?;
                }
            }
        }
        segment.pieces = pieces;
        Ok(())
    }

    /// Reads what an overlay would show at `guest` without being written there.
    fn read_below(&self, segment: &mut Segment, guest: u64, len: usize) -> Result<()> {
        if let Ground::Image(image) = self.ground {
            segment.below.clear();
            segment.below.resize(len, 0);
            image.read_at(&mut segment.below, guest)?;
        }
        Ok(())
    }

    /// Cuts the `len` bytes at `at` into what is stored and what need not be.
    fn cut(&self, segment: &mut Segment, guest: u64, at: usize, len: usize) -> Result<()> {
        let granule = match &self.encoder {
            Some(_) => self.unit,
            None if matches!(self.ground, Ground::Image(_)) => self.unit,
            None => self.zero_unit.min(self.capacity as u64),
        };
        let granule = usize::try_from(granule).unwrap_or(usize::MAX);
        let find_zeros = self.sparse_size > 0;
        let mut done = 0;
        while done < len {
            // Granules lie at multiples of their size in the disk.
            let guest = guest + done as u64;
            let into = usize::try_from(guest % granule as u64).unwrap_or(0);
            let n = (granule - into).min(len - done);
            let (from, end) = (at + done, done + n);
            let bytes = segment.data.get(from, n);
            let same = matches!(self.ground, Ground::Image(_))
                && segment
                    .below
                    .get(done..end)
                    .is_some_and(|below| below == bytes);
            let step_len = n as u64;
            if same {
                // It shows through.
            } else if find_zeros && is_zero(bytes) {
                if !matches!(self.ground, Ground::Zero) {
                    segment.push_step(Step::Zero {
                        guest,
                        len: step_len,
                    });
                }
            } else {
                self.encode(segment, guest, from, n)?;
            }
            done = end;
        }
        Ok(())
    }

    /// Encodes one granule, or leaves it as it is.
    fn encode(&self, segment: &mut Segment, guest: u64, at: usize, len: usize) -> Result<()> {
        let step = Step::Verbatim {
            guest,
            len: len as u64,
            at,
        };
        let Some(encoder) = &self.encoder else {
            segment.push_step(step);
            return Ok(());
        };
        let unit = usize::try_from(self.unit).unwrap_or(usize::MAX);
        // The buffer is a multiple of the unit, so that the disk's last one can be padded in place.
        segment.data.get_mut(at + len, unit - len).fill(0);
        let start = segment.packed.len();
        let form = encoder.encode(guest, segment.data.get(at, unit), &mut segment.packed)?;
        match form {
            Form::Verbatim => segment.push_step(step),
            Form::Packed => {
                let len = u32::try_from(segment.packed.len() - start)
                    .map_err(|_| Error::invalid("a packed unit is longer than 4 GiB"))?;
                let first = segment.parts.len();
                segment.parts.push(Part { guest, len });
                segment.push_step(Step::Packed {
                    first,
                    count: 1,
                    at: start,
                });
            }
        }
        Ok(())
    }

    /// Hands a prepared segment in, and places those whose turn has come.
    fn place(&self, segment: Box<Segment>) -> Result<()> {
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

/// Asks the writer where each step of a segment goes, and notes what has to be written.
fn place_steps(writer: &mut dyn ImageWriter, segment: &mut Segment) -> Result<()> {
    let mut tables = Vec::new();
    let steps = std::mem::take(&mut segment.steps);
    let parts = std::mem::take(&mut segment.parts);
    for step in &steps {
        match *step {
            Step::Verbatim { guest, len, at } => {
                let mut done = 0;
                while done < len {
                    let run = WriteRun::Verbatim {
                        guest: guest + done,
                        len: len - done,
                    };
                    let placed = took_some(writer.place(run, &mut tables)?)?;
                    drain_tables(segment, &mut tables);
                    let taken = placed.taken.min(len - done);
                    segment.push_store(Store::Data {
                        file: placed.file,
                        host: placed.host,
                        at: at + usize::try_from(done).unwrap_or(usize::MAX),
                        len: usize::try_from(taken).unwrap_or(usize::MAX),
                    });
                    done += taken;
                }
            }
            Step::Zero { guest, len } => {
                let mut done = 0;
                while done < len {
                    let run = WriteRun::Zero {
                        guest: guest + done,
                        len: len - done,
                    };
                    done += took_some(writer.place(run, &mut tables)?)?.taken;
                    drain_tables(segment, &mut tables);
                }
            }
            Step::Packed { first, count, at } => {
                let mut parts = parts.get(first..first + count).unwrap_or_default();
                let mut at = at;
                while !parts.is_empty() {
                    let run = WriteRun::Packed { parts };
                    let placed = took_some(writer.place(run, &mut tables)?)?;
                    drain_tables(segment, &mut tables);
                    let taken = usize::try_from(placed.taken).unwrap_or(usize::MAX);
                    let (taken, rest) = parts.split_at(taken.min(parts.len()));
                    let len = taken.iter().map(|part| part.len as usize).sum();
                    let Placed { file, host, .. } = placed;
                    segment.push_store(Store::Packed {
                        file,
                        host,
                        at,
                        len,
                    });
                    at += len;
                    parts = rest;
                }
            }
        }
    }
    segment.steps = steps;
    segment.parts = parts;
    Ok(())
}

fn took_some(placed: Placed) -> Result<Placed> {
    if placed.taken == 0 {
        return Err(Error::invalid("the image writer placed nothing"));
    }
    Ok(placed)
}

fn drain_tables(segment: &mut Segment, tables: &mut Vec<Write>) {
    for table in tables.drain(..) {
        segment.push_store(Store::Table(table));
    }
}
