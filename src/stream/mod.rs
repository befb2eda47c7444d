//! The verb *inspect* over a stream: the description of an image while its bytes arrive.
//!
//! A [`StreamInspector`] is fed with chunks of any size and never seeks; an [`InspectedReader`] feeds it
//! all that is read through it. The same probes and parsers work as on a file: the bytes that they need
//! are kept (the start, the end, and the tables that they ask for), and they run again when missing bytes
//! have arrived. So the report at the end is that of the file, or says that the memory that
//! [`Limits::stream_bytes`] grants is too small for it.
//!
//! A stream that is compressed by gzip, xz or zstd is decompressed as it arrives, and the answer is
//! about its content. Where formats are [allowed](StreamOptions::allow), the compression has to be, too.
//!
//! ```
//! use blockform::stream::StreamOptions;
//!
//! let mut inspector = StreamOptions::new().allow(["qcow2"]).inspector();
//! let file = std::fs::read("testdata/qcow2/good/plain.qcow2").unwrap();
//! for chunk in file.chunks(1000) {
//!     inspector.feed(chunk)?;
//! }
//! let report = inspector.finish()?;
//! assert!(report.safety.is_safe());
//! # Ok::<(), blockform::Error>(())
//! ```

mod reader;
mod store;
mod unpack;
mod watch;

use crate::detect::Detected;
use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::formats::Formats;
use crate::image::Probe;
use crate::inspect::{Report, Safety};
use crate::limits::Limits;

pub use reader::InspectedReader;
pub use unpack::Packing;
use unpack::Unpacked;
use watch::Watch;

/// Options of the inspection of a stream.
#[derive(Debug, Clone, Default)]
pub struct StreamOptions {
    limits: Limits,
    allowed: Vec<String>,
    max_virtual_size: Option<u64>,
    as_it_is: bool,
    name: String,
}

impl StreamOptions {
    /// The defaults: anything may come.
    pub fn new() -> Self {
        StreamOptions {
            name: "-".to_owned(),
            ..StreamOptions::default()
        }
    }

    /// Only these formats may come. The stream is stopped as soon as it is certain that it is of none of
    /// them, or of several formats at once. What a raw disk holds can be allowed by its name, too
    /// (`iso`, `gpt`), and with `raw` everything that is a raw disk. A name that is allowed in vain
    /// allows nothing.
    #[must_use]
    pub fn allow<S: Into<String>>(mut self, formats: impl IntoIterator<Item = S>) -> Self {
        self.allowed = formats.into_iter().map(Into::into).collect();
        for name in &mut self.allowed {
            if let Some(format) = Formats::all().by_name(name) {
                *name = format.id().into_str().to_owned();
            }
        }
        self
    }

    /// Stops the stream as soon as its disk is known to be larger than so many bytes.
    #[must_use]
    pub fn max_virtual_size(mut self, bytes: u64) -> Self {
        self.max_virtual_size = Some(bytes);
        self
    }

    /// Does not decompress a compressed stream.
    #[must_use]
    pub fn as_it_is(mut self) -> Self {
        self.as_it_is = true;
        self
    }

    /// Limits of what the image may demand, and of how much of the stream is kept.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Name of the stream in the description, `-` by default.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// An inspector that has seen nothing yet.
    pub fn inspector(self) -> StreamInspector {
        // The list is for the content of a compressed stream.
        let outer = StreamOptions {
            allowed: Vec::new(),
            max_virtual_size: None,
            ..self.clone()
        };
        StreamInspector {
            options: self,
            outer: Watch::new(&outer),
            start: Vec::new(),
            needed: 1,
            held: Held::Undecided,
            stopped: false,
        }
    }

    /// A reader that passes the bytes of another one on and inspects them.
    pub fn reader<R>(self, inner: R) -> InspectedReader<R> {
        InspectedReader::new(inner, self.inspector())
    }
}

/// Inspects a stream that is pushed into it.
#[derive(Debug)]
pub struct StreamInspector {
    options: StreamOptions,
    /// The bytes as they arrive.
    outer: Watch,
    /// The first bytes, until they tell the compression.
    start: Vec<u8>,
    /// Number of them that the next look needs.
    needed: usize,
    held: Held,
    stopped: bool,
}

/// Content of a stream.
#[derive(Debug)]
enum Held {
    /// It is too short to tell.
    Undecided,
    /// Itself.
    Plain,
    /// Compressed bytes.
    Packed(Box<Unpacked>),
}

/// Report on a stream that has ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct StreamReport {
    /// Number of bytes of the stream, before decompression.
    pub size: u64,
    /// Compression of the whole stream. The other fields are then about its content.
    pub packing: Option<Packing>,
    /// All formats that it shows.
    pub detected: Detected,
    /// The virtual size in bytes. It is known more often than the whole description is.
    pub virtual_size: Option<u64>,
    /// Description of a file of these bytes, or the error of describing it.
    pub description: Result<Report>,
    /// The checks of its safety.
    pub safety: Safety,
    /// Facts that are unknown because their bytes were not kept, for a person to read. The description
    /// is then an error or lacks them.
    pub unknown: Vec<String>,
}

