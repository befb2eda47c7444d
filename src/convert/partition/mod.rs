//! One conversion, done in parts by processes that share nothing but the source and the target.
//!
//! A [`Plan`] is made once, goes to every machine as text, and is carried out in three steps, by
//! whatever scheduler there is:
//!
//! ```text
//!   prepare   once          a folder beside the target: the plan, and the target's files, empty
//!   part      in any order  reads its range of the disk, writes where the range lies, syncs, and
//!                           leaves a mark that it is done
//!   seal      once          if every part is done: header and footer, sync, and the name
//! ```
//!
//! Each step may be killed and run again, and run twice. What has the target's name in the end is, byte
//! for byte, what [`ConvertOptions::convert_to_path`] writes, and it is whole or absent; a block device
//! is written in place.
//!
//! It is for images in which every byte of the guest has its place from the start
//! ([`WriteShape::settled`](crate::image::WriteShape::settled)): raw, fixed VHD, flat VMDK, fixed VDI.
//!
//! ```no_run
//! use blockform::convert::ConvertOptions;
//! use blockform::convert::partition::{Cut, Plan};
//! use blockform::{Limits, OpenOptions};
//!
//! let source = OpenOptions::new().open_path("disk.qcow2")?;
//! let plan = Plan::new(&*source, &ConvertOptions::to("raw"), Cut::Parts(8))?;
//! let text = plan.to_json()?;
//! plan.prepare("disk.raw")?;
//! // On each machine:
//! let plan = Plan::from_json(&text, &Limits::default())?;
//! plan.run_part(&*source, "disk.raw", 3)?;
//! // When all are done:
//! plan.seal("disk.raw")?;
//! # Ok::<(), blockform::Error>(())
//! ```
//!
//! # What it asks of its surroundings
//!
//! All processes see the folder and the target through one file system with the usual promises (a
//! rename is one step, a file is created by one process only), or the target is a block device and the
//! [folder](Plan::in_folder) is on such a file system. No part may still run when the target is sealed
//! and put to use: a process that was given up and lives on writes into it. It writes the same bytes
//! again, which do no harm until the disk is changed.

mod cut;
mod folder;
mod layout;
mod text;
mod window;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::convert::destination::{is_block_device, output_path, refuse_one_for_two};
use crate::convert::input::Input;
use crate::convert::lane::write_table;
use crate::convert::options::{ConvertOptions, Summary};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::limits::Limits;
use crate::name::{ImageName, quoted_path};
use crate::progress::{progress_setter, work_setters};
use crate::source::BlockSource;
use crate::storage::FileStorage;
use crate::target::BlockTarget;

pub use cut::{Cut, MAX_PARTS, Part};
use folder::{Folder, Place};
use layout::Layout;
use window::{PartTarget, Window};

/// A conversion cut into parts.
#[derive(Debug, Clone)]
pub struct Plan {
    source: SourceFacts,
    /// The format's id, its options, and how it is written.
    options: ConvertOptions,
    /// Virtual size of the target in bytes.
    size: u64,
    parts: Vec<Part>,
    folder: Option<PathBuf>,
}

/// The facts by which the source is recognized, as they stand in the text of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceFacts {
    format: String,
    virtual_size: u64,
    file: Option<FileFacts>,
}

/// The facts by which a change of a file shows, on every machine that has the same file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileFacts {
    size: u64,
    modified_seconds: u64,
    modified_nanoseconds: u32,
}

