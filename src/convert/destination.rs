//! Destinations: a new file, an existing one, or storage of the caller.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::convert::claim::Ground;
use crate::convert::engine::{self, Job};
use crate::convert::input::Input;
use crate::convert::journal::Journal;
use crate::convert::lane::{Remake, Target};
use crate::convert::options::{ConvertOptions, JobOptions, Summary};
use crate::digest::{ContentDigest, ContentHasher};
use crate::error::{Error, Result};
use crate::image::{ImageWriter, OutputFile, WriteShape};
use crate::name::{ImageName, quoted_path};
use crate::progress::Report;
use crate::source::{BlockSource, BlockSourceExt};
use crate::storage::{self, FileStorage, PendingFile, identity_of, there};
use crate::target::BlockTarget;

/// The size of a disk whose size is not known yet, for a writer that does not ask.
const ANY_SIZE: u64 = 1 << 20;

/// Returns true if an image can be written without the size of its disk: everything has its place, and nothing
/// comes first.
fn is_remade(shape: &WriteShape) -> bool {
    shape.settled && shape.forward && shape.files.len() == 1 && shape.preallocation.is_empty()
}

impl ConvertOptions {
    /// Converts `source` into a new file at `path`, which is whole in the end or absent. What was
    /// there before is replaced only then, in one step. A block device at `path` is written in place.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that the format does not have, and if `path` is one of the
    /// files that are read; [`Error::Io`], [`Error::Cancelled`], and what reading the source fails
    /// with. Nothing is left behind then.
    pub fn convert_to_path<'a>(
        &self,
        source: impl Into<Input<'a>>,
        path: impl AsRef<Path>,
    ) -> Result<Summary> {
        let source = source.into();
        self.run(source, self.at_path(source, path.as_ref(), true)?)
    }

    /// Converts `source` into the file or block device at `path`, which exists and is large enough.
    /// Its size stays, and so does what lies beyond the disk. It is written in place: a failure
    /// leaves it half written. This is `qemu-img convert -n`.
    ///
    /// # Errors
    /// As [`convert_to_path`](Self::convert_to_path), and [`Error::InvalidInput`] for a format whose
    /// files are more than the guest's bytes and if the disk is larger than the target.
    pub fn convert_into_existing<'a>(
        &self,
        source: impl Into<Input<'a>>,
        path: impl AsRef<Path>,
    ) -> Result<Summary> {
        let (source, path) = (source.into(), path.as_ref());
        let writer = self.writer(source, path.file_name().map(Path::new))?;
        if !writer.shape().plain {
            return Err(Error::invalid(format!(
                "an existing {} image cannot be written into; only a raw disk can",
                self.image.format
            )));
        }
        self.refuse_source(source, path)?;
        self.run(source, self.in_place(source, writer, path, true)?)
    }

    /// Converts `source` into storage of the caller's: one target for each file that the format
    /// makes, the image first. The header, where there is one, is written last, after a
    /// [`sync`](BlockTarget::sync).
    ///
    /// # Errors
    /// As [`convert_to_path`](Self::convert_to_path); what was written until then stays.
    pub fn convert_to_targets<'a>(
        &self,
        source: impl Into<Input<'a>>,
        targets: &[Arc<dyn BlockTarget>],
    ) -> Result<Summary> {
        let source = source.into();
        self.run(source, self.at_targets(source, targets)?)
    }

    /// Prepares to write a new file at `path`, or the block device that is there. Alone, it is the
    /// only target.
    pub(super) fn at_path(
        &self,
        source: Input<'_>,
        path: &Path,
        alone: bool,
    ) -> Result<Destination<'static>> {
        let writer = self.writer(source, path.file_name().map(Path::new))?;
        let paths: Vec<PathBuf> = writer
            .shape()
            .files
            .iter()
            .map(|file| output_path(path, file))
            .collect::<Result<_>>()?;
        for path in &paths {
            self.refuse_source(source, path)?;
        }
        if is_block_device(path) {
            return self.in_place(source, writer, path, false);
        }
        refuse_one_for_two(&paths)?;
        self.check_verifiable()?;
        self.check_read_once(source)?;
        let journal = match self.job.resumable {
            None => None,
            Some(every) => Some(self.journal(source, &writer.shape(), path, every)?),
        };
        let begun = journal.as_ref().map(|journal| journal.begun);
        let pending: Vec<PendingFile> = paths
            .iter()
            .map(|path| match begun {
                None => PendingFile::create(path),
                Some(begun) => PendingFile::go_on(path, begun),
            })
            .collect::<Result<_>>()?;
        let files = pending
            .iter()
            .map(|file| -> Arc<dyn BlockTarget> { file.storage() })
            .collect();
        // The files get their names once they are whole: until then no order has to be kept.
        let mut target = self.target(source, writer, files, alone);
        target.sync = false;
        target.journal = journal;
        Ok(Destination {
            target,
            pending,
            paths,
            sync: self.job.sync,
        })
    }

    /// Prepares to write storage of the caller's.
    pub(super) fn at_targets(
        &self,
        source: Input<'_>,
        targets: &[Arc<dyn BlockTarget>],
    ) -> Result<Destination<'static>> {
        let writer = self.writer(source, None)?;
        let files = writer.shape().files.len();
        if files != targets.len() {
            return Err(Error::invalid(format!(
                "the image consists of {files} files, and there are {} targets",
                targets.len()
            )));
        }
        let target = self.target(source, writer, targets.to_vec(), false);
        Ok(Destination::of(target))
    }

    pub(super) fn writer(
        &self,
        source: Input<'_>,
        file_name: Option<&Path>,
    ) -> Result<Box<dyn ImageWriter>> {
        let create = |size| {
            let mut create = self.image.create.clone();
            create.virtual_size = size;
            create.file_name = file_name.map(ImageName::from).or(create.file_name);
            crate::formats::Formats::all()
                .named(&self.image.format)?
                .create(&create)
        };
        match source.arriving.filter(|arriving| arriving.is_endless()) {
            None => create(source.disk.size()),
            Some(arriving) => match create(ANY_SIZE) {
                Ok(writer) if is_remade(&writer.shape()) => Ok(writer),
                _ if arriving.spill()? => create(source.disk.size()),
                Err(error) => Err(error),
                Ok(_) => Err(Error::invalid(format!(
                    "an image of format {} begins with the size of the disk, which is known only when \
                     the stream ends; say how large the disk is, or allow a spill file",
                    ImageName::from(self.image.format.as_str()).escaped()
                ))),
            },
        }
    }

    /// Fails if writing to `path` would destroy a file that is read.
    pub(super) fn refuse_source(&self, source: Input<'_>, path: &Path) -> Result<()> {
        let found = there(std::fs::metadata(path), path)?;
        let Some(identity) = found.as_ref().and_then(identity_of) else {
            return Ok(());
        };
        let reads = |s: &dyn BlockSource| s.uses_file(identity);
        if reads(source.disk)
            || self
                .image
                .overlay
                .as_ref()
                .is_some_and(|image| image.uses_file(identity))
        {
            let name = quoted_path(path);
            return Err(Error::invalid(format!(
                "{name} is read by the conversion: it cannot be its target"
            )));
        }
        Ok(())
    }

    fn in_place(
        &self,
        source: Input<'_>,
        writer: Box<dyn ImageWriter>,
        path: &Path,
        existing: bool,
    ) -> Result<Destination<'static>> {
        let shape = writer.shape();
        let mut storage = FileStorage::open_writable(path)?;
        let endless = source.is_endless();
        if shape.plain && storage.size() < shape.virtual_size && !endless {
            return Err(Error::invalid(format!(
                "{} is too small: it has {} bytes and the disk has {}",
                quoted_path(path),
                storage.size(),
                shape.virtual_size
            )));
        }
        if self.image.target_is_zero {
            storage = storage.assume_zero();
        }
        if shape.files.len() != 1 {
            return Err(Error::invalid(
                "an image of several files cannot be written to a device",
            ));
        }
        let mut target = self.target(source, writer, vec![Arc::new(storage)], true);
        target.keep_size = existing;
        Ok(Destination::of(target))
    }

    pub(super) fn target<'a>(
        &self,
        source: Input<'_>,
        writer: Box<dyn ImageWriter>,
        files: Vec<Arc<dyn BlockTarget + 'a>>,
        alone: bool,
    ) -> Target<'a> {
        let mut shape = writer.shape();
        let endless = source.is_endless();
        let remake = endless.then(|| {
            shape.virtual_size = source.disk.size();
            self.remake()
        });
        Target {
            ground: self.ground(source, &shape, &files, alone),
            shape,
            remake,
            writer,
            files,
            sparse_size: self.image.sparse_size,
            limits: self.job.limits.clone(),
            sync: self.job.sync,
            write_behind: self.job.sync,
            whole: false,
            keep_size: false,
            journal: None,
            report: Report::new(self.job.work.progress.clone()),
        }
    }

    /// Makes a writer when the size of the disk is known.
    fn remake(&self) -> Remake {
        let (format, create) = (self.image.format.clone(), self.image.create.clone());
        Box::new(move |size| {
            let mut create = create.clone();
            create.virtual_size = size;
            crate::formats::Formats::all()
                .named(&format)?
                .create(&create)
        })
    }

    /// Converts into one destination.
    pub(super) fn run(&self, source: Input<'_>, destination: Destination<'_>) -> Result<Summary> {
        let Destination {
            target,
            pending,
            sync,
            ..
        } = destination;
        let image = pending.first().map(PendingFile::storage);
        let shape = target.shape.clone();
        let job = self.job.engine_job(source, vec![target])?;
        let (mut outcome, file_digests) = self.job.with_file_digests(|| engine::run(job))?;
        check_content(self.job.expected.as_ref(), outcome.content.as_ref())?;
        let mut summary = match outcome.targets.pop() {
            Some(result) => result?,
            None => Summary::default(),
        };
        if self.image.verify {
            self.verify_written(source.disk, &shape, &pending)?;
        }
        summary.content = outcome.content;
        summary.file_digests = file_digests;
        summary.file_digests.extend(outcome.source_digests);
        if let Some(image) = image {
            summary.target_digests = self.digests_of_target(&*image)?;
        }
        commit(pending, sync)?;
        outcome.journals.into_iter().try_for_each(Journal::remove)?;
        Ok(summary)
    }

    /// The content of the target where nothing is written.
    pub(super) fn ground(
        &self,
        source: Input<'_>,
        shape: &WriteShape,
        targets: &[Arc<dyn BlockTarget + '_>],
        alone: bool,
    ) -> Ground {
        if let Some(image) = &self.image.overlay {
            let depth = image
                .identity()
                .and_then(|file| source.disk.depth_of(file, image.format()));
            // Beside other targets, all is read, and compared.
            return match depth.filter(|depth| *depth > 0 && alone) {
                Some(depth) => Ground::Layer(depth),
                None => Ground::Image(Arc::clone(image)),
            };
        }
        let zero = targets.iter().all(|target| target.reads_as_zero());
        let plain_zero = !shape.plain || zero;
        if plain_zero && !shape.record_zeroes && self.image.sparse_size > 0 {
            Ground::Zero
        } else {
            Ground::Unknown
        }
    }
}

