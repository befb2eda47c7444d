//! The verb *inspect*: what an image is, in the words of `qemu-img info`.
//!
//! ```
//! use blockform::OpenOptions;
//! use blockform::inspect::Report;
//!
//! let report = Report::of_path("testdata/qcow2/good/plain.qcow2", &OpenOptions::new())?;
//! print!("{report}");
//! println!("{}", report.to_json());
//! # Ok::<(), blockform::Error>(())
//! ```
//!
//! Nothing but the file itself is opened: references stay closed. Both forms are what `qemu-img info`
//! prints, to the letter, with these exceptions: text from an image never reaches the output as it
//! is, times are in UTC, a name is only ever a path (so `full-backing-filename` never is a URL), what
//! the disk holds follows (see [`content`](crate::content)), and what QEMU has no words for stands under
//! the key `blockform`, or under `Notes`.

mod contents;
mod human;
pub(crate) mod json;
mod map;
mod mbr;
mod order;
mod safety;
mod text;

use std::path::Path;
use std::sync::Arc;

pub use safety::{Safety, Unopened};

use crate::content::Contents;
use crate::detect::{Detected, detect};
use crate::error::Result;
use crate::format_id::FormatId;
use crate::formats::{Formats, raw::RAW};
use crate::image::{Evidence, FileInfo, Image, ImageInfo, SnapshotInfo, Value};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::open::{Layer, OpenOptions};
use crate::reference::{Reference, ReferenceKind};
use crate::resolver::DetachReferences;
use crate::source::{BlockSource, BlockSourceExt};

pub use map::ExtentMap;

/// The description of one image.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Name of the file, as the caller or the image above it in the chain has it.
    pub filename: ImageName,
    /// The format that the file was opened as.
    pub format: FormatId,
    /// Description of the image by its own metadata. The virtual size is exact.
    pub info: ImageInfo,
    /// The names inside it that mean other files.
    pub references: Vec<Reference>,
    /// The file that the image lies in, if it lies in a file.
    pub file: Option<FileReport>,
    /// All formats whose signatures were found, also others than the one that was opened.
    pub matches: Vec<(FormatId, Evidence)>,
    /// Content of the disk, if it could be read and something was recognised.
    pub contents: Option<Contents>,
    /// Properties for an image service, in OpenStack's words; only what is clear.
    pub properties: Vec<(&'static str, String)>,
    /// Warnings, with the image's own last.
    pub warnings: Vec<String>,
    /// The checks of its safety, where the caller asked for them.
    pub safety: Option<Safety>,
}

/// The description of the file that an image lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileReport {
    /// Its size in bytes.
    pub size: u64,
    /// Allocated size in bytes, where the system tells it.
    pub allocated_size: Option<u64>,
}

impl Report {
    /// Describes the image in the file at `path`. Nothing else is opened: the policy and the
    /// resolver of the options are not asked.
    ///
    /// A file without any known signature is described as raw, with a warning that says so; one that
    /// has a signature and cannot be opened as what it says is an error. A file of a kind that is known
    /// and never read (a DMG, a kernel, a compressed file) is described as what it is.
    ///
    /// # Errors
    /// As [`OpenOptions::open_path`], without those about references.
    pub fn of_path(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        Ok(Report::of_layer(&Layer::first(path, options)?, path.into()))
    }

    /// Describes the image in `source`, which the caller calls `filename`, likewise.
    ///
    /// # Errors
    /// As [`OpenOptions::open`], without those about references.
    pub fn of_source(
        source: Arc<dyn BlockSource>,
        filename: ImageName,
        options: &OpenOptions,
    ) -> Result<Self> {
        let resolver = Arc::new(DetachReferences);
        let layer = Layer::of(source, resolver, options)?;
        Ok(Report::of_layer(&layer, filename))
    }

    /// As [`of_source`](Self::of_source), without a look at what the disk holds: what a stream is
    /// described as.
    ///
    /// # Errors
    /// As [`of_source`](Self::of_source).
    pub fn without_contents(
        source: Arc<dyn BlockSource>,
        filename: ImageName,
        options: &OpenOptions,
    ) -> Result<Self> {
        let detected = detect(&source)?;
        Report::of_detected(source, detected, filename, options)
    }

