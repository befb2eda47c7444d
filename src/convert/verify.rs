//! Reading a result back, to see that it holds what the source does.

use std::sync::Arc;

use crate::compare::{CompareOptions, Comparison};
use crate::convert::options::ConvertOptions;
use crate::error::{Error, Result};
use crate::image::{OutputFile, WriteShape};
use crate::name::ImageName;
use crate::open::OpenOptions;
use crate::reference::Reference;
use crate::resolver::{Resolved, Resolver};
use crate::source::BlockSource;
use crate::storage::PendingFile;

/// The files that were written, by the names that the image calls them.
#[derive(Debug, Clone)]
struct Written(Vec<(ImageName, Arc<dyn BlockSource>)>);

impl Resolver for Written {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let mut files = self.0.iter();
        let found = files.find(|(name, _)| *name == reference.name);
        let (_, source) = found.ok_or_else(|| Error::Denied {
            reference: Box::new(reference.clone()),
            hint: Some("it is not one of the files that were written".into()),
        })?;
        Ok(Resolved::Open {
            source: Arc::clone(source),
            format: None,
            within: Arc::new(self.clone()),
        })
    }
}

impl ConvertOptions {
    /// Fails if the image that was written does not hold what `source` does.
    pub(super) fn verify_written(
        &self,
        source: &dyn BlockSource,
        shape: &WriteShape,
        files: &[PendingFile],
    ) -> Result<()> {
        let storages = || files.iter().map(PendingFile::storage);
        let named = shape.files.iter().zip(storages());
        let named = named.filter_map(|(file, storage)| match file {
            OutputFile::Named(name) => Some((name.clone(), storage as Arc<dyn BlockSource>)),
            OutputFile::Image => None,
        });
        let Some(image) = storages().next() else {
            return Ok(());
        };
        let image = OpenOptions::new()
            .format(&self.image.format)
            .resolver(Arc::new(Written(named.collect())))
            .open(image)?;
        let mut compare = CompareOptions::new();
        compare.work = self.job.work.clone();
        if let Some(progress) = self.job.work.progress.clone() {
            compare = compare.progress(move |done| {
                progress(crate::progress::Progress {
                    phase: crate::progress::Phase::Verifying,
                    ..done
                })
            });
        }
        let problem = match compare.compare(source, &image)? {
            Comparison::Same => return Ok(()),
            Comparison::Differ { offset } => format!("differs from the source at byte {offset}"),
            other => format!("is not what the source is: {other:?}"),
        };
        Err(Error::invalid(format!(
            "what was written {problem}: the storage, or this program, is at fault"
        )))
    }
}
