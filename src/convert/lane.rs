//! A lane: the way of the segments into one target.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::convert::behind::WriteBehind;
use crate::convert::claim::Ground;
use crate::convert::journal::Journal;
use crate::convert::options::Summary;
use crate::convert::order::Order;
use crate::convert::place::place_steps;
use crate::convert::prepare::Preparer;
use crate::convert::segment::{Buffer, Bytes, PieceKind, Segment, Store, Work};
use crate::digest::{Hasher, digest_of};
use crate::error::{Error, Result};
use crate::image::{ImageWriter, Payload, Write, WriteShape};
use crate::limits::Limits;
use crate::lock::lock;
use crate::progress::{Phase, Report};
use crate::source::BlockSourceExt;
use crate::storage::Slice;
use crate::target::{BlockTarget, Zeroes};

/// A target, and how it is written.
pub(super) struct Target<'a> {
    pub(super) writer: Box<dyn ImageWriter>,
    pub(super) shape: WriteShape,
    /// One for each of the writer's files.
    pub(super) files: Vec<Arc<dyn BlockTarget + 'a>>,
    pub(super) ground: Ground,
    pub(super) sparse_size: u64,
    pub(super) limits: Limits,
    /// Stores all data of the source whole, as the layout was planned.
    pub(super) whole: bool,
    /// Brings the tables to stable storage before the header is written.
    pub(super) sync: bool,
    /// True if a sync follows in the end.
    pub(super) write_behind: bool,
    /// Keeps the size of files that are larger than needed.
    pub(super) keep_size: bool,
    pub(super) report: Report,
    /// The journal from which it can be resumed.
    pub(super) journal: Option<Resumable>,
    /// Makes the writer that finishes, when the size of the disk is known in the end.
    pub(super) remake: Option<Remake>,
}

/// Makes a writer for a disk of that size, which places as the one before it did.
pub(super) type Remake = Box<dyn Fn(u64) -> Result<Box<dyn ImageWriter>> + Send + Sync>;

/// The journal of a target, what it says was done, and the identity to begin it with.
pub(super) struct Resumable {
    pub(super) journal: Journal,
    /// True if it is to be resumed.
    pub(super) begun: bool,
    pub(super) identity: Vec<u8>,
}

impl Target<'_> {
    /// Writes what comes before the first segment, unless that was done before, and brings the writer
    /// to where the journal ends: the number of the next segment, and its place on the disk.
    pub(super) fn begin(&mut self) -> Result<(u64, u64)> {
        if let Some(resumable) = self.journal.as_mut().filter(|journal| journal.begun) {
            let writer = self.writer.as_mut();
            return resumable
                .journal
                .replay(&mut |segment, work| place_steps(writer, segment, work));
        }
        if !self.shape.plain {
            self.files.iter().try_for_each(|file| self.unmake(file))?;
        }
        for write in &self.shape.preallocation {
            write_table(&self.files, write, self.sparse_size)?;
        }
        if let Some(resumable) = &mut self.journal {
            self.files.iter().try_for_each(|file| file.sync())?;
            resumable.journal.begin(&resumable.identity)?;
        }
        Ok((0, 0))
    }

    /// Takes away what makes an image of what was in a file before: a crash on the way would leave its
    /// header over the data of another disk.
    fn unmake(&self, file: &Arc<dyn BlockTarget + '_>) -> Result<()> {
        const SECTOR: u64 = 512;
        let mut last = None;
        while !file.reads_as_zero() {
            let Some((id, evidence)) = crate::detect(file)?.matches.into_iter().next() else {
                break;
            };
            let this = Some((id, evidence.offset));
            if std::mem::replace(&mut last, this) == this {
                return Err(Error::invalid(format!(
                    "the signature of an older {id} image cannot be removed from the target"
                )));
            }
            // One sector, which is written or not, and never half.
            let start = evidence.offset - evidence.offset % SECTOR;
            let len = file.size().saturating_sub(start).min(SECTOR);
            file.write_zeroes_at(start, len, Zeroes::Keep)?;
            if self.sync {
                file.sync()?;
            }
        }
        Ok(())
    }
}