impl Plan {
    /// Plans the conversion of `source` as `options` have it, cut so that every part has about as much
    /// data to copy. Small disks, and disks with little data, come to fewer parts than `cut` asks for.
    ///
    /// Of the options, those about threads, memory, progress and cancelling count where the plan was
    /// made and are not part of its text.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a format whose parts cannot be written apart, for options that do
    /// not make the same image every time, for overlays, and for digests, which need the whole in
    /// order; what reading the source fails with.
    pub fn new(source: &dyn Image, options: &ConvertOptions, cut: Cut) -> Result<Self> {
        if options.image.overlay.is_some() || options.image.create.backing.is_some() {
            return Err(Error::invalid("an overlay cannot be written in parts"));
        }
        if options.job.content.is_some() {
            return Err(Error::invalid(
                "no digest is made of a disk that is converted in parts; make it of the result",
            ));
        }
        let mut options = options.clone();
        options.image.format = crate::formats::Formats::all()
            .named(&options.image.format)?
            .id()
            .as_str()
            .to_owned();
        // It is said of the steps, each of which knows the target's name.
        options.image.create.file_name = None;
        let layout = Layout::of(&options, source.size(), None)?;
        let size = layout.shape.virtual_size;
        let window = Window::new(&source, 0, size);
        let writes_zeroes = options.image.sparse_size == 0;
        let unit = layout.shape.unit;
        let mut parts = cut::parts(&window, cut, unit, writes_zeroes, &options.job.work.cancel)?;
        for part in &mut parts {
            if options.job.work.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            part.sample = sample(&source, part)?;
        }
        Ok(Plan {
            source: SourceFacts {
                format: source.format().as_str().to_owned(),
                virtual_size: source.size(),
                file: None,
            },
            options,
            size,
            parts,
            folder: None,
        })
    }

    /// Adds to what the source is known by the size of the file at `path` and when it was modified, for
    /// [`check_source_file`](Self::check_source_file).
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be examined.
    pub fn source_file(mut self, path: impl AsRef<Path>) -> Result<Self> {
        self.source.file = Some(FileFacts::of(path.as_ref())?);
        Ok(self)
    }

    /// Fails if the file at `path` is not the one that was the source when the plan was made: as long
    /// as it was, and not modified since. A plan that does not know that passes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if it is another one, [`Error::Io`] if it cannot be examined.
    pub fn check_source_file(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match &self.source.file {
            Some(file) if *file != FileFacts::of(path)? => Err(Error::invalid(format!(
                "{} was changed since the plan was made",
                quoted_path(path)
            ))),
            _ => Ok(()),
        }
    }

    /// Reads a plan from text, which is not trusted: a plan that passes describes a conversion of a disk
    /// of its size, in parts that cover it once. It names no files. How large they become, and how much
    /// space is reserved for them, is the plan's to say, within the limits.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for text that is not a plan, [`Error::LimitExceeded`] for text longer than
    /// [`Limits::metadata_bytes`] and a disk larger than [`Limits::virtual_size`].
    pub fn from_json(text: &str, limits: &Limits) -> Result<Self> {
        text::parse(text, limits)
    }

