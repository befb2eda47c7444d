//! Where the result goes: a new file, an existing one, or storage of the caller's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::convert::claim::Ground;
use crate::convert::engine::{self, Job};
use crate::convert::options::{ConvertOptions, Summary};
use crate::error::{Error, Result, quoted_path};
use crate::image::{ImageWriter, OutputFile, WriteShape};
use crate::name::ImageName;
use crate::source::BlockSource;
use crate::storage::{FileStorage, PendingFile, identity_of};
use crate::target::BlockTarget;

impl ConvertOptions {
    /// Converts `source` into a new file at `path`, which is whole in the end or absent. What was
    /// there before is replaced only then, in one step. A block device at `path` is written in place.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that the format does not have, and if `path` is one of the
    /// files that are read; [`Error::Io`], [`Error::Cancelled`], and what reading the source fails
    /// with. Nothing is left behind then.
    pub fn convert_to_path(
        &self,
        source: &dyn BlockSource,
        path: impl AsRef<Path>,
    ) -> Result<Summary> {
        let path = path.as_ref();
        let writer = self.writer(source, path.file_name().map(Path::new))?;
        let shape = writer.shape();
        let paths: Vec<PathBuf> = shape
            .files
            .iter()
            .map(|file| output_path(path, file))
            .collect::<Result<_>>()?;
        for path in &paths {
            self.refuse_source(source, path)?;
        }
        if is_block_device(path) {
            return self.write_in_place(source, writer, shape, path, false);
        }
        refuse_one_for_two(&paths)?;
        let pending: Vec<PendingFile> = paths
            .iter()
            .map(PendingFile::create)
            .collect::<Result<_>>()?;
        let targets: Vec<Arc<dyn BlockTarget>> = pending
            .iter()
            .map(|file| -> Arc<dyn BlockTarget> { file.storage() })
            .collect();
        // The files get their names once they are whole: until then no order has to be kept.
        let summary = self.run(source, writer, shape, &targets, false, false)?;
        drop(targets);
        // The image comes last: where it is, what it refers to is there.
        for file in pending.into_iter().rev() {
            file.commit(self.sync)?;
        }
        Ok(summary)
    }

    /// Converts `source` into the file or block device at `path`, which exists and is large enough.
    /// Its size stays, and so does what lies beyond the disk. It is written in place: a failure
    /// leaves it half written. This is `qemu-img convert -n`.
    ///
    /// # Errors
    /// As [`convert_to_path`](Self::convert_to_path), and [`Error::InvalidInput`] for a format whose
    /// files are more than the guest's bytes and if the disk is larger than the target.
    pub fn convert_into_existing(
        &self,
        source: &dyn BlockSource,
        path: impl AsRef<Path>,
    ) -> Result<Summary> {
        let path = path.as_ref();
        let writer = self.writer(source, path.file_name().map(Path::new))?;
        let shape = writer.shape();
        if !shape.plain {
            return Err(Error::invalid(format!(
                "an existing {} image cannot be written into; only a raw disk can",
                self.format
            )));
        }
        self.refuse_source(source, path)?;
        self.write_in_place(source, writer, shape, path, true)
    }

    /// Converts `source` into storage of the caller's: one target for each file that the format
    /// makes, the image first. The header, where there is one, is written last, after a
    /// [`sync`](BlockTarget::sync).
    ///
    /// # Errors
    /// As [`convert_to_path`](Self::convert_to_path); what was written until then stays.
    pub fn convert_to_targets(
        &self,
        source: &dyn BlockSource,
        targets: &[Arc<dyn BlockTarget>],
    ) -> Result<Summary> {
        let writer = self.writer(source, None)?;
        let shape = writer.shape();
        if shape.files.len() != targets.len() {
            return Err(Error::invalid(format!(
                "the image consists of {} files, and there are {} targets",
                shape.files.len(),
                targets.len()
            )));
        }
        self.run(source, writer, shape, targets, self.sync, false)
    }

    fn writer(
        &self,
        source: &dyn BlockSource,
        file_name: Option<&Path>,
    ) -> Result<Box<dyn ImageWriter>> {
        let mut create = self.create.clone();
        create.virtual_size = source.size();
        create.file_name = file_name.map(ImageName::from).or(create.file_name);
        crate::open::named(&self.format)?.create(&create)
    }

    /// Fails if writing to `path` would destroy a file that is read.
    fn refuse_source(&self, source: &dyn BlockSource, path: &Path) -> Result<()> {
        let Some(identity) = std::fs::metadata(path).ok().as_ref().and_then(identity_of) else {
            return Ok(());
        };
        let reads = |s: &dyn BlockSource| s.uses_file(identity);
        if reads(source)
            || self
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

    fn write_in_place(
        &self,
        source: &dyn BlockSource,
        writer: Box<dyn ImageWriter>,
        shape: WriteShape,
        path: &Path,
        existing: bool,
    ) -> Result<Summary> {
        let mut storage = FileStorage::open_writable(path)?;
        if shape.plain && storage.size() < shape.virtual_size {
            return Err(Error::invalid(format!(
                "{} is too small: it has {} bytes and the disk has {}",
                quoted_path(path),
                storage.size(),
                shape.virtual_size
            )));
        }
        if self.target_is_zero {
            storage = storage.assume_zero();
        }
        let targets: [Arc<dyn BlockTarget>; 1] = [Arc::new(storage)];
        if shape.files.len() != targets.len() {
            return Err(Error::invalid(
                "an image of several files cannot be written to a device",
            ));
        }
        self.run(source, writer, shape, &targets, self.sync, existing)
    }

    fn run(
        &self,
        source: &dyn BlockSource,
        writer: Box<dyn ImageWriter>,
        shape: WriteShape,
        targets: &[Arc<dyn BlockTarget>],
        sync: bool,
        keep_size: bool,
    ) -> Result<Summary> {
        let threads = match self.threads {
            Some(threads) => threads.get(),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let ground = self.ground(source, &shape, targets);
        engine::run(Job {
            source,
            writer,
            shape,
            targets,
            ground,
            threads,
            memory: self.memory,
            sparse_size: self.sparse_size,
            sync,
            keep_size,
            cancel: self.cancel.clone(),
            progress: self.progress.clone(),
        })
    }

    /// What the target shows where nothing is written.
    fn ground(
        &self,
        source: &dyn BlockSource,
        shape: &WriteShape,
        targets: &[Arc<dyn BlockTarget>],
    ) -> Ground {
        if let Some(image) = &self.overlay {
            let depth = image
                .identity()
                .and_then(|file| source.depth_of(file, image.format()));
            return match depth.filter(|depth| *depth > 0) {
                Some(depth) => Ground::Layer(depth),
                None => Ground::Image(Arc::clone(image)),
            };
        }
        let zero = targets.iter().all(|target| target.reads_as_zero());
        let plain_zero = !shape.plain || zero;
        if plain_zero && !shape.record_zeroes && self.sparse_size > 0 {
            Ground::Zero
        } else {
            Ground::Unknown
        }
    }
}

/// Fails if two files of an image would be one.
fn refuse_one_for_two(paths: &[PathBuf]) -> Result<()> {
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
        // A folder that is not there is told of when the file is created.
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

fn is_block_device(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Where a file of the image goes whose first file goes to `image`.
fn output_path(image: &Path, file: &OutputFile) -> Result<PathBuf> {
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