/// A target while segments are on their way into it.
pub(super) struct Lane<'a> {
    pub(super) preparer: Preparer<'a>,
    files: Vec<Arc<dyn BlockTarget + 'a>>,
    sparse_size: u64,
    limits: Limits,
    sync: bool,
    behind: Option<WriteBehind>,
    keep_size: bool,
    /// True if the files hold the disk's bytes and nothing else.
    plain: bool,
    placing: Mutex<Placing>,
    stores: Mutex<StoreQueue>,
    /// Threads that may store at once.
    storers: usize,
    /// Work that is not in use.
    free: Mutex<Vec<Work>>,
    dead: AtomicBool,
    failure: Mutex<Option<Error>>,
    report: Report,
    total: u64,
    done: AtomicU64,
    bytes_written: AtomicU64,
    journal: Option<Mutex<Journal>>,
    remake: Option<Remake>,
}

struct Placing {
    writer: Box<dyn ImageWriter>,
    order: Order<(Arc<Segment>, Work)>,
}

#[derive(Default)]
struct StoreQueue {
    queue: VecDeque<(Arc<Segment>, Work)>,
    storing: usize,
}

impl<'a> Lane<'a> {
    /// A lane whose first segment has the number `first`.
    pub(super) fn new(target: Target<'a>, preparer: Preparer<'a>, first: u64) -> Self {
        let storers = target.files.iter().map(|file| file.concurrent_writes());
        let storers = storers.min().unwrap_or(1).max(1);
        Lane {
            preparer,
            // A journal is kept in order.
            storers: if target.journal.is_some() { 1 } else { storers },
            behind: target
                .write_behind
                .then(|| WriteBehind::new(target.files.len())),
            files: target.files,
            sparse_size: target.sparse_size,
            limits: target.limits,
            sync: target.sync,
            keep_size: target.keep_size,
            plain: target.shape.plain,
            placing: Mutex::new(Placing {
                writer: target.writer,
                order: Order::starting_at(first),
            }),
            stores: Mutex::default(),
            free: Mutex::default(),
            dead: AtomicBool::new(false),
            failure: Mutex::new(None),
            report: target.report,
            total: target.shape.virtual_size,
            done: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            remake: target.remake,
            journal: target
                .journal
                .map(|resumable| Mutex::new(resumable.journal)),
        }
    }

    /// Returns true after a failure: nothing goes into it any more.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Ends the lane, and returns the segments that were on their way.
    pub(super) fn die(&self, error: Error) -> Vec<Arc<Segment>> {
        lock(&self.failure).get_or_insert(error);
        self.dead.store(true, Ordering::Relaxed);
        let mut placing = lock(&self.placing);
        let waiting: Vec<_> = placing.order.drain().collect();
        drop(placing);
        let queued = std::mem::take(&mut lock(&self.stores).queue);
        let left = waiting.into_iter().chain(queued);
        left.map(|(segment, _)| segment).collect()
    }

    pub(super) fn take_failure(&self) -> Option<Error> {
        lock(&self.failure).take()
    }

    /// Decides what of a segment goes into this target, places the segments whose turn has come, and
    /// stores what is placed. Hands each segment that is stored to `release`.
    pub(super) fn take_in(
        &self,
        segment: &Arc<Segment>,
        stopped: &dyn Fn() -> bool,
        release: &dyn Fn(Arc<Segment>),
    ) -> Result<()> {
        let mut work = lock(&self.free).pop().unwrap_or_default();
        self.preparer.prepare(segment, &mut work)?;
        if let Some(segment) = self.place(Arc::clone(segment), work)? {
            release(segment);
            return Ok(());
        }
        self.store(stopped, release)
    }

    /// Hands a prepared segment in, and places those whose turn has come. Returns it if the lane has
    /// died.
    fn place(&self, segment: Arc<Segment>, work: Work) -> Result<Option<Arc<Segment>>> {
        let mut placing = lock(&self.placing);
        if self.is_dead() {
            return Ok(Some(segment));
        }
        placing.order.put(segment.number, (segment, work));
        while let Some((segment, mut work)) = placing.order.take_next() {
            place_steps(placing.writer.as_mut(), &segment, &mut work)?;
            // While the order is locked: what is queued first is stored first.
            lock(&self.stores).queue.push_back((segment, work));
        }
        Ok(None)
    }