    /// The plan as text: the same text for the same plan.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if an option cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        text::write(self)
    }

    /// The parts in the order of the disk. There is at least one.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The format of the source, to open it as that on other machines.
    pub fn source_format(&self) -> &str {
        &self.source.format
    }

    /// Virtual size of the target in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.size
    }

    /// Keeps the notes of the conversion, and its files until they get their names, in this folder, which
    /// does not exist yet or is empty, and not in `.NAME.parts` beside the target. Its parent has to
    /// exist. A block device needs one, on a file system that all processes share; files need one on the
    /// file system that the target is on. It is not part of the plan's text.
    #[must_use]
    pub fn in_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    work_setters!(|self| self.options.job.work);
    progress_setter!(|self| self.options.job.work);

    /// Makes the folder of the conversion into `path`, with the files to be, empty and as long as they
    /// will be. If it is there already, and is this plan's, nothing is done; of several processes that
    /// prepare at once one does it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the folder is there and not this plan's, if `path` cannot be a target,
    /// or is a device that is too small; [`Error::Io`].
    pub fn prepare(&self, path: impl AsRef<Path>) -> Result<()> {
        let (place, layout) = self.place(path.as_ref())?;
        refuse_one_for_two(&place.paths)?;
        let text = self.to_json()?;
        if Folder::find(&place, &text)?.is_some() {
            return Ok(());
        }
        if place.is_device {
            let device = FileStorage::open_writable(path.as_ref())?;
            layout.check_room(path.as_ref(), device.size())?;
        }
        // On a device there is nothing to reserve: all of it is written, zeros too.
        Folder::create(&place, &text, |files| {
            for (file, size) in files.iter().zip(&layout.finish.sizes) {
                file.set_size(*size)?;
            }
            for write in &layout.shape.preallocation {
                write_table(files, write, self.options.image.sparse_size)?;
            }
            Ok(())
        })
    }

    /// Does part `index`, counted from 0, of the conversion into `path`. Returns `None` if it was done
    /// before. It writes nothing outside of its range, and may be killed, repeated, and run twice at
    /// once.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there is no such part, if `path` is not prepared for this plan, or if
    /// the source is not the plan's (its format, its size, and samples of what it holds are compared);
    /// what reading and writing fail with, and [`Error::Cancelled`]. The part is not done then.
    pub fn run_part(
        &self,
        source: &dyn Image,
        path: impl AsRef<Path>,
        index: usize,
    ) -> Result<Option<Summary>> {
        let part = self.parts.get(index).ok_or_else(|| {
            Error::invalid(format!(
                "there is no part {index}: the plan has {} of them, counted from 0",
                self.parts.len()
            ))
        })?;
        self.check_source(source, part)?;
        let (place, mut layout) = self.place(path.as_ref())?;
        for path in &place.paths {
            self.options.refuse_source(Input::from(&source), path)?;
        }
        let folder = Folder::find(&place, &self.to_json()?)?.ok_or_else(|| place.unprepared())?;
        if folder.is_done(index)? {
            return Ok(None);
        }
        let is_first = folder.begin(index)?;
        // What was begun before may have left anything in the range, after a crash of the machine.
        let is_zero = is_first && (!place.is_device || self.options.image.target_is_zero);
        let keep = !place.is_device && !layout.shape.preallocation.is_empty();
        let files = self.open_files(&place, &folder, &layout)?;
        let stretches = layout.stretches(part)?;
        let target: Arc<dyn BlockTarget> =
            Arc::new(PartTarget::new(&files, stretches, is_zero, keep)?);
        let window = Window::new(&source, part.start, part.len);
        let mut options = ConvertOptions::to("raw")
            .sparse_size(self.options.image.sparse_size)
            .sync(self.options.job.sync);
        options.job.work = self.options.job.work.clone();
        let summary = options.convert_to_targets(&window, &[target])?;
        folder.finish(index)?;
        Ok(Some(summary))
    }

    /// Lists the parts of the conversion into `path` that are not done yet.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if `path` is not prepared for this plan, [`Error::Io`].
    pub fn missing(&self, path: impl AsRef<Path>) -> Result<Vec<usize>> {
        let (place, _) = self.place(path.as_ref())?;
        let folder = Folder::find(&place, &self.to_json()?)?.ok_or_else(|| place.unprepared())?;
        self.missing_in(&folder)
    }

    /// Ends the conversion into `path`: writes what is not the guest's, brings all to stable storage,
    /// gives the files their names and removes the folder.
    ///
    /// # Errors
    /// [`Error::PartsMissing`] if parts are not done, [`Error::InvalidInput`] if `path` is not prepared
    /// for this plan (or sealed already), [`Error::Io`].
    pub fn seal(&self, path: impl AsRef<Path>) -> Result<()> {
        let (place, layout) = self.place(path.as_ref())?;
        let folder = Folder::find(&place, &self.to_json()?)?.ok_or_else(|| place.unprepared())?;
        if !folder.is_sealed()? {
            let missing = self.missing_in(&folder)?;
            if !missing.is_empty() {
                let total = self.parts.len();
                return Err(Error::PartsMissing { missing, total });
            }
            let files = self.open_files(&place, &folder, &layout)?;
            let write = |write| write_table(&files, write, self.options.image.sparse_size);
            layout.finish.tables.iter().try_for_each(write)?;
            for (file, size) in files.iter().zip(&layout.finish.sizes) {
                file.set_size(*size)?;
            }
            self.sync(&files)?;
            layout.finish.seal.iter().try_for_each(write)?;
            self.sync(&files)?;
            folder.seal()?;
        }
        folder.name_files(&place)?;
        folder.remove()
    }

    fn sync(&self, files: &[Arc<dyn BlockTarget>]) -> Result<()> {
        match self.options.job.sync {
            true => files.iter().try_for_each(|file| file.sync()),
            false => Ok(()),
        }
    }

    fn missing_in(&self, folder: &Folder) -> Result<Vec<usize>> {
        let mut missing = Vec::new();
        for index in 0..self.parts.len() {
            if !folder.is_done(index)? {
                missing.push(index);
            }
        }
        Ok(missing)
    }

    fn check_source(&self, source: &dyn Image, part: &Part) -> Result<()> {
        let facts = &self.source;
        let format = source.format().into_str();
        if format != facts.format || source.size() != facts.virtual_size {
            return Err(Error::invalid(format!(
                "the source is a {format} image of {} bytes, and the plan is for a {} image of {}",
                source.size(),
                ImageName::from(facts.format.as_str()).escaped(),
                facts.virtual_size
            )));
        }
        if sample(&source, part)? != part.sample {
            return Err(Error::invalid(format!(
                "the source was changed since the plan was made: bytes {} to {} are not what they were",
                part.start,
                part.end()
            )));
        }
        Ok(())
    }

    fn place(&self, path: &Path) -> Result<(Place, Layout)> {
        let layout = Layout::of(&self.options, self.source.virtual_size, path.file_name())?;
        let outputs = layout.shape.files.iter();
        let paths: Vec<PathBuf> = outputs
            .map(|file| output_path(path, file))
            .collect::<Result<_>>()?;
        let is_device = is_block_device(path);
        if is_device && paths.len() != 1 {
            return Err(Error::invalid(
                "an image of several files cannot be written to a device",
            ));
        }
        let place = Place::new(path, paths, is_device, self.folder.as_deref())?;
        Ok((place, layout))
    }

    /// The files to write to, which have the sizes that were given to them.
    fn open_files(
        &self,
        place: &Place,
        folder: &Folder,
        layout: &Layout,
    ) -> Result<Vec<Arc<dyn BlockTarget>>> {
        let mut files: Vec<Arc<dyn BlockTarget>> = Vec::new();
        for (index, path) in place.paths.iter().enumerate() {
            if place.is_device {
                let device = FileStorage::open_writable(path)?;
                layout.check_room(path, device.size())?;
                files.push(Arc::new(device));
                continue;
            }
            let file = FileStorage::open_writable(folder.file(index))?;
            let size = layout.finish.sizes.get(index).copied();
            if file.is_block_device() || Some(file.size()) != size {
                return Err(Error::invalid(format!(
                    "{} is not as it was prepared: it has {} bytes",
                    quoted_path(&folder.file(index)),
                    file.size()
                )));
            }
            files.push(Arc::new(file));
        }
        Ok(files)
    }
}