impl JobOptions {
    /// The work of the engine for these targets.
    pub(super) fn engine_job<'a>(
        &self,
        source: Input<'a>,
        targets: Vec<Target<'a>>,
    ) -> Result<Job<'a>> {
        let content = match self.content {
            Some(algorithm) => Some(ContentHasher::new(algorithm, source.disk.size())?),
            None => None,
        };
        // What an overlay does not record is not read.
        let partly = |target: &Target<'_>| matches!(target.ground, Ground::Layer(_));
        if content.is_some() && targets.iter().any(partly) {
            return Err(Error::invalid(
                "the digest of a disk needs all of it, and an overlay on a layer of its own source \
                 is made without reading all; make the digest apart from it",
            ));
        }
        Ok(Job {
            source,
            targets,
            threads: self.work.threads(),
            memory: self.work.memory,
            cancel: self.work.cancel.clone(),
            allow_failure: false,
            content,
            check_packed: self.check_packed,
        })
    }
}

/// A target, and the files that get their names when it is whole.
pub(super) struct Destination<'a> {
    pub(super) target: Target<'a>,
    pub(super) pending: Vec<PendingFile>,
    /// The names that these files get.
    pub(super) paths: Vec<PathBuf>,
    pub(super) sync: bool,
}

impl<'a> Destination<'a> {
    pub(super) fn of(target: Target<'a>) -> Self {
        Destination {
            target,
            pending: Vec::new(),
            paths: Vec::new(),
            sync: false,
        }
    }
}

