//! One layer of a stream: what its bytes are found to be while they go by.

use std::sync::{Arc, Mutex};

use crate::detect::{Detected, detect, told_by_end};
use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::formats::{Formats, raw::RAW};
use crate::image::{Format, Probe};
use crate::inspect::{Report, Safety};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::open::OpenOptions;
use crate::storage::Miss;

use super::store::{Answer, Arrived, Store, lock};
use super::{StreamOptions, StreamReport};

/// The unit in which the start is looked at: no signature is spread over more.
const SECTOR: u64 = 512;
/// Most attempts to open an image before its end is seen.
const MOST_ATTEMPTS: u32 = 64;
/// By how much a stream may be longer than the largest disk allowed while it may still be an image whose
/// format is told by its end, which has more than the disk.
const END_ROOM: u64 = 1 << 20;

/// Watches the bytes of one layer.
#[derive(Debug)]
pub(super) struct Watch {
    options: StreamOptions,
    store: Arc<Mutex<Store>>,
    position: u64,
    /// Position of the next look.
    next: u64,
    detected: Detected,
    declared: Option<u64>,
    attempts: u32,
    /// End of the first bytes that the last attempt lacked.
    wanted: Option<u64>,
    /// Description of the image, if it could be opened before its end.
    early: Option<Box<(Report, Safety)>>,
}

impl Watch {
    pub(super) fn new(options: &StreamOptions) -> Self {
        Watch {
            store: Arc::new(Mutex::new(Store::new(&options.limits))),
            options: options.clone(),
            position: 0,
            next: SECTOR,
            detected: Detected::default(),
            declared: None,
            attempts: 0,
            wanted: None,
            early: None,
        }
    }

    pub(super) fn detected(&self) -> &Detected {
        &self.detected
    }

    pub(super) fn virtual_size(&self) -> Option<u64> {
        let early = self.early.as_ref().map(|early| early.0.info.virtual_size);
        early.or(self.declared)
    }

    pub(super) fn safety(&self) -> Option<&Safety> {
        self.early.as_ref().map(|early| &early.1)
    }

