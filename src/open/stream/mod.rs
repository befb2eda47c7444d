//! Images that arrive: opened when their start is there, and once more when all of it was.

mod said;
mod source;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::detect::Detected;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::image::{Image, Window};
use crate::open::OpenOptions;
use crate::packed::{Codec, PackedSource, PackedUnit};
use crate::resolver::Resolver;
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Stored, check_extent, readable};
use crate::storage::{Incoming, Room, Spill};

use said::Said;
pub use source::StreamSource;

/// Bytes of the disk whose tables are looked up before their data is read.
const STEP: u64 = 1 << 20;
/// The least bytes of the disk that are asked about where more would be too far ahead.
const LEAST: u64 = 64 << 10;

/// An image that arrives. It can be converted once, while it does: it is an
/// [input](crate::convert::Input) of a conversion, and cannot be read in any other way.
///
/// A stream is refused for the same reasons as a file, some of them only at its end: until a
/// conversion returned without an error nothing of the disk is certain. The tables that were read are kept,
/// up to [`Limits::stream_bytes`](crate::Limits::stream_bytes), and when the end was seen all that they
/// say is compared with what the image, opened as the file that it is, says.
#[derive(Debug)]
pub struct StreamImage(pub(crate) Arriving);

impl StreamImage {
    /// Its format.
    pub fn format(&self) -> FormatId {
        self.0.image().format()
    }
}

/// The disk of an image that arrives: the runs are asked for in order, no further ahead than the data
/// is read, and the data is read in order too, by one thread at a time. The size may change until the end is
/// [settled](Self::settle).
#[derive(Debug)]
pub(crate) struct Arriving {
    incoming: Arc<Incoming>,
    turn: Mutex<Turn>,
    /// The image of the turn, for calls that do not read the stream.
    current: RwLock<Arc<dyn Image>>,
    options: OpenOptions,
    resolver: Arc<dyn Resolver>,
    size: Option<u64>,
    expected: Vec<Option<Digest>>,
    file: Option<FileIdentity>,
    packed: Option<(Codec, u64)>,
}

#[derive(Debug)]
struct Turn {
    image: Arc<dyn Image>,
    /// True if it was opened with all of the stream at hand.
    whole: bool,
    /// The extents that were told before that.
    said: Said,
}

impl OpenOptions {
    /// Opens the image that arrives on a stream. Its format has to be named, or its start has to show it.
    ///
    /// # Errors
    /// As [`open`](Self::open), [`Error::OutOfOrder`] if what tells of the disk comes too late in the
    /// stream and may not be spilled, and [`Error::Io`] where the reader fails.
    pub fn open_stream(&self, stream: StreamSource) -> Result<StreamImage> {
        let resolver = self.resolver_of_stream(stream.path.as_deref())?;
        let (mut hashers, mut expected) = (Vec::new(), Vec::new());
        for (algorithm, digest) in stream.digests {
            hashers.push(Hasher::new(algorithm)?);
            expected.push(digest);
        }
        let spill = match &stream.spill {
            Some((folder, bytes)) => Some(Spill::create(folder, *bytes)?),
            None => None,
        };
        let room = Room {
            window: stream.window,
            tables: self.limits.stream_bytes,
            spill,
        };
        let incoming = Incoming::new(stream.reader, room, hashers, stream.cancel)?;
        let incoming = Arc::new(incoming);
        let source: Arc<dyn BlockSource> = Arc::<Incoming>::clone(&incoming);
        let mut window = Window::read_start(&source)?;
        if incoming.has_ended() {
            window = Window::read(&source)?;
        }
        let shown = Detected::among(&self.formats, &window.probe());
        if let Some(error) = self.format.as_ref().and_then(|name| shown.packed_not(name)) {
            return Err(error);
        }
        let opened = match incoming.has_ended() {
            false => self.open_arriving(Arc::clone(&source), Arc::clone(&resolver), &shown),
            true => Err(Error::Cancelled),
        };
        let (image, whole): (Arc<dyn Image>, bool) = match opened {
            Ok(image) => (image.into(), false),
            Err(error) if !incoming.has_ended() && !incoming.spills() => return Err(error),
            // All of it is at hand, or can be.
            Err(_) => {
                incoming.drain(true)?;
                (self.open_with(source, Arc::clone(&resolver))?.into(), true)
            }
        };
        if let Some(size) = stream.size {
            let found = image.size();
            if image.trailer().is_none() && size != found {
                return Err(other_size(size, found));
            }
        }
        incoming.owe(image.tables())?;
        // Compressed units share clusters; large blocks are never shared.
        if image.packed().is_some() || image.block_size() <= LEAST {
            incoming.set_block(image.block_size());
        }
        Ok(StreamImage(Arriving {
            incoming,
            packed: image.packed().map(|packed| (packed.codec(), packed.unit())),
            current: RwLock::new(Arc::clone(&image)),
            turn: Mutex::new(Turn {
                image,
                whole,
                said: Said::new(),
            }),
            options: self.clone(),
            resolver,
            size: stream.size,
            expected,
            file: stream.file,
        }))
    }
}