/// Gives the files of an image their names.
pub(super) fn commit(pending: Vec<PendingFile>, sync: bool) -> Result<()> {
    // The image comes last: where it is, what it refers to is there.
    for file in pending.into_iter().rev() {
        file.commit(sync)?;
    }
    Ok(())
}

/// Fails if the content's digest is another than was expected.
pub(super) fn check_content(
    expected: Option<&ContentDigest>,
    found: Option<&ContentDigest>,
) -> Result<()> {
    match (expected, found) {
        (Some(expected), Some(found)) if expected != found => Err(Error::DigestMismatch {
            expected: expected.to_string(),
            found: found.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Fails if two files would be one.
pub(super) fn refuse_one_for_two(paths: &[PathBuf]) -> Result<()> {
    let settled = |path: &PathBuf| {
        let whole = std::fs::canonicalize(path);
        whole.or_else(|_| {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let folder = std::fs::canonicalize(folder.unwrap_or(Path::new(".")))?;
            Ok::<_, std::io::Error>(folder.join(path.file_name().unwrap_or_default()))
        })
    };
    let mut seen = std::collections::HashSet::new();
    for path in paths {
        // A missing folder is reported when the file is created.
        if let Ok(settled) = settled(path) {
            if !seen.insert(settled) {
                let name = quoted_path(path);
                return Err(Error::invalid(format!(
                    "{name} would have to be two files of the image"
                )));
            }
        }
    }
    Ok(())
}

pub(super) fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| storage::is_block_device(&metadata))
}

/// Path of a file of the image whose first file is at `image`.
pub(super) fn output_path(image: &Path, file: &OutputFile) -> Result<PathBuf> {
    match file {
        OutputFile::Image => Ok(image.to_owned()),
        OutputFile::Named(name) => {
            let name = name.to_path().ok_or_else(|| {
                Error::invalid(format!("no file can have the name {}", name.quoted()))
            })?;
            Ok(image.parent().unwrap_or(Path::new("")).join(name))
        }
    }
}
