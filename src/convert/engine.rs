//! The engine: read, find zeros, encode, place, store, on every core.
//!
//! Each worker does this until nothing is left:
//!
//! ```text
//!   slot      wait until fewer than `slots` segments are in flight
//!   claim     under a lock: take the next pieces of the source, and a number
//!   read      once for all targets, and hash the content if a digest is wanted
//!   for each target, in its lane:
//!     prepare   find the zeros, encode
//!     place     under a lock: in the order of the numbers, ask the writer where everything goes, and
//!               queue it to be stored
//!     store     a worker that finds no other storing empties the queue
//! ```
//!
//! A source that arrives on a stream is read under the lock under which it is claimed.
//!
//! A worker waits only for a slot, and holds nothing then. The worker with the number that is to be placed next
//! is always running: there is no deadlock.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::convert::claim::{Cursor, Ground};
use crate::convert::input::Input;
use crate::convert::journal::Journal;
use crate::convert::lane::{Lane, Target};
use crate::convert::options::Summary;
use crate::convert::order::Order;
use crate::convert::prepare::{Preparer, Reader};
use crate::convert::segment::{Leaf, Segment, capacity};
use crate::digest::{ContentDigest, ContentHasher, Digest};
use crate::error::{Error, Result};
use crate::image::Take;
use crate::lock::lock;
use crate::open::Arriving;
use crate::packed::{Codec, PackedSource};
use crate::progress::Cancel;
use crate::source::BlockSource;

/// A conversion for the engine.
pub(super) struct Job<'a> {
    pub(super) source: Input<'a>,
    pub(super) targets: Vec<Target<'a>>,
    pub(super) threads: usize,
    pub(super) memory: u64,
    pub(super) cancel: Cancel,
    /// Continues the other targets when one fails.
    pub(super) allow_failure: bool,
    /// The digest of the content.
    pub(super) content: Option<ContentHasher>,
    /// Decompresses compressed units that are copied as they are, to prove that they can be read.
    pub(super) check_packed: bool,
}

/// Result of a conversion.
pub(super) struct Outcome {
    /// One for each target.
    pub(super) targets: Vec<Result<Summary>>,
    pub(super) content: Option<ContentDigest>,
    /// Of a source that arrived.
    pub(super) source_digests: Vec<Digest>,
    /// Journals of the targets, to be removed when these have their names.
    pub(super) journals: Vec<Journal>,
}