impl StreamInspector {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] if the stream cannot be in any of the allowed formats,
    /// [`Error::LimitExceeded`] if its disk is larger than allowed. All later calls fail.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<()> {
        self.check_running()?;
        let fed = self.take(chunk);
        self.stopped = fed.is_err();
        fed
    }

    fn take(&mut self, chunk: &[u8]) -> Result<()> {
        let mut rest = chunk;
        while let (Held::Undecided, false) = (&self.held, rest.is_empty()) {
            let needed = self.needed.saturating_sub(self.start.len());
            let (next, after) = rest.split_at(needed.min(rest.len()));
            self.start.extend_from_slice(next);
            rest = after;
            self.decide(false)?;
        }
        match &mut self.held {
            Held::Undecided => Ok(()),
            Held::Plain => self.outer.feed(rest),
            Held::Packed(unpacked) => {
                self.outer.feed(rest)?;
                unpacked.feed(rest)
            }
        }
    }

    /// Tells the compression by the first bytes, and hands them on.
    fn decide(&mut self, last: bool) -> Result<()> {
        let start = self.start.as_slice();
        if self.options.as_it_is {
            return self.settle_plain();
        }
        match Packing::of(start, last || start.len() >= Probe::HEAD) {
            Ok(Some(packing)) => {
                let allowed = &self.options.allowed;
                let name = packing.name();
                if !allowed.is_empty() && !allowed.iter().any(|a| a == name) {
                    return Err(Error::NotAllowed {
                        found: vec![FormatId::new(name)],
                        offset: start.len() as u64,
                        allowed: allowed.clone(),
                    });
                }
                let inner = Watch::new(&self.options);
                let mut unpacked = Unpacked::new(packing, inner, &self.options.limits);
                self.outer.feed(start)?;
                unpacked.feed(start)?;
                self.held = Held::Packed(Box::new(unpacked));
            }
            Ok(None) => self.settle_plain()?,
            Err(needed) => self.needed = needed.min(Probe::HEAD),
        }
        Ok(())
    }

    fn settle_plain(&mut self) -> Result<()> {
        self.outer = Watch::new(&self.options);
        self.held = Held::Plain;
        self.start
            .iter()
            .try_for_each(|byte| self.outer.feed(&[*byte]))
    }

    /// Says that the stream is over.
    ///
    /// # Errors
    /// As [`feed`](Self::feed): a format that is told by its end may be proved only here.
    pub fn finish(&mut self) -> Result<StreamReport> {
        self.check_running()?;
        self.stopped = true;
        if let Held::Undecided = self.held {
            self.decide(true)?;
        }
        let Held::Packed(unpacked) = &mut self.held else {
            return self.outer.finish();
        };
        let size = self.outer.position();
        let outer = self.outer.finish()?;
        unpacked.finish();
        let mut report = match &unpacked.gave_up {
            None => unpacked.watch.finish()?,
            Some(why) => {
                let error = unpack::unreadable(unpacked.packing, why);
                unpacked.watch.give_up(error)?
            }
        };
        report.size = size;
        report.packing = Some(unpacked.packing);
        // An image that arrives as it is cannot also be a compressed one.
        let packing = FormatId::new(unpacked.packing.name());
        let found = outer.detected.matches.iter();
        if found.clone().any(|(id, _)| *id != packing) {
            return Err(Error::Ambiguous {
                matches: found.clone().map(|(id, _)| *id).collect(),
                evidence: found.map(|(_, told)| (told.what, told.offset)).collect(),
            });
        }
        Ok(report)
    }

    fn check_running(&self) -> Result<()> {
        match self.stopped {
            false => Ok(()),
            true => Err(Error::invalid("the stream was stopped or is over")),
        }
    }

    /// The inspection of the content: of the stream as it arrives, or decompressed.
    fn watch(&self) -> &Watch {
        match &self.held {
            Held::Packed(unpacked) => &unpacked.watch,
            _ => &self.outer,
        }
    }

    /// Compression of the whole stream, if it is compressed.
    pub fn packing(&self) -> Option<Packing> {
        match &self.held {
            Held::Packed(unpacked) => Some(unpacked.packing),
            _ => None,
        }
    }

    /// Formats found so far. Those that the end tells are not among them.
    pub fn detected(&self) -> &Detected {
        self.watch().detected()
    }

    /// The one format that the stream is of so far, if it is of one.
    pub fn format(&self) -> Option<FormatId> {
        match self.detected().matches.as_slice() {
            [(id, _)] => Some(*id),
            _ => None,
        }
    }

    /// The virtual size in bytes, as soon as the image tells it.
    pub fn virtual_size(&self) -> Option<u64> {
        self.watch().virtual_size()
    }

    /// The checks of the image's safety, as soon as it can be opened. The end of the stream may still
    /// show something else.
    pub fn safety(&self) -> Option<&Safety> {
        self.watch().safety()
    }

    /// Number of bytes that have arrived.
    pub fn position(&self) -> u64 {
        match self.held {
            Held::Undecided => self.start.len() as u64,
            _ => self.outer.position(),
        }
    }

    /// Number of bytes kept: at most [`Limits::stream_bytes`] (or 80 KiB) for the bytes that
    /// arrive and as many again for their decompressed content.
    pub fn kept_bytes(&self) -> u64 {
        let inner = match &self.held {
            Held::Packed(unpacked) => unpacked.watch.kept(),
            _ => 0,
        };
        self.outer.kept() + inner
    }
}