fn other_size(size: u64, found: u64) -> Error {
    Error::invalid(format!(
        "the disk on the stream has {found} bytes, and {size} were announced"
    ))
}

impl Arriving {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image, without waiting for what reads it.
    fn image(&self) -> Arc<dyn Image> {
        let current = self.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    fn source(&self) -> Arc<dyn BlockSource> {
        Arc::<Incoming>::clone(&self.incoming)
    }

    /// Opens the image as the file that it is, if the end was seen since it was opened.
    fn look_again(&self, turn: &mut Turn) -> Result<()> {
        if turn.whole || !self.incoming.has_ended() {
            return Ok(());
        }
        let (source, resolver) = (self.source(), Arc::clone(&self.resolver));
        let size = self.size_of(&*turn.image);
        let image = self.options.open_arrived(source, resolver, &*turn.image)?;
        if image.size() != size {
            return Err(other_size(size, image.size()));
        }
        turn.image = image.into();
        turn.whole = true;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::clone(&turn.image);
        Ok(())
    }

    /// The size of the disk, once the image or its end tells it, or what the caller announced.
    fn known_size(&self, image: &dyn Image) -> Option<u64> {
        let Some(trailer) = image.trailer() else {
            return Some(image.size());
        };
        let file = self.incoming.length().known();
        file.map(|len| len.saturating_sub(trailer)).or(self.size)
    }

    /// The size of the disk, or a bound.
    fn size_of(&self, image: &dyn Image) -> u64 {
        self.known_size(image).unwrap_or_else(|| image.size())
    }

    /// The run at `offset`, by tables that are kept.
    fn run_at(&self, turn: &mut Turn, offset: u64, limit: u64) -> Result<Extent> {
        self.look_again(turn)?;
        self.incoming.keep(!turn.image.walks());
        let mut limit = check_extent(offset, limit, self.size_of(&*turn.image))?;
        let run = loop {
            match turn.image.extent_at(offset, limit) {
                Err(Error::OutOfOrder { .. }) if limit > LEAST => limit /= 2,
                other => break other?,
            }
        };
        let Turn { image, whole, said } = turn;
        if !*whole {
            while said.end < run.start {
                let skipped = image.extent_at(said.end, run.start - said.end)?;
                said.say(&**image, skipped)?;
            }
            said.say(&**image, run)?;
        }
        Ok(run)
    }

    /// Looks up the tables for the bytes from `offset` to `end`, and then has `read` read these.
    fn in_turn<T>(
        &self,
        offset: u64,
        end: u64,
        mut read: impl FnMut(&dyn Image) -> Result<T>,
    ) -> Result<T> {
        let mut turn = self.turn();
        let mut at = offset;
        while at < end {
            at = self.run_at(&mut turn, at, end - at)?.end();
        }
        self.look_again(&mut turn)?;
        self.incoming.keep(false);
        let done = read(&*turn.image);
        if !turn.whole && self.incoming.has_ended() {
            // What it ran into was the end, and what that means is for the whole image to say.
            self.look_again(&mut turn)?;
            return read(&*turn.image);
        }
        done
    }
}

impl BlockSource for Arriving {
    fn size(&self) -> u64 {
        self.size_of(&*self.image())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size());
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..want).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let step = readable(rest.len(), at % STEP, STEP);
            let piece = rest.get_mut(..step).unwrap_or_default();
            let end = at + step as u64;
            let n = self.in_turn(at, end, |image| image.read_at(piece, at))?;
            done += n;
            if n < step {
                break;
            }
        }
        Ok(done)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.run_at(&mut self.turn(), offset, limit)
    }

    fn block_size(&self) -> u64 {
        self.image().block_size()
    }

    fn packed(&self) -> Option<&dyn PackedSource> {
        self.packed.map(|_| self as &dyn PackedSource)
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl Stored for Arriving {
    fn uses_file(&self, file: FileIdentity) -> bool {
        self.file == Some(file) || self.image().uses_file(file)
    }
}

impl PackedSource for Arriving {
    fn codec(&self) -> Codec {
        self.packed.map_or(Codec::Zlib, |(codec, _)| codec)
    }

    fn unit(&self) -> u64 {
        self.packed.map_or(1, |(_, unit)| unit)
    }

    fn read_packed(
        &self,
        guest: u64,
        limit: u64,
        buf: &mut Vec<u8>,
        units: &mut Vec<PackedUnit>,
    ) -> Result<usize> {
        let limit = check_extent(guest, limit, self.size())?.min(STEP.max(self.unit()));
        let before = (buf.len(), units.len());
        self.in_turn(guest, guest + limit, |image| {
            buf.truncate(before.0);
            units.truncate(before.1);
            match image.packed() {
                Some(packed) => packed.read_packed(guest, limit, buf, units),
                None => Ok(0),
            }
        })
    }

    fn unpack(&self, unit: &PackedUnit, packed: &[u8], out: &mut [u8]) -> Result<()> {
        match self.image().packed() {
            Some(source) => source.unpack(unit, packed, out),
            None => Err(Error::invalid("the image no longer has compressed units")),
        }
    }

    fn place_of_unit(&self, guest: u64) -> Result<Option<u64>> {
        let turn = self.turn();
        let packed = turn.image.packed();
        packed.map_or(Ok(None), |packed| packed.place_of_unit(guest))
    }
}

impl Arriving {
    /// Returns true if the size is not known before the end is seen.
    pub(crate) fn is_endless(&self) -> bool {
        self.known_size(&*self.image()).is_none()
    }

    /// Waits until the disk's bytes up to `guest`, no more than some MiB ahead of what was read, are
    /// there, or its end is known.
    ///
    /// # Errors
    /// Errors of the stream.
    pub(crate) fn wait_for(&self, guest: u64) -> Result<()> {
        // What may follow a disk's last byte has to be told from it.
        self.incoming.arrive(guest.saturating_add(LEAST))
    }

    /// Reads all of the stream into its spill file, if it may: the size is known then, and the source
    /// can be read in any order. Returns whether that is so.
    ///
    /// # Errors
    /// Errors of the stream, and of opening it as a file.
    pub(crate) fn spill(&self) -> Result<bool> {
        let mut turn = self.turn();
        if !self.incoming.spills() && !self.incoming.has_ended() {
            return Ok(false);
        }
        self.incoming.drain(true)?;
        self.look_again(&mut turn)?;
        Ok(true)
    }

    /// Bytes of memory that are in use for what has arrived.
    pub(crate) fn memory(&self) -> u64 {
        self.incoming.memory()
    }

    /// Reads the rest of the stream, and compares all that was said of the disk before with what is
    /// known now. Returns the digests of the stream that were asked for.
    ///
    /// # Errors
    /// Errors of the disk, read from a file; and if it would have been another one. The output is of no
    /// use then.
    pub(crate) fn settle(&self) -> Result<Vec<Digest>> {
        let mut turn = self.turn();
        self.incoming.drain(false)?;
        self.look_again(&mut turn)?;
        let Turn { image, said, .. } = &mut *turn;
        let size = image.size();
        if self.size.is_some_and(|announced| announced != size) {
            return Err(other_size(self.size.unwrap_or(0), size));
        }
        let mut says = said.anew();
        while says.end < said.end {
            let run = image.extent_at(says.end, said.end - says.end)?;
            says.say(&**image, run)?;
        }
        if says.end_of_speech() != said.end_of_speech() {
            return Err(Error::invalid(
                "the start of the stream describes another disk than the whole stream does",
            ));
        }
        let digests = self.incoming.take_digests();
        for (found, expected) in digests.iter().zip(&self.expected) {
            if let Some(expected) = expected.as_ref().filter(|expected| *expected != found) {
                return Err(Error::DigestMismatch {
                    expected: expected.to_string(),
                    found: found.to_string(),
                });
            }
        }
        Ok(digests)
    }
}