/// Runs a conversion to its end.
///
/// # Errors
/// An error of the source, and of any target if no failure is allowed.
pub(super) fn run(job: Job<'_>) -> Result<Outcome> {
    let mut job = job;
    let Input {
        disk: source,
        arriving,
    } = job.source;
    let input = job.source;
    let mut start = (0, 0);
    for target in &mut job.targets {
        start = target.begin()?;
    }
    let shapes = || job.targets.iter().map(|target| &target.shape);
    let unit = shapes().map(|shape| shape.unit).max().unwrap_or(1);
    let size = shapes().map(|shape| shape.virtual_size).max();
    let size = size.unwrap_or_else(|| source.size());
    let capacity = capacity(unit);
    let encoders: Vec<_> = job.targets.iter().map(|t| t.writer.encoder()).collect();
    let packed = travelling(source, &job, &encoders);
    let later = arriving.and_then(|_| source.packed());
    let stays_packed = packed.is_some() || later.is_some();
    let copies = 1 + u64::from(stays_packed) + encoders.iter().flatten().count() as u64;
    let endless = job.source.is_endless();
    let memory = job
        .memory
        .saturating_sub(arriving.map_or(0, Arriving::memory));
    let affordable = usize::try_from(memory / (copies * capacity))
        .unwrap_or(usize::MAX)
        .max(2);
    let useful = usize::try_from(size / capacity)
        .unwrap_or(usize::MAX)
        .max(1);
    let threads = job.threads.min(affordable).min(useful).max(1);
    let codec = packed.map(PackedSource::codec);
    let broken = job
        .targets
        .iter()
        .map(|target| target.report.broken.clone());
    let cancels: Vec<Cancel> = broken.chain([job.cancel.clone()]).collect();
    let lanes: Vec<Lane<'_>> = job
        .targets
        .into_iter()
        .zip(encoders)
        .map(|(mut target, encoder)| {
            let shape = &target.shape;
            // Compression, and comparison with the backing file, work by the unit.
            let by_unit = encoder.is_some() || matches!(target.ground, Ground::Image(_));
            let granule = match by_unit {
                true => shape.unit,
                false => target.sparse_size.max(1).next_multiple_of(shape.zero_unit),
            };
            let take = codec.and_then(|codec| Some((encoder.as_ref()?.takes(codec)?, codec)));
            let preparer = Preparer {
                source,
                size: shape.virtual_size,
                unit: usize::try_from(shape.unit).unwrap_or(usize::MAX),
                granule: usize::try_from(granule.min(capacity)).unwrap_or(usize::MAX),
                find_zeros: target.sparse_size > 0,
                ground: std::mem::replace(&mut target.ground, Ground::Zero),
                encoder,
                whole: target.whole,
                take,
                once: arriving.is_some(),
            };
            Lane::new(target, preparer, start.0)
        })
        .collect();
    let wraps = lanes.iter().any(|lane| {
        let take = lane.preparer.take;
        matches!(take, Some((Take::Wrapped, _)))
    });
    let leaves = job.content.as_ref().map(ContentHasher::leaves);
    // With no target, all that is not zero is read.
    let all = Ground::Zero;
    let grounds = lanes.iter().map(|lane| &lane.preparer.ground);
    let grounds = match lanes.is_empty() {
        true => vec![&all],
        false => grounds.collect(),
    };
    let is_packed = packed.is_some();
    let engine = Engine {
        reader: Reader {
            source,
            packed,
            later,
            // A unit that cannot be wrapped is compressed anew, and cannot be read again.
            unpack: leaves.is_some() || job.check_packed || (arriving.is_some() && wraps),
            shares: match leaves {
                None => shared_device(&lanes),
                Some(_) => None,
            },
            leaves,
            unit: usize::try_from(unit).unwrap_or(usize::MAX),
        },
        cursor: Mutex::new(
            Cursor::new(input, grounds, is_packed, size, unit, capacity)
                .starting_at(start.0, start.1),
        ),
        arriving,
        endless,
        lanes: &lanes,
        content: Mutex::new((job.content, Order::default())),
        capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
        slots: Mutex::new((2 * threads + 2).min(affordable)),
        slot_free: Condvar::new(),
        free: Mutex::default(),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        cancels: cancels.clone(),
        allow_failure: job.allow_failure,
        bytes_read: AtomicU64::new(0),
    };
    let worked = engine.work_on(threads);
    if worked.is_err() {
        // What is stored until now need not be done again; if it cannot be noted, it is.
        lanes.iter().for_each(|lane| drop(lane.checkpoint()));
    }
    worked?;

    let bytes_read = engine.bytes_read.load(Ordering::Relaxed);
    let (mut content, _) = engine
        .content
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    // Before any header says that an image is whole.
    let source_digests = arriving.map_or(Ok(Vec::new()), Arriving::settle)?;
    let settled = endless.then(|| source.size());
    if let (Some(content), Some(size)) = (&mut content, settled) {
        content.end_at(size);
    }
    let (mut targets, mut journals) = (Vec::new(), Vec::new());
    for lane in lanes {
        let failure = lane.take_failure();
        let result = match failure {
            Some(error) => Err(error),
            None => lane.finish(bytes_read, settled).map(|(summary, journal)| {
                journals.extend(journal);
                summary
            }),
        };
        if !job.allow_failure {
            if let Err(error) = result {
                return Err(error);
            }
        }
        if cancels.iter().any(Cancel::is_cancelled) {
            return Err(Error::Cancelled);
        }
        targets.push(result);
    }
    Ok(Outcome {
        targets,
        content: content.map(ContentHasher::finish),
        source_digests,
        journals,
    })
}

/// The compressed units of the source, if every target takes them.
fn travelling<'a>(
    source: &'a dyn BlockSource,
    job: &Job<'_>,
    encoders: &[Option<Arc<dyn crate::image::Encoder>>],
) -> Option<&'a dyn PackedSource> {
    let packed = source.packed()?;
    let takes = |codec: Codec, index: usize| -> Option<Take> {
        encoders.get(index)?.as_ref()?.takes(codec)
    };
    let all = job.targets.iter().enumerate().all(|(index, target)| {
        target.shape.unit == packed.unit()
            && !matches!(target.ground, Ground::Image(_))
            && takes(packed.codec(), index).is_some()
    });
    (all && !job.targets.is_empty()).then_some(packed)
}