    /// Describes the image in `source`, which was found to be all this, likewise.
    pub(crate) fn of_detected(
        source: Arc<dyn BlockSource>,
        detected: Detected,
        filename: ImageName,
        options: &OpenOptions,
    ) -> Result<Self> {
        let resolver = Arc::new(DetachReferences);
        let layer = Layer::of_detected(source, detected, resolver, options)?;
        let report = Report::bare(&*layer.image, filename);
        Ok(report.with_layer(&layer))
    }

    /// Describes the image in the file at `path` and all those behind it, as far as the options allow
    /// to follow the names. Each one below the first is opened as what the one above declares.
    ///
    /// # Errors
    /// As [`OpenOptions::open_path`].
    pub fn chain_of_path(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Vec<Self>> {
        let path = path.as_ref();
        let mut layer = Layer::first(path, options)?;
        let mut reports = vec![Report::of_layer(&layer, path.into())];
        while let Some(below) = layer.below()? {
            let name = reports.last().and_then(Report::full_backing_filename);
            reports.push(Report::of_layer(&below, name.unwrap_or_default()));
            layer = below;
        }
        Ok(reports)
    }

    /// Describes an open image that the caller calls `filename`, without the file that it lies in.
    /// Some pages of its disk are read, for what it holds.
    pub fn of_image(image: &dyn Image, filename: ImageName) -> Self {
        Report::within(image, filename, &Limits::default())
    }

    fn within(image: &dyn Image, filename: ImageName, limits: &Limits) -> Self {
        let mut report = Report::bare(image, filename);
        report.contents = contents::of_image(image, limits, &mut report.warnings);
        report.properties = contents::properties(image.info(), report.contents.as_ref());
        report
    }

    /// Describes an open image without a look at what its disk holds.
    pub(crate) fn bare(image: &dyn Image, filename: ImageName) -> Self {
        Report {
            filename,
            format: image.format(),
            info: image.info().clone(),
            references: image.references().to_vec(),
            file: None,
            matches: Vec::new(),
            properties: contents::properties(image.info(), None),
            contents: None,
            warnings: image.info().warnings.clone(),
            safety: None,
        }
    }

    fn of_layer(layer: &Layer, filename: ImageName) -> Self {
        let report = Report::within(&*layer.image, filename, layer.limits());
        report.with_layer(layer)
    }

    /// This description with what is known of the file.
    fn with_layer(self, layer: &Layer) -> Self {
        let mut report = self;
        report.file = Some(FileReport {
            size: layer.source.size(),
            allocated_size: layer.source.allocated_size(),
        });
        report.matches = layer.detected.matches.clone();
        let others = report.matches.iter().filter(|(id, _)| *id != report.format);
        let mut warnings: Vec<String> = others
            .map(|(id, evidence)| {
                format!(
                    "the file has the signature of {id} at byte {} and is described as {}",
                    evidence.offset, report.format
                )
            })
            .collect();
        if layer.assumed_raw {
            warnings.push(
                "no signature of a known image format was found, so the file is described as raw \
                 (-f raw, if that is what it is)"
                    .to_owned(),
            );
        }
        report
            .matches
            .extend(layer.detected.content.iter().cloned());
        warnings.append(&mut report.warnings);
        report.warnings = warnings;
        report
    }

    /// QEMU's name of the format.
    fn qemu_format(&self) -> &'static str {
        Formats::all()
            .by_name(self.format.as_str())
            .map_or(self.format.into_str(), |format| format.qemu_name())
    }

    /// The name of the backing file as it stands in the image.
    pub fn backing(&self) -> Option<&Reference> {
        let mut references = self.references.iter();
        references.find(|reference| reference.kind == ReferenceKind::BackingFile)
    }

    /// Path of the backing file: its name, after the directory of this image's file name if it is
    /// relative. Text only: nothing is opened or looked up.
    pub fn full_backing_filename(&self) -> Option<ImageName> {
        Some(self.full_name(&self.backing()?.name))
    }