impl FileFacts {
    fn of(path: &Path) -> Result<Self> {
        let examine = |e| Error::io_path("examine", path, e);
        let metadata = std::fs::metadata(path).map_err(examine)?;
        let modified = metadata.modified().map_err(examine)?;
        // What is older than 1970 was not modified in earnest.
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(FileFacts {
            size: metadata.len(),
            modified_seconds: since.as_secs(),
            modified_nanoseconds: since.subsec_nanos(),
        })
    }
}

/// Places of a part that are sampled, and bytes of each.
const SAMPLES: u64 = 16;
const SAMPLE: u64 = 4096;

/// A digest of the bytes at some places of a part, the first and the last among them: to tell a wrong
/// disk, at little cost.
fn sample(source: &dyn BlockSource, part: &Part) -> Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Md5)?;
    let mut bytes = vec![0; usize::try_from(SAMPLE).unwrap_or(0)];
    let window = Window::new(source, part.start, part.len);
    let last = part.len.saturating_sub(SAMPLE);
    for place in 0..SAMPLES {
        let at = last / (SAMPLES - 1) * place;
        let at = if place == SAMPLES - 1 { last } else { at };
        let n = window.read_at(&mut bytes, at)?;
        hasher.update(bytes.get(..n).unwrap_or_default());
    }
    Ok(hasher.finish())
}
