//! The one door into an image: limits, reference policy, backing chain.

mod chain;
mod layer;
mod policy;

use std::path::Path;
use std::sync::Arc;

use crate::detect::detect;
use crate::error::{Error, Result};
use crate::formats::by_name;
use crate::image::{Format, Image, SnapshotSelector};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::open::chain::Chain;
use crate::reference::{DenyReferences, Resolver};
use crate::source::BlockSource;
use crate::storage::FileStorage;

pub(crate) use layer::Layer;
pub use policy::{PathPolicy, PathResolver};

/// How to open an image. The defaults are for a file that a stranger sent: the format is detected,
/// limits hold, and no other file is opened.
///
/// ```
/// use blockform::{BlockSource, OpenOptions};
///
/// let image = OpenOptions::new().open_path("testdata/qcow2/good/plain.qcow2")?;
/// println!("{} of {} bytes", image.format(), image.size());
/// # Ok::<(), blockform::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct OpenOptions {
    format: Option<String>,
    limits: Limits,
    resolver: Option<Arc<dyn Resolver>>,
    policy: PathPolicy,
    snapshot: Option<SnapshotSelector>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenOptions {
    /// The defaults.
    pub fn new() -> Self {
        OpenOptions {
            format: None,
            limits: Limits::default(),
            resolver: None,
            policy: PathPolicy::Deny,
            snapshot: None,
        }
    }

    /// Opens the image as this format and no other, without detection. The only way to open a raw
    /// disk.
    #[must_use]
    pub fn format(mut self, name: impl Into<String>) -> Self {
        self.format = Some(name.into());
        self
    }

    /// What the image may demand.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who decides about the files that the image refers to. It takes precedence over
    /// [`references`](Self::references).
    #[must_use]
    pub fn resolver(mut self, resolver: Arc<dyn Resolver>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Which of the files that the image refers to may be opened, for an image that is opened by its
    /// path. [`PathPolicy::Deny`] unless told otherwise.
    #[must_use]
    pub fn references(mut self, policy: PathPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Opens an internal snapshot in place of the active state.
    #[must_use]
    pub fn snapshot(mut self, snapshot: SnapshotSelector) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// Opens the image in the file at `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::Io`] if the file cannot be opened.
    pub fn open_path(&self, path: impl AsRef<Path>) -> Result<Box<dyn Image>> {
        let path = path.as_ref();
        let source = Arc::new(FileStorage::open(path)?);
        self.open_with(source, self.resolver_at(path)?)
    }

    /// Opens the image in `source`. References are denied unless there is a
    /// [`resolver`](Self::resolver).
    ///
    /// # Errors
    /// [`Error::Unrecognized`] or [`Error::Ambiguous`] if the format is to be detected and cannot be,
    /// [`Error::InvalidInput`] if the named format is not known, and what the format's own
    /// [`open`](Format::open) fails with.
    pub fn open(&self, source: Arc<dyn BlockSource>) -> Result<Box<dyn Image>> {
        let resolver = self
            .resolver
            .clone()
            .unwrap_or_else(|| Arc::new(DenyReferences));
        self.open_with(source, resolver)
    }

    /// Who decides about the references of an image at `path`.
    pub(crate) fn resolver_at(&self, path: &Path) -> Result<Arc<dyn Resolver>> {
        match &self.resolver {
            Some(resolver) => Ok(Arc::clone(resolver)),
            None => Ok(Arc::new(PathResolver::new(path, self.policy.clone())?)),
        }
    }

    fn open_with(
        &self,
        source: Arc<dyn BlockSource>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Box<dyn Image>> {
        let format = match &self.format {
            Some(name) => named(name)?,
            None => detect(&source)?.one()?,
        };
        let mut chain = Chain::start(self.limits.clone(), resolver, source.identity());
        chain.snapshot = self.snapshot.clone();
        open_as(format, source, &chain)
    }
}

/// Opens `source` as `format`, with what it may ask for answered by `chain`.
fn open_as(
    format: &dyn Format,
    source: Arc<dyn BlockSource>,
    chain: &Chain,
) -> Result<Box<dyn Image>> {
    let image = format.open(source, chain)?;
    chain.limits.check_virtual_size(image.size())?;
    Ok(image)
}

pub(crate) fn named(name: &str) -> Result<&'static dyn Format> {
    by_name(name).ok_or_else(|| {
        let known: Vec<&str> = crate::formats::BUILTIN
            .iter()
            .map(|f| f.id().as_str())
            .collect();
        let name = ImageName::from(name);
        Error::invalid(format!(
            "unknown format {}; known are {}",
            name.quoted(),
            known.join(", ")
        ))
    })
}