    /// Path of a file that the image calls `name`, likewise.
    pub(crate) fn full_name(&self, name: &ImageName) -> ImageName {
        let name = name.as_bytes();
        let is_separator = |byte: &u8| std::path::is_separator(char::from(*byte));
        let absolute = name.first().is_some_and(is_separator);
        let image = self.filename.as_bytes();
        let folder = match image.iter().rposition(is_separator) {
            Some(last) if !absolute => image.get(..=last).unwrap_or_default(),
            _ => &[],
        };
        ImageName::new([folder, name].concat())
    }

    /// The value with the names of the image's files as the caller would call them.
    fn with_full_names(&self, value: Value) -> Value {
        match value {
            Value::File(None) => Value::Name(self.filename.clone()),
            Value::File(Some(name)) => Value::Name(self.full_name(&name)),
            Value::List(values) => {
                let values = values.into_iter().map(|value| self.with_full_names(value));
                Value::List(values.collect())
            }
            Value::Map(entries) => {
                let entries = entries.into_iter();
                let entries = entries.map(|(key, value)| (key, self.with_full_names(value)));
                Value::Map(entries.collect())
            }
            plain => plain,
        }
    }

    /// Fails unless the image is of one of these formats, or a raw disk that holds one of them; any will do
    /// if there are none.
    ///
    /// # Errors
    /// [`Error::NotAllowed`](crate::Error::NotAllowed).
    pub fn check_allowed(&self, formats: &[String]) -> Result<()> {
        let is = |name: &String, id: FormatId| match Formats::all().by_name(name) {
            Some(format) => format.id() == id,
            None => name == id.as_str(),
        };
        let is_raw = self.format == RAW;
        let held = self.matches.iter().filter(|_| is_raw).map(|(id, _)| *id);
        let found: Vec<FormatId> = [self.format].into_iter().chain(held).collect();
        let allowed = formats
            .iter()
            .any(|name| found.iter().any(|id| is(name, *id)));
        match allowed || formats.is_empty() {
            true => Ok(()),
            false => Err(crate::Error::NotAllowed {
                found,
                offset: self.file.map_or(0, |file| file.size),
                allowed: formats.to_vec(),
            }),
        }
    }

    /// The description as a tree, with the keys and types of QEMU's `ImageInfo`, in QEMU's order.
    pub fn to_value(&self) -> Value {
        let info = &self.info;
        let children = self.children().into_iter().map(|child| {
            let name = child.node.clone();
            Value::map()
                .with("name", name)
                .with("info", file_value(child))
        });
        let children = Some(children.collect::<Vec<_>>()).filter(|list| !list.is_empty());
        let snapshots = info.snapshots.iter().map(snapshot_value);
        let snapshots = Some(snapshots.collect::<Vec<_>>()).filter(|list| !list.is_empty());
        let size = (!info.size_is_unknown).then(|| in_sectors(info.virtual_size));
        let backing = self.backing();
        let specific = info.specific.as_ref().map(|specific| {
            specific_value(self.qemu_format(), self.with_full_names(specific.clone()))
        });
        let mut map = Value::map()
            .with_some("children", children)
            .with_some("snapshots", snapshots)
            .with("filename", self.filename.clone())
            .with("format", self.qemu_format())
            .with_some("virtual-size", size)
            .with_some("actual-size", self.allocated_size())
            .with_some("encrypted", info.encryption.is_some().then_some(true))
            .with_some("compressed", info.compressed.then_some(true))
            .with_some("backing-filename", backing.map(|b| b.name.clone()))
            .with_some("full-backing-filename", self.full_backing_filename())
            .with_some(
                "backing-filename-format",
                backing.and_then(|b| b.format.clone()),
            )
            .with_some("format-specific", specific);
        if !info.unknown_to_qemu {
            insert_state(&mut map, info);
        }
        order::as_qemu(map).with("blockform", self.own_value())
    }

    /// The description as JSON, in the layout of `qemu-img info --output json`, without a line break
    /// at the end.
    pub fn to_json(&self) -> String {
        json::to_text(&self.to_value())
    }

