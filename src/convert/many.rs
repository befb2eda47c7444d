//! Many targets in one read.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::convert::destination::{Destination, check_content, commit, refuse_one_for_two};
use crate::convert::engine;
use crate::convert::input::Input;
use crate::convert::options::{ConvertOptions, JobOptions, Summary, job_setters};
use crate::convert::spec::ImageSpec;
use crate::digest::{Algorithm, ContentDigest, Digest};
use crate::error::{Error, Result};
use crate::progress::{Progress, ProgressFn};
use crate::target::BlockTarget;

/// A conversion of one source into any number of targets, which is read once.
///
/// ```no_run
/// use blockform::OpenOptions;
/// use blockform::convert::{Conversion, ImageSpec};
/// use blockform::digest::Algorithm;
///
/// let source = OpenOptions::new().open_path("disk.qcow2")?;
/// let outcome = Conversion::of(&source)
///     .to_path("raw", "disk.raw")
///     .to_path(ImageSpec::new("vmdk").option("subformat", "streamOptimized"), "disk.vmdk")
///     .content_digest(Algorithm::Blake3)
///     .run()?;
/// # Ok::<(), blockform::Error>(())
/// ```
///
/// Without any target it is a way to read a disk and make its [digest](Self::content_digest).
pub struct Conversion<'a> {
    source: Input<'a>,
    targets: Vec<(ImageSpec, Place)>,
    job: JobOptions,
    progress: Option<TargetProgressFn>,
    allow_failure: bool,
}

/// Called with the number of a target and its progress.
type TargetProgressFn = Arc<dyn Fn(usize, Progress) -> ControlFlow<()> + Send + Sync>;

impl fmt::Debug for Conversion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversion")
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Place {
    Path(PathBuf),
    Targets(Vec<Arc<dyn BlockTarget>>),
}

/// Result of a conversion into many targets.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// One for each target, in the order in which they were named.
    pub targets: Vec<Result<Summary>>,
    /// The digest of the disk's content, if one was asked for.
    pub content: Option<ContentDigest>,
    /// The digests of files that were asked for, in that order.
    pub file_digests: Vec<Digest>,
}

impl<'a> Conversion<'a> {
    /// A conversion of `source` into nothing yet.
    pub fn of(source: impl Into<Input<'a>>) -> Self {
        Conversion {
            source: source.into(),
            targets: Vec::new(),
            job: JobOptions::default(),
            progress: None,
            allow_failure: false,
        }
    }

    /// Adds a new file at `path`, as [`ConvertOptions::convert_to_path`] makes it.
    #[must_use]
    pub fn to_path(mut self, image: impl Into<ImageSpec>, path: impl AsRef<Path>) -> Self {
        let path = Place::Path(path.as_ref().to_owned());
        self.targets.push((image.into(), path));
        self
    }

    /// Adds storage of the caller's, as [`ConvertOptions::convert_to_targets`] takes it.
    #[must_use]
    pub fn to_targets(
        mut self,
        image: impl Into<ImageSpec>,
        files: &[Arc<dyn BlockTarget>],
    ) -> Self {
        let place = Place::Targets(files.to_vec());
        self.targets.push((image.into(), place));
        self
    }

    /// Continues the other targets when one fails. By default all are whole in the end, or none is there.
    #[must_use]
    pub fn allow_failure(mut self, allow: bool) -> Self {
        self.allow_failure = allow;
        self
    }

    job_setters!(|self| self.job);

    /// Sets a function that is called now and then, from any thread, with the number of a target, in the order
    /// in which they were added, and its progress. [`ControlFlow::Break`] stops the conversion of all targets.
    #[must_use]
    pub fn progress(
        mut self,
        report: impl Fn(usize, Progress) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// An error of the source or of the options of any target, [`Error::Cancelled`], and
    /// [`Error::DigestMismatch`]; an error of a target unless failure is allowed: then it is in
    /// [`Outcome::targets`]. Nothing is left of a target that failed.
    pub fn run(self) -> Result<Outcome> {
        let alone = self.targets.len() == 1;
        let (mut destinations, mut all_options) = (Vec::new(), Vec::new());
        for (number, (image, place)) in self.targets.into_iter().enumerate() {
            let mut job = self.job.clone();
            job.work.progress = self
                .progress
                .clone()
                .map(|report| -> ProgressFn { Arc::new(move |progress| report(number, progress)) });
            let options = ConvertOptions { image, job };
            destinations.push(match place {
                Place::Path(path) => options.at_path(self.source, &path, alone)?,
                Place::Targets(files) => options.at_targets(self.source, &files)?,
            });
            all_options.push(options);
        }
        let paths: Vec<PathBuf> = destinations.iter().flat_map(|d| d.paths.clone()).collect();
        refuse_one_for_two(&paths)?;
        let (targets, files): (Vec<_>, Vec<_>) = destinations
            .into_iter()
            .map(|destination: Destination<'_>| {
                let shape = destination.target.shape.clone();
                (
                    destination.target,
                    (shape, destination.pending, destination.sync),
                )
            })
            .unzip();
        let mut job = self.job.engine_job(self.source, targets)?;
        job.allow_failure = self.allow_failure;
        let (outcome, mut file_digests) = self.job.with_file_digests(|| engine::run(job))?;
        file_digests.extend(outcome.source_digests);
        check_content(self.job.expected.as_ref(), outcome.content.as_ref())?;
        let mut results = Vec::new();
        let targets = outcome.targets.into_iter().zip(files).zip(all_options);
        for ((result, (shape, pending, sync)), options) in targets {
            let result = result.and_then(|mut summary| {
                summary.content.clone_from(&outcome.content);
                if options.image.verify {
                    options.verify_written(self.source.disk, &shape, &pending)?;
                }
                if let Some(image) = pending.first() {
                    summary.target_digests = options.digests_of_target(&*image.storage())?;
                }
                commit(pending, sync)?;
                Ok(summary)
            });
            match result {
                // What has its name already stays: a name is all that was missing of the others.
                Err(error) if !self.allow_failure => return Err(error),
                result => results.push(result),
            }
        }
        Ok(Outcome {
            targets: results,
            content: outcome.content,
            file_digests,
        })
    }
}

/// The digest of a disk's content, computed on every core: see [`ContentHasher`](crate::digest::ContentHasher).
///
/// # Errors
/// Errors of reading, and as [`Hasher::new`](crate::digest::Hasher::new).
pub fn content_digest<'a>(
    source: impl Into<Input<'a>>,
    algorithm: Algorithm,
) -> Result<ContentDigest> {
    let outcome = Conversion::of(source).content_digest(algorithm).run()?;
    outcome
        .content
        .ok_or_else(|| Error::invalid("no digest was made"))
}
