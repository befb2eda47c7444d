//! The verb *map*: the places of a disk's bytes in the backing chain, in the words of `qemu-img map`.
//!
//! ```
//! use blockform::OpenOptions;
//! use blockform::extents::Entries;
//!
//! let path = "testdata/qcow2/good/plain.qcow2";
//! let image = OpenOptions::new().open_path(path)?;
//! for entry in Entries::of(&*image, path.into()) {
//!     println!("{}", entry?.to_json());
//! }
//! # Ok::<(), blockform::Error>(())
//! ```

use std::fmt::Write;

use crate::error::Result;
use crate::extent::{Extent, ExtentKind};
use crate::formats::raw::RAW;
use crate::image::{Image, Value};
use crate::inspect::{Report, json};
use crate::name::ImageName;
use crate::source::BlockSourceExt;

/// A run of a disk, as in `qemu-img map`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Start in bytes from the start of the disk.
    pub start: u64,
    /// Length in bytes; 0 only in the one entry of an empty disk.
    pub length: u64,
    /// Depth in the backing chain of the image that answers; 0 is the first.
    pub depth: u16,
    /// True if an image of the chain records it.
    pub present: bool,
    /// True if it is known to read as zero.
    pub zero: bool,
    /// True if bytes are stored for it.
    pub data: bool,
    /// True if they are compressed.
    pub compressed: bool,
    /// Host offset in bytes, if the bytes lie there in one piece and as they are.
    pub offset: Option<u64>,
    /// Name of the file with that offset, as the caller would write it.
    pub filename: Option<ImageName>,
    /// The error, in the map of a disk that was [salvaged](crate::salvage): the range is zeros then. QEMU has no
    /// such key.
    pub error: Option<String>,
}

impl Entry {
    /// The entry as one line of `qemu-img map --output json`, without a separator.
    pub fn to_json(&self) -> String {
        let mut text = format!(
            "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \
             \"data\": {}, \"compressed\": {}",
            self.start,
            self.length,
            self.depth,
            self.present,
            self.zero,
            self.data,
            self.compressed
        );
        if let Some(offset) = self.offset {
            // Writing to a string cannot fail.
            let _ = write!(text, ", \"offset\": {offset}");
        }
        if let Some(error) = &self.error {
            let _ = write!(
                text,
                ", \"error\": {}",
                json::to_text(&Value::from(error.as_str()))
            );
        }
        text.push('}');
        text
    }

    /// The entry as one line of the table that `qemu-img map` prints; `None` if no bytes are stored for it, or if
    /// they are compressed.
    pub fn to_row(&self) -> Option<String> {
        // In C's `%#x` zero has no prefix.
        let hex = |number: u64| match number {
            0 => "0".to_owned(),
            number => format!("{number:#x}"),
        };
        let name = self.filename.clone().unwrap_or_default();
        let offset = self.offset.filter(|_| self.data && !self.zero)?;
        Some(format!(
            "{:<16}{:<16}{:<16}{}",
            hex(self.start),
            hex(self.length),
            hex(offset),
            name.escaped()
        ))
    }

    /// The heading of that table.
    pub fn heading() -> &'static str {
        "Offset          Length          Mapped to       File"
    }

    /// Returns true if `next` continues the run.
    fn goes_on_in(&self, next: &Entry) -> bool {
        let adjoins = match (self.offset, next.offset) {
            (None, None) => true,
            (Some(offset), Some(next)) => offset.checked_add(self.length) == Some(next),
            _ => false,
        };
        let status = |entry: &Entry| (entry.present, entry.zero, entry.data, entry.compressed);
        adjoins
            && status(self) == status(next)
            && self.depth == next.depth
            && self.filename == next.filename
    }
}

/// An image of the chain.
#[derive(Debug)]
struct Layer<'a> {
    image: &'a dyn Image,
    /// Resolves the names of its files.
    names: Report,
}

