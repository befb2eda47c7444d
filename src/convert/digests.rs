//! Digests of whole files beside a conversion.

use crate::convert::options::{ConvertOptions, JobOptions};
use crate::digest::{Digest, Hasher, digest_of};
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::source::BlockSource;

impl JobOptions {
    /// Runs `work`, and digests the files that were asked for meanwhile. If either fails, the other is
    /// stopped as soon as it can be.
    pub(super) fn with_file_digests<T>(
        &self,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Vec<Digest>)> {
        if self.file_digests.is_empty() {
            return Ok((work()?, Vec::new()));
        }
        let over = Cancel::new();
        let stopped = || over.is_cancelled() || self.work.cancel.is_cancelled();
        std::thread::scope(|scope| {
            let digests: Vec<_> = self
                .file_digests
                .iter()
                .map(|(file, algorithm, _)| {
                    scope.spawn(move || digest_of(&**file, Hasher::new(*algorithm)?, &stopped))
                })
                .collect();
            let done = work();
            if done.is_err() {
                over.cancel();
            }
            let mut found = Vec::new();
            for (digest, (_, _, expected)) in digests.into_iter().zip(&self.file_digests) {
                let digest = match digest.join() {
                    Ok(digest) => digest,
                    Err(panic) => std::panic::resume_unwind(panic),
                };
                if done.is_err() {
                    continue;
                }
                let digest = digest.inspect_err(|_| over.cancel())?;
                if let Some(expected) = expected.as_ref().filter(|expected| **expected != digest) {
                    over.cancel();
                    return Err(Error::DigestMismatch {
                        expected: expected.to_string(),
                        found: digest.to_string(),
                    });
                }
                found.push(digest);
            }
            Ok((done?, found))
        })
    }
}

impl ConvertOptions {
    /// The digests of the image that was written, each in a read of its own.
    pub(super) fn digests_of_target(&self, image: &dyn BlockSource) -> Result<Vec<Digest>> {
        let stopped = || self.job.work.cancel.is_cancelled();
        std::thread::scope(|scope| {
            let digests: Vec<_> = self
                .image
                .target_digests
                .iter()
                .map(|algorithm| {
                    scope.spawn(move || digest_of(image, Hasher::new(*algorithm)?, &stopped))
                })
                .collect();
            let digests = digests.into_iter().map(|digest| match digest.join() {
                Ok(digest) => digest,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            digests.collect()
        })
    }
}