    /// The files that the image consists of, under the names that the caller would use, in QEMU's
    /// order: what was opened last comes first.
    fn children(&self) -> Vec<FileInfo> {
        let Some(file) = &self.file else {
            return Vec::new();
        };
        let others = self.info.files.iter().rev().map(|other| FileInfo {
            name: self.full_name(&other.name),
            ..other.clone()
        });
        let own = FileInfo {
            node: "file".to_owned(),
            name: self.filename.clone(),
            size: file.size,
            allocated_size: file.allocated_size,
        };
        others.chain([own]).collect()
    }

    /// Allocated size of all files together, where it is known of each.
    fn allocated_size(&self) -> Option<u64> {
        let own = self.file.as_ref()?.allocated_size?;
        let mut others = self.info.files.iter().map(|file| file.allocated_size);
        others.try_fold(own, |sum, size| sum.checked_add(size?))
    }

    /// The part of the description that QEMU has no words for.
    fn own_value(&self) -> Value {
        let matches = self.matches.iter().map(|(id, evidence)| {
            Value::map()
                .with("format", id.as_str())
                .with("evidence", evidence.what)
                .with("offset", evidence.offset)
        });
        let size = self.info.virtual_size;
        let references = self.references.iter();
        let others = references.filter(|r| r.kind != ReferenceKind::BackingFile);
        let others = others.map(|reference| {
            Value::map()
                .with("kind", reference.kind.to_string())
                .with("filename", reference.name.clone())
        });
        let others = Some(others.collect::<Vec<_>>()).filter(|others| !others.is_empty());
        let mut own = Value::map()
            .with_list("matches", matches)
            .with_list("warnings", self.warnings.iter().cloned())
            .with_some("safety", self.safety.as_ref().map(Safety::to_value))
            .with_some("details", self.info.details.clone())
            .with_some("contents", self.contents.as_ref().map(contents::value))
            .with("properties", contents::properties_value(&self.properties));
        if self.info.unknown_to_qemu {
            insert_state(&mut own, &self.info);
        }
        own.with_some(
            "exact-virtual-size",
            (in_sectors(size) != size).then_some(size),
        )
        .with_some("references", others)
    }
}

/// The text of a description in JSON, in the layout of `qemu-img info --output json`, without a line break
/// at the end. Everything that is not printable ASCII is escaped.
pub fn to_json(value: &Value) -> String {
    json::to_text(value)
}

/// Several descriptions as one JSON list, in the layout of `qemu-img info --backing-chain --output
/// json`, without a line break at the end.
pub fn list_to_json(reports: &[Report]) -> String {
    json::to_text(&Value::List(reports.iter().map(Report::to_value).collect()))
}

/// The unit of allocation, and whether the image was closed.
fn insert_state(map: &mut Value, info: &ImageInfo) {
    if let Some(size) = info.cluster_size {
        map.insert("cluster-size", size);
    }
    map.insert("dirty-flag", info.dirty);
}

/// QEMU's name of the protocol of a plain file.
const PROTOCOL: FormatId = FormatId::new("file");

/// A size as QEMU tells it, which counts in sectors of 512 bytes.
fn in_sectors(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(512).unwrap_or(bytes)
}

fn file_value(file: FileInfo) -> Value {
    Value::map()
        .with("children", Vec::new())
        .with("filename", file.name)
        .with("format", PROTOCOL.as_str())
        .with("virtual-size", in_sectors(file.size))
        .with_some("actual-size", file.allocated_size)
        .with(
            "format-specific",
            specific_value(PROTOCOL.as_str(), Value::map()),
        )
        .with("dirty-flag", false)
}

fn specific_value(format: &'static str, data: Value) -> Value {
    Value::map().with("type", format).with("data", data)
}

fn snapshot_value(snapshot: &SnapshotInfo) -> Value {
    const SECOND: u64 = 1_000_000_000;
    let clock = snapshot.vm_clock_nanoseconds;
    Value::map()
        .with("id", snapshot.id.clone())
        .with("name", snapshot.name.clone())
        .with("vm-state-size", snapshot.vm_state_size)
        .with("date-sec", snapshot.date_seconds)
        .with("date-nsec", snapshot.date_nanoseconds)
        .with("vm-clock-sec", clock / SECOND)
        .with("vm-clock-nsec", clock % SECOND)
        .with_some("icount", snapshot.instruction_count)
}