/// The runs of a disk in order, neighbours of one kind as one. It ends after an error.
#[derive(Debug)]
pub struct Entries<'a> {
    layers: Vec<Layer<'a>>,
    position: u64,
    end: u64,
    /// The run before the position, which may continue.
    open: Option<Entry>,
    /// True after the first entry: even an empty disk has one.
    told: bool,
}

impl<'a> Entries<'a> {
    /// The runs of `image`, whose file the caller calls `filename`.
    pub fn of(image: &'a dyn Image, filename: ImageName) -> Self {
        let layer = |image: &'a dyn Image, filename| Layer {
            image,
            names: Report::bare(image, filename),
        };
        let mut layers = Vec::new();
        let mut next = Some(layer(image, filename));
        while let Some(above) = next {
            next = above.image.backing().map(|backing| {
                let name = above.names.full_backing_filename();
                layer(&**backing, name.unwrap_or_default())
            });
            layers.push(above);
        }
        Entries {
            layers,
            position: 0,
            end: image.size(),
            open: None,
            told: false,
        }
    }

    /// Those from `offset` bytes on, up to `length` bytes behind it.
    #[must_use]
    pub fn within(mut self, offset: u64, length: u64) -> Self {
        self.position = offset;
        self.end = self.end.min(offset.saturating_add(length));
        self
    }

    fn entry_at_position(&self) -> Result<Entry> {
        let Some(first) = self.layers.first() else {
            return Ok(empty(self.position));
        };
        let left = self.end - self.position;
        let mut run = first.image.extent_at(self.position, left)?;
        if run.kind == ExtentKind::Data && run.host_offset.is_none() {
            // A run may be long because it crosses gaps in the file. Here they matter.
            if let Some(place) = first.image.place_of(run.start, run.len) {
                run.host_offset = Some(place.offset);
                run.len = place.len.min(run.len);
            }
        }
        Ok(self.entry(run))
    }

    fn entry(&self, run: Extent) -> Entry {
        let mut entry = Entry {
            start: run.start,
            length: run.len,
            depth: run.depth,
            present: run.kind != ExtentKind::Hole,
            zero: run.kind.reads_as_zero(),
            data: !run.kind.reads_as_zero(),
            compressed: run.kind == ExtentKind::Compressed,
            offset: run.host_offset,
            ..Entry::default()
        };
        let Some(layer) = self.layers.get(usize::from(run.depth)) else {
            return entry;
        };
        if run.kind == ExtentKind::Zero && run.start >= layer.image.size() {
            // A backing file that has ended. To QEMU it is the one above that has nothing there.
            entry.depth = run.depth.saturating_sub(1);
            entry.present = false;
        }
        // Zeros with a place are a hole in the file. In an image other than the plain disk they were
        // stored, and only the file system knows that they are zero.
        entry.data |= entry.offset.is_some() && layer.image.format() != RAW;
        if entry.offset.is_some() {
            entry.filename = Some(match layer.image.file_of(run.start) {
                Some(name) => layer.names.full_name(name),
                None => layer.names.filename.clone(),
            });
        }
        entry
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.position < self.end {
            let next = match self.entry_at_position() {
                Ok(next) => next,
                Err(error) => {
                    self.position = u64::MAX;
                    self.told = true;
                    self.open = None;
                    return Some(Err(error));
                }
            };
            self.position = next.start.saturating_add(next.length);
            match &mut self.open {
                Some(open) if open.goes_on_in(&next) => open.length += next.length,
                open => {
                    if let Some(whole) = open.replace(next) {
                        self.told = true;
                        return Some(Ok(whole));
                    }
                }
            }
        }
        let last = self.open.take();
        let last = last.or_else(|| (!self.told).then(|| empty(self.position)));
        self.told = true;
        last.map(Ok)
    }
}

/// The entry of a disk, or of a part of one, that has no bytes.
fn empty(start: u64) -> Entry {
    Entry {
        start,
        ..Entry::default()
    }
}