    /// Empties the store queue, if not enough others do.
    fn store(&self, stopped: &dyn Fn() -> bool, release: &dyn Fn(Arc<Segment>)) -> Result<()> {
        {
            let mut stores = lock(&self.stores);
            if stores.storing >= self.storers {
                return Ok(());
            }
            stores.storing += 1;
        }
        loop {
            let next = {
                let mut stores = lock(&self.stores);
                let next = stores.queue.pop_front();
                if next.is_none() {
                    stores.storing -= 1;
                }
                next
            };
            let Some((segment, work)) = next else {
                return Ok(());
            };
            if stopped() || self.is_dead() {
                release(segment);
                continue;
            }
            let stored = self
                .store_segment(&segment, &work)
                .and_then(|()| self.note(&segment, &work));
            if stored.is_ok() {
                let before = self.done.fetch_max(segment.done, Ordering::Relaxed);
                let done = before.max(segment.done);
                self.report.tell(Phase::Copying, done, self.total);
            }
            release(segment);
            lock(&self.free).push(work);
            stored?;
        }
    }

    fn store_segment(&self, segment: &Segment, work: &Work) -> Result<()> {
        for store in &work.stores {
            let bytes = match store {
                Store::Table(write) => {
                    write_table(&self.files, write, self.sparse_size)?;
                    continue;
                }
                Store::Bytes(bytes) => bytes,
            };
            let Bytes {
                from,
                host,
                at,
                len,
                ..
            } = *bytes;
            let end = at.saturating_add(len);
            let file = file_of(&self.files, bytes.file)?;
            let before = self.bytes_written.fetch_add(len as u64, Ordering::Relaxed);
            self.limits
                .check_output(before.saturating_add(len as u64))?;
            if from == Buffer::Data && file.shares_blocks().is_some() {
                self.share_data(segment, &**file, host, at, len)?;
            } else {
                let from = match from {
                    Buffer::Data => segment.data.get(at, len),
                    Buffer::Packed => work.packed.get(at..end).unwrap_or_default(),
                    Buffer::Taken => segment.taken.get(at..end).unwrap_or_default(),
                };
                file.write_all_at(from, host)?;
            }
            if let Some(behind) = &self.behind {
                behind.stored(&**file, bytes.file, host, len);
            }
        }
        Ok(())
    }

    /// The device whose blocks its files share, if all that they hold is the disk's bytes.
    pub(super) fn shares_whole(&self) -> Option<u64> {
        let [file] = self.files.as_slice() else {
            return None;
        };
        let as_it_is = self.plain && matches!(self.preparer.ground, Ground::Zero);
        file.shares_blocks().filter(|_| as_it_is)
    }

    /// Stores the `len` bytes at `at` of a segment's data, by sharing the blocks in which the source has
    /// them where that can be done.
    fn share_data(
        &self,
        segment: &Segment,
        file: &dyn BlockTarget,
        host: u64,
        at: usize,
        len: usize,
    ) -> Result<()> {
        let end = at.saturating_add(len);
        let mut done = at;
        for piece in &segment.pieces {
            let is_read = match piece.kind {
                PieceKind::Data => true,
                PieceKind::Shared => false,
                PieceKind::Packed | PieceKind::Zero => continue,
            };
            let (guest, piece_at) = (piece.guest, piece.at);
            let piece_len = usize::try_from(piece.len).unwrap_or(usize::MAX);
            let piece_end = piece_len.saturating_add(piece_at);
            while piece_at <= done && done < piece_end.min(end) {
                let guest = guest + (done - piece_at) as u64;
                let left = piece_end.min(end) - done;
                let host = host + (done - at) as u64;
                let place = self.preparer.source.place_of(guest, left as u64);
                let shared = match &place {
                    Some(place) => file.share_from(place, host)?,
                    None => 0,
                };
                if shared > 0 {
                    done = done.saturating_add(usize::try_from(shared).unwrap_or(left));
                    continue;
                }
                let place_len = place.map_or(left as u64, |place| place.len);
                let n = usize::try_from(place_len).map_or(left, |len| len.min(left));
                if is_read {
                    file.write_all_at(segment.data.get(done, n), host)?;
                } else {
                    let mut bytes = vec![0; n];
                    let read = self.preparer.source.read_at(&mut bytes, guest)?;
                    file.write_all_at(bytes.get(..read).unwrap_or_default(), host)?;
                }
                done += n;
            }
        }
        // The rest pads the last unit, or was never in a file.
        let rest = end.saturating_sub(done);
        file.write_all_at(segment.data.get(done, rest), host + (done - at) as u64)
    }