    pub(super) fn kept(&self) -> u64 {
        lock(&self.store).kept()
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Takes the next bytes. What is looked at, and when, depends on where they are in the stream alone,
    /// and not on how it is cut.
    pub(super) fn feed(&mut self, mut chunk: &[u8]) -> Result<()> {
        while !chunk.is_empty() {
            let until = usize::try_from(self.next - self.position).unwrap_or(usize::MAX);
            let (now, later) = chunk.split_at(until.min(chunk.len()));
            lock(&self.store).push(now)?;
            self.position += now.len() as u64;
            chunk = later;
            if self.position <= SECTOR {
                self.check_start()?;
            }
            if self.position == self.next {
                self.look()?;
            }
        }
        self.check_length()
    }

    /// Stops at the first byte that none of the allowed formats has there.
    fn check_start(&self) -> Result<()> {
        let store = lock(&self.store);
        let head = store.head();
        if self.options.allowed.is_empty() || !self.all_exclude(head) {
            return Ok(());
        }
        let lengths = 1..=head.len();
        let first = lengths.into_iter().find(|len| {
            let head = head.get(..*len).unwrap_or_default();
            self.all_exclude(head)
        });
        Err(self.not_allowed(Vec::new(), first.unwrap_or(head.len()) as u64))
    }

    fn all_exclude(&self, head: &[u8]) -> bool {
        let mut allowed = self.options.allowed.iter();
        allowed.all(|name| {
            Formats::all()
                .by_name(name)
                .is_some_and(|format| format.excludes(head))
        })
    }

    fn not_allowed(&self, found: Vec<FormatId>, offset: u64) -> Error {
        Error::NotAllowed {
            found,
            offset,
            allowed: self.options.allowed.clone(),
        }
    }

    /// Fails if the disk is larger than the caller allows.
    fn check_size(&self, size: u64) -> Result<()> {
        let limits = Limits {
            virtual_size: self.options.max_virtual_size.unwrap_or(u64::MAX),
            ..Limits::default()
        };
        limits.check_virtual_size(size)
    }

    /// Fails if a raw disk is too large already.
    fn check_length(&self) -> Result<()> {
        if self.options.max_virtual_size.is_none() || !self.detected.matches.is_empty() {
            return Ok(());
        }
        let only_raw = |name: &String| {
            Formats::all()
                .by_name(name)
                .is_some_and(|format| format.id() == RAW)
        };
        let allowed = &self.options.allowed;
        let room = match !allowed.is_empty() && allowed.iter().all(only_raw) {
            true => 0,
            false => END_ROOM,
        };
        let least = self.position.saturating_sub(room);
        self.check_size(least)
    }

    /// Looks at what has arrived, and says when to look again.
    fn look(&mut self) -> Result<()> {
        let head_len = lock(&self.store).head_len();
        let in_window = self.position <= Probe::HEAD as u64;
        if in_window || self.position == head_len {
            self.detected = detect(&Arrived::new(&self.store, Answer::Prefix))?;
            self.check_allowed(false)?;
        }
        let found = !self.detected.matches.is_empty();
        // What a raw disk holds is known when its start is.
        let holds = !self.detected.content.is_empty() && self.position >= Probe::HEAD as u64;
        match self.detected.one() {
            Ok(format) if found || holds => self.try_open(format)?,
            // What is described and never opened needs more than its start, too.
            Err(Error::Unsupported { .. }) => self.ask_for_more(),
            _ => {}
        }
        let mut next = match self.position {
            at if at < Probe::HEAD as u64 => (at + 1).next_multiple_of(SECTOR),
            at if at < head_len => head_len,
            _ => u64::MAX,
        };
        if self.may_try() {
            let piece = lock(&self.store).next_piece();
            // What has come by now, and is not tried because the stream turned ambiguous, is behind.
            let wanted = piece.into_iter().chain(self.wanted);
            let ahead = wanted.filter(|at| *at > self.position);
            next = ahead.fold(next, u64::min);
        }
        self.next = next;
        Ok(())
    }

    /// Fails if what was found is not what may be here. Before the end only what is certain counts.
    fn check_allowed(&self, at_end: bool) -> Result<()> {
        let allowed = &self.options.allowed;
        if allowed.is_empty() {
            return Ok(());
        }
        let is_allowed = |id: &FormatId| {
            allowed
                .iter()
                .any(|name| match Formats::all().by_name(name) {
                    Some(format) => format.id() == *id,
                    None => name == id.as_str(),
                })
        };
        let ids = |found: &[(FormatId, _)]| found.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        let mut found = ids(&self.detected.matches);
        if matches!(self.detected.one(), Err(Error::Ambiguous { .. })) {
            found.extend(ids(&self.detected.content));
            return Err(self.not_allowed(found, self.position));
        }
        match found.as_slice() {
            [] => {}
            found if found.iter().all(is_allowed) => return Ok(()),
            _ => return Err(self.not_allowed(found, self.position)),
        }
        let content = ids(&self.detected.content);
        if is_allowed(&RAW) || content.iter().any(is_allowed) {
            return Ok(());
        }
        let store = lock(&self.store);
        let seen_enough = |name: &String| match Formats::all().by_name(name) {
            Some(format) => format.excludes(store.head()),
            // Content is within what is kept of the start.
            None => self.position >= store.head_len() && !told_by_end(name),
        };
        match at_end || allowed.iter().all(seen_enough) {
            true => Err(self.not_allowed(content, self.position)),
            false => Ok(()),
        }
    }

    fn may_try(&self) -> bool {
        let served = lock(&self.store).served();
        let most = self.options.limits.stream_bytes.saturating_mul(8);
        self.early.is_none() && self.attempts < MOST_ATTEMPTS && served <= most
    }

    /// Opens the image as far as it has arrived. What cannot be known yet is noted as wanted, and tried
    /// again when it has come.
    fn try_open(&mut self, format: &'static dyn Format) -> Result<()> {
        if format.id() == RAW {
            // Its size is not known before the end, but what its description will need is.
            self.ask_for_more();
            return Ok(());
        }
        if !self.attempts_now() {
            return Ok(());
        }
        let truth = Arrived::new(&self.store, Answer::Truth);
        if self.declared.is_none() {
            let size = format.declared_size(&truth);
            let missed = self.has_missed();
            self.declared = size.ok().flatten().filter(|_| !missed);
        }
        if let Some(size) = self.declared {
            self.check_size(size)?;
        }
        let described = self.describe(Answer::Truth);
        let missed = self.has_missed();
        match described {
            Ok(early) if !missed => {
                self.check_size(early.0.info.virtual_size)?;
                self.early = Some(Box::new(early));
            }
            _ => {
                // Only for what it asks.
                let _ = self.describe(Answer::Guess);
                self.has_missed();
            }
        }
        Ok(())
    }

    /// Has what a description will need noted as wanted, as far as what has arrived tells it.
    fn ask_for_more(&mut self) {
        if self.attempts_now() {
            let _ = self.describe(Answer::Guess);
            self.has_missed();
        }
    }

    /// Returns true if another attempt is due, and counts it.
    fn attempts_now(&mut self) -> bool {
        let has_come = self.wanted.is_some_and(|wanted| self.position >= wanted);
        let now = self.may_try() && (self.attempts == 0 || has_come);
        if now {
            self.attempts += 1;
            self.wanted = None;
        }
        now
    }

    /// Returns true if an attempt missed bytes, and notes those that will arrive first.
    fn has_missed(&mut self) -> bool {
        let misses = lock(&self.store).take_misses();
        let ends = misses.iter().filter_map(|miss| match miss {
            Miss::Later(end) if *end > self.position => Some(*end),
            _ => None,
        });
        self.wanted = ends.chain(self.wanted).min();
        !misses.is_empty()
    }

    fn describe(&self, answer: Answer) -> Result<(Report, Safety)> {
        let source = Arc::new(Arrived::new(&self.store, answer));
        let options = self.open_options();
        let name = ImageName::from(self.options.name.as_str());
        let detected = self.detected.clone();
        let report = Report::of_detected(source.clone(), detected.clone(), name, &options);
        let safety = Safety::of_detected(source, detected, &options);
        Ok((report?, safety?))
    }

    /// Options to open the image: its format is detected unless a single one is allowed.
    fn open_options(&self) -> OpenOptions {
        let options = OpenOptions::new().limits(self.options.limits.clone());
        match self.options.allowed.as_slice() {
            [name] if Formats::all().by_name(name).is_some() => options.format(name),
            _ => options,
        }
    }

    /// Settles what can be settled of a stream whose rest cannot be seen, for this reason.
    pub(super) fn give_up(&mut self, reason: Error) -> Result<StreamReport> {
        self.check_allowed(false)?;
        if !self.options.allowed.is_empty() && self.detected.matches.is_empty() {
            return Err(self.not_allowed(Vec::new(), self.position));
        }
        Ok(StreamReport {
            size: self.position,
            packing: None,
            detected: self.detected.clone(),
            virtual_size: self.virtual_size(),
            safety: Safety::unknown(&reason),
            unknown: vec![reason.to_string()],
            description: Err(reason),
        })
    }

    /// Settles everything at the end of the stream.
    pub(super) fn finish(&mut self) -> Result<StreamReport> {
        lock(&self.store).finish();
        let source = Arc::new(Arrived::new(&self.store, Answer::Truth));
        self.detected = detect(&source)?;
        self.check_allowed(true)?;
        lock(&self.store).take_misses();
        let options = self.open_options();
        let name = ImageName::from(self.options.name.as_str());
        let detected = self.detected.clone();
        let description = Report::of_detected(source.clone(), detected.clone(), name, &options);
        let misses = lock(&self.store).take_misses();
        let limits = &self.options.limits;
        let description = match description {
            Err(_) if !misses.is_empty() => Err(why(&misses, limits)),
            other => other,
        };
        let safety = Safety::of_detected(source, detected, &options);
        let unseen = lock(&self.store).take_misses();
        // What was not seen cannot be vouched for.
        let safety = match safety {
            safety if unseen.is_empty() => safety?,
            _ => Safety::unknown(&why(&unseen, limits)),
        };
        let unknown = match misses.iter().chain(&unseen).copied().collect::<Vec<_>>() {
            misses if misses.is_empty() => Vec::new(),
            misses => vec![why(&misses, limits).to_string()],
        };
        let virtual_size = match &description {
            Ok(report) => Some(report.info.virtual_size),
            Err(_) => self.declared,
        };
        if let Some(size) = virtual_size {
            self.check_size(size)?;
        }
        Ok(StreamReport {
            size: self.position,
            packing: None,
            detected: self.detected.clone(),
            virtual_size,
            description,
            safety,
            unknown,
        })
    }
}

/// The error that stands for bytes that were not kept.
fn why(misses: &[Miss], limits: &Limits) -> Error {
    let too_many = misses.iter().find_map(|miss| match miss {
        Miss::TooMany(bytes) => Some(*bytes),
        _ => None,
    });
    let gone = misses.iter().find_map(|miss| match miss {
        Miss::Gone(at) => Some(*at),
        _ => None,
    });
    match too_many {
        Some(value) => Error::LimitExceeded {
            limit: "stream_bytes",
            what: "a table of the image in a stream",
            value,
            maximum: limits.stream_bytes,
        },
        None => {
            let at = gone.map_or(String::new(), |at| format!(" at byte {at}"));
            Error::invalid(format!(
                "bytes of the image{at} passed in the stream before they were known to be needed; \
                 inspect it as a file"
            ))
        }
    }
}
