//! Many targets in one read.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::convert::destination::{Destination, check_content, commit, refuse_one_for_two};
use crate::convert::engine;
use crate::convert::input::Input;
use crate::convert::options::{ConvertOptions, Summary};
use crate::digest::{Algorithm, ContentDigest, Digest};
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::source::BlockSource;
use crate::target::BlockTarget;

/// A conversion of one source into any number of targets, which is read once.
///
/// ```no_run
/// use blockform::OpenOptions;
/// use blockform::convert::{Conversion, ConvertOptions};
/// use blockform::digest::Algorithm;
///
/// let source = OpenOptions::new().open_path("disk.qcow2")?;
/// let outcome = Conversion::of(&source)
///     .to_path(ConvertOptions::to("raw"), "disk.raw")
///     .to_path(ConvertOptions::to("vmdk").option("subformat", "streamOptimized"), "disk.vmdk")
///     .content_digest(Algorithm::Blake3)
///     .run()?;
/// # Ok::<(), blockform::Error>(())
/// ```
///
/// Without any target it is a way to read a disk and make its [digest](Self::content_digest).
///
/// Of each target's [`ConvertOptions`] those count that are about it alone: its format and options, its
/// overlay, the size of holes, the sync, and the progress, which it is told of on its own. The rest is
/// said of the conversion as a whole.
#[derive(Debug)]
#[must_use]
pub struct Conversion<'a> {
    source: Input<'a>,
    targets: Vec<(ConvertOptions, Place)>,
    whole: ConvertOptions,
    allow_failure: bool,
}

#[derive(Debug)]
enum Place {
    Path(PathBuf),
    Targets(Vec<Arc<dyn BlockTarget>>),
}

/// What became of a conversion into many targets.
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
            whole: ConvertOptions::to("raw"),
            allow_failure: false,
        }
    }

    /// Adds a new file at `path`, as [`ConvertOptions::convert_to_path`] makes it.
    pub fn to_path(mut self, options: ConvertOptions, path: impl AsRef<Path>) -> Self {
        let path = Place::Path(path.as_ref().to_owned());
        self.targets.push((options, path));
        self
    }

    /// Adds storage of the caller's, as [`ConvertOptions::convert_to_targets`] takes it.
    pub fn to_targets(mut self, options: ConvertOptions, files: &[Arc<dyn BlockTarget>]) -> Self {
        self.targets.push((options, Place::Targets(files.to_vec())));
        self
    }

    /// Whether the other targets go on when one fails. They do not unless told otherwise: then all
    /// are whole in the end, or none is there.
    pub fn allow_failure(mut self, allow: bool) -> Self {
        self.allow_failure = allow;
        self
    }

    /// As [`ConvertOptions::threads`].
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.whole = self.whole.threads(threads);
        self
    }

    /// As [`ConvertOptions::memory`], for all targets together.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.whole = self.whole.memory(bytes);
        self
    }

    /// As [`ConvertOptions::cancel`]. A target whose progress breaks stops the whole.
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.whole = self.whole.cancel(cancel);
        self
    }

    /// Makes the digest of the disk's content on the way: [`Outcome::content`].
    pub fn content_digest(mut self, algorithm: Algorithm) -> Self {
        self.whole = self.whole.content_digest(algorithm);
        self
    }

    /// As [`ConvertOptions::expect_content`]: if the digest is another, no target is left.
    pub fn expect_content(mut self, digest: ContentDigest) -> Self {
        self.whole = self.whole.expect_content(digest);
        self
    }

    /// As [`ConvertOptions::file_digest`].
    pub fn file_digest(mut self, file: Arc<dyn BlockSource>, algorithm: Algorithm) -> Self {
        self.whole = self.whole.file_digest(file, algorithm);
        self
    }

    /// As [`ConvertOptions::expect_file`].
    pub fn expect_file(mut self, file: Arc<dyn BlockSource>, digest: Digest) -> Self {
        self.whole = self.whole.expect_file(file, digest);
        self
    }

    /// As [`ConvertOptions::check_packed`].
    pub fn check_packed(mut self, check: bool) -> Self {
        self.whole = self.whole.check_packed(check);
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// What ends all of it: an error of the source, the caller's stop, another digest than expected,
    /// and what is wrong with the options of any target; an error of a target unless failure is
    /// allowed, which then is in [`Outcome::targets`]. Of a target that failed, and of all if all
    /// fail, nothing is left behind.
    pub fn run(self) -> Result<Outcome> {
        let alone = self.targets.len() == 1;
        let (mut destinations, mut all_options) = (Vec::new(), Vec::new());
        for (options, place) in self.targets {
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
        let mut job = self.whole.job(self.source, targets)?;
        job.allow_failure = self.allow_failure;
        let (outcome, mut file_digests) = self.whole.with_file_digests(|| engine::run(job))?;
        file_digests.extend(outcome.source_digests);
        check_content(self.whole.expected.as_ref(), outcome.content.as_ref())?;
        let mut results = Vec::new();
        let targets = outcome.targets.into_iter().zip(files).zip(all_options);
        for ((result, (shape, pending, sync)), options) in targets {
            let result = result.and_then(|mut summary| {
                summary.content.clone_from(&outcome.content);
                if options.verify {
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

/// The digest of what a disk holds, made on every core: see [`ContentHasher`](crate::digest::ContentHasher).
///
/// # Errors
/// What reading fails with, and as [`Hasher::new`](crate::digest::Hasher::new).
pub fn content_digest<'a>(
    source: impl Into<Input<'a>>,
    algorithm: Algorithm,
) -> Result<ContentDigest> {
    let outcome = Conversion::of(source).content_digest(algorithm).run()?;
    outcome
        .content
        .ok_or_else(|| Error::invalid("no digest was made"))
}