    /// Notes a stored segment in the journal, if there is one.
    fn note(&self, segment: &Segment, work: &Work) -> Result<()> {
        let Some(journal) = &self.journal else {
            return Ok(());
        };
        let is_time = lock(journal).note(segment, work);
        if is_time { self.checkpoint() } else { Ok(()) }
    }

    /// Brings what is stored to stable storage, and then the journal.
    pub(super) fn checkpoint(&self) -> Result<()> {
        let Some(journal) = &self.journal else {
            return Ok(());
        };
        self.files.iter().try_for_each(|file| file.sync())?;
        lock(journal).flush()
    }

    /// Writes the last tables, and then the header, when all segments are stored. The journal, if there
    /// is one, is over when the result has its name. `size` is that of the disk if it was not known.
    pub(super) fn finish(
        self,
        bytes_read: u64,
        size: Option<u64>,
    ) -> Result<(Summary, Option<Journal>)> {
        let (files, sparse_size, mut total) = (&self.files, self.sparse_size, self.total);
        let placing = self.placing.into_inner();
        let mut writer = placing.unwrap_or_else(PoisonError::into_inner).writer;
        if let (Some(size), Some(remake)) = (size, &self.remake) {
            writer = remake(size)?;
            total = writer.shape().virtual_size;
        }
        self.report.tell(Phase::Finishing, total, total);
        let finish = writer.finish()?;
        for write in &finish.tables {
            write_table(files, write, sparse_size)?;
        }
        for (file, size) in files.iter().zip(&finish.sizes) {
            if !self.keep_size || file.size() < *size {
                file.set_size(*size)?;
            }
        }
        let sync = || match self.sync {
            true => files.iter().try_for_each(|file| file.sync()),
            false => Ok(()),
        };
        sync()?;
        for write in &finish.seal {
            write_table(files, write, sparse_size)?;
        }
        if !finish.seal.is_empty() {
            sync()?;
        }
        self.report.tell(Phase::Done, total, total);
        let summary = Summary {
            virtual_size: total,
            bytes_read,
            bytes_written: self.bytes_written.into_inner(),
            ..Summary::default()
        };
        let unlocked = |journal: Mutex<_>| {
            let journal = journal.into_inner();
            journal.unwrap_or_else(PoisonError::into_inner)
        };
        Ok((summary, self.journal.map(unlocked)))
    }
}

/// Writes what is not the guest's.
pub(super) fn write_table(
    files: &[Arc<dyn BlockTarget + '_>],
    write: &Write,
    sparse_size: u64,
) -> Result<()> {
    let target = file_of(files, write.file)?;
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
        Payload::Digest {
            algorithm,
            start,
            len,
        } => {
            let range = Slice::new(target, *start, *len)?;
            let digest = digest_of(&range, Hasher::new(*algorithm)?, &|| false)?;
            target.write_all_at(digest.to_hex().as_bytes(), offset)
        }
        Payload::WrittenZeroes(len) => {
            crate::storage::write_zeroes_by(offset, *len, |zeroes, at| {
                target.write_all_at(zeroes, at)
            })
        }
    }
}

fn file_of<'f, 'a>(
    files: &'f [Arc<dyn BlockTarget + 'a>],
    file: usize,
) -> Result<&'f Arc<dyn BlockTarget + 'a>> {
    files
        .get(file)
        .ok_or_else(|| Error::invalid(format!("there is no target for file {file}")))
}