/// The device whose blocks all targets can share, where the bytes of the disk are theirs as they are.
fn shared_device(lanes: &[Lane<'_>]) -> Option<u64> {
    let mut devices = lanes.iter().map(Lane::shares_whole);
    let first = devices.next()??;
    devices.all(|next| next == Some(first)).then_some(first)
}

struct Engine<'a> {
    reader: Reader<'a>,
    cursor: Mutex<Cursor<'a>>,
    arriving: Option<&'a Arriving>,
    /// True if the size of the source was not known at first.
    endless: bool,
    lanes: &'a [Lane<'a>],
    content: Mutex<(Option<ContentHasher>, Order<Arc<Segment>>)>,
    /// Bytes of a segment.
    capacity: usize,
    /// Segments that may be in flight besides.
    slots: Mutex<usize>,
    slot_free: Condvar,
    /// Segments that are not in use.
    free: Mutex<Vec<Segment>>,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// The handle of the caller, and one for each target, whose progress may stop the work.
    cancels: Vec<Cancel>,
    allow_failure: bool,
    bytes_read: AtomicU64,
}

/// Stops all other workers when one leaves by an error or a panic.
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
        // A worker that is about to wait holds this lock: the stop cannot fall between its check and its sleep.
        let _slots = lock(&self.engine.slots);
        self.engine.slot_free.notify_all();
    }
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
        let stopped = || self.is_stopped();
        let release = |segment| self.release(segment);
        while self.take_slot() {
            let free = lock(&self.free).pop();
            let mut segment = free.unwrap_or_else(|| Segment::new(self.capacity));
            if !self.claim(&mut segment, &stopped)? {
                self.release(Arc::new(segment));
                break;
            }
            self.reader.complete(&mut segment)?;
            let segment = Arc::new(segment);
            self.digest(&segment)?;
            for lane in self.lanes.iter().filter(|lane| !lane.is_dead()) {
                if let Err(error) = lane.take_in(&segment, &stopped, &release) {
                    self.lane_failed(lane, error)?;
                }
            }
            self.release(segment);
        }
        if self.is_cancelled() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Claims a segment and reads it; `false` if there is none left. What arrives is read in turn.
    fn claim(&self, segment: &mut Segment, stopped: &dyn Fn() -> bool) -> Result<bool> {
        let mut cursor = lock(&self.cursor);
        if let Some(arriving) = self.arriving {
            if arriving.is_endless() {
                let reach = cursor.position().saturating_add(self.capacity as u64);
                arriving.wait_for(reach)?;
            }
            if !arriving.is_endless() && self.endless {
                cursor.end_at(self.reader.source.size());
            }
        }
        let claimed = cursor.claim(segment, stopped)?;
        if self.arriving.is_none() {
            drop(cursor);
        }
        if claimed {
            let read = self.reader.read(segment)?;
            self.bytes_read.fetch_add(read, Ordering::Relaxed);
        }
        Ok(claimed)
    }

    /// Ends a lane; the others continue if failure is allowed.
    fn lane_failed(&self, lane: &Lane<'_>, error: Error) -> Result<()> {
        if !self.allow_failure || self.is_stopped() {
            return Err(error);
        }
        for segment in lane.die(error) {
            self.release(segment);
        }
        // The last one takes the work with it; each keeps its own error.
        if self.lanes.iter().all(Lane::is_dead) {
            self.stop_quietly();
        }
        Ok(())
    }

    fn stop_quietly(&self) {
        drop(StopOnDrop {
            engine: self,
            armed: true,
        });
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.is_cancelled()
    }

    fn is_cancelled(&self) -> bool {
        self.cancels.iter().any(Cancel::is_cancelled)
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

    /// Releases a segment; the last lane makes room for another.
    fn release(&self, segment: Arc<Segment>) {
        let Some(segment) = Arc::into_inner(segment) else {
            return;
        };
        lock(&self.free).push(segment);
        *lock(&self.slots) += 1;
        self.slot_free.notify_one();
    }

    /// Takes the content of the segments whose turn has come into the digest.
    fn digest(&self, segment: &Arc<Segment>) -> Result<()> {
        let mut content = lock(&self.content);
        let (Some(hasher), order) = &mut *content else {
            return Ok(());
        };
        order.put(segment.number, Arc::clone(segment));
        while let Some(segment) = order.take_next() {
            for leaf in &segment.leaves {
                match leaf {
                    Leaf::Whole { guest, hash } => hasher.push_leaf(*guest, hash.clone())?,
                    Leaf::Part { guest, at, len } => {
                        hasher.update(*guest, segment.data.get(*at, *len))?;
                    }
                }
            }
            self.release(segment);
        }
        Ok(())
    }
}
