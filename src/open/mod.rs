//! The one door into an image: limits, reference policy, backing chain.

mod chain;
mod layer;
mod own;
mod policy;
mod stream;

use std::path::Path;
use std::sync::Arc;

use crate::detect::Detected;
use crate::error::{Error, Result};
use crate::formats::Formats;
use crate::image::{DiskSelector, Format, Image, Request, SnapshotSelector, Window};
use crate::limits::Limits;
use crate::open::chain::Chain;
use crate::resolver::{DenyReferences, Resolver};
use crate::source::{BlockSource, BlockSourceExt, FileIdentity};
use crate::storage::FileStorage;

pub(crate) use layer::Layer;
pub use policy::{PathPolicy, PathResolver};
pub(crate) use stream::Arriving;
pub use stream::{StreamImage, StreamSource};

/// Options of opening an image. The defaults are for a file that a stranger sent: the format is
/// detected, limits hold, and no other file is opened.
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
    disk: Option<DiskSelector>,
    verify_manifest: bool,
    salvage: bool,
    formats: Formats,
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
            disk: None,
            verify_manifest: false,
            salvage: false,
            formats: Formats::all(),
        }
    }

    /// Opens the image as this format and no other, without detection. The only way to open a raw
    /// disk.
    #[must_use]
    pub fn format(mut self, name: impl Into<String>) -> Self {
        self.format = Some(name.into());
        self
    }

    /// Opens only images of these formats, also as backing files: every format of this crate by
    /// default.
    #[must_use]
    pub fn formats(mut self, formats: Formats) -> Self {
        self.formats = formats;
        self
    }

    /// Sets the limits of what the image may demand.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the resolver of the files that the image refers to. It takes precedence over
    /// [`references`](Self::references).
    #[must_use]
    pub fn resolver(mut self, resolver: Arc<dyn Resolver>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Sets the policy on the files that the image refers to, for an image that is opened by its
    /// path. [`PathPolicy::Deny`] by default.
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

    /// Opens this disk of an appliance (OVA): by its place in the list, or by the name of its file.
    #[must_use]
    pub fn disk(mut self, disk: impl Into<DiskSelector>) -> Self {
        self.disk = Some(disk.into());
        self
    }

    /// Compares an appliance with its manifest first, by one more pass over the archive. Off by
    /// default.
    #[must_use]
    pub fn verify_manifest(mut self, verify: bool) -> Self {
        self.verify_manifest = verify;
        self
    }

    /// Opens an image also where damage costs only a part of its disk, such as a table that is cut
    /// short, two entries with the same cluster, or a stream without its end. Reading that part
    /// fails, so that a [`Salvage`](crate::salvage::Salvage) can be made over the image. A file
    /// that it refers to and that cannot be opened is left closed; one that is not allowed is still
    /// an error. Off by default.
    #[must_use]
    pub fn salvage(mut self, salvage: bool) -> Self {
        self.salvage = salvage;
        self
    }

    /// Opens the image in the file at `path`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::Io`] if the file cannot be opened.
    pub fn open_path(&self, path: impl AsRef<Path>) -> Result<Box<dyn Image>> {
        self.open_path_and_file(path).map(|(image, _)| image)
    }

    /// As [`open_path`](Self::open_path), with the file that the image lies in, for example to make
    /// its digest.
    ///
    /// # Errors
    /// As [`open_path`](Self::open_path).
    pub fn open_path_and_file(
        &self,
        path: impl AsRef<Path>,
    ) -> Result<(Box<dyn Image>, Arc<dyn BlockSource>)> {
        let path = path.as_ref();
        let source: Arc<dyn BlockSource> = Arc::new(FileStorage::open(path)?);
        let image = self.open_with(Arc::clone(&source), self.resolver_at(path)?)?;
        Ok((image, source))
    }

    /// Opens the image in `source`. References are denied unless there is a
    /// [`resolver`](Self::resolver).
    ///
    /// # Errors
    /// [`Error::Unrecognized`], [`Error::Ambiguous`] or [`Error::NotAllowed`] if the format is to
    /// be detected, [`Error::InvalidInput`] if the named format is not known or cannot honour a
    /// request, and those of the format's [`open`](Format::open).
    pub fn open(&self, source: Arc<dyn BlockSource>) -> Result<Box<dyn Image>> {
        let resolver = self.resolver_or(|| Arc::new(DenyReferences));
        self.open_with(source, resolver)
    }

    /// The caller's resolver, or else another one.
    pub(crate) fn resolver_or(
        &self,
        otherwise: impl FnOnce() -> Arc<dyn Resolver>,
    ) -> Arc<dyn Resolver> {
        self.resolver.clone().unwrap_or_else(otherwise)
    }

    /// Opens the image of which the start has arrived in `source`, as the format that is named or that
    /// its start shows.
    pub(crate) fn open_arriving(
        &self,
        source: Arc<dyn BlockSource>,
        resolver: Arc<dyn Resolver>,
        shown: &Detected,
    ) -> Result<Box<dyn Image>> {
        let format = self.format_to_read(shown)?;
        let chain = self.chain(resolver, source.identity());
        chain.check_request(format)?;
        let request = Request {
            arriving: true,
            ..chain.request()
        };
        let image = format.open(source, &request)?;
        if image.trailer().is_none() {
            chain.limits.check_virtual_size(image.size())?;
        }
        Ok(image)
    }

    /// Opens the image again that was opened as `before` while it arrived. The whole file has to
    /// show the same format as its start did.
    pub(crate) fn open_arrived(
        &self,
        source: Arc<dyn BlockSource>,
        resolver: Arc<dyn Resolver>,
        before: &dyn Image,
    ) -> Result<Box<dyn Image>> {
        let format = self.format_of(&source)?;
        if format.id() != before.format() {
            return Err(Error::invalid(format!(
                "the stream begins as {} and ends as {}; name the format that it is meant to have",
                before.format(),
                format.id()
            )));
        }
        let chain = self.chain(resolver, source.identity());
        let image = match before.arrived(Arc::clone(&source), &chain.request())? {
            Some(image) => image,
            None => format.open(source, &chain.request())?,
        };
        chain.limits.check_virtual_size(image.size())?;
        Ok(image)
    }

    /// Resolver of the references of an image without a path, or as if it lay at `path`.
    pub(crate) fn resolver_of_stream(&self, path: Option<&Path>) -> Result<Arc<dyn Resolver>> {
        match (&self.resolver, path) {
            (Some(resolver), _) => Ok(Arc::clone(resolver)),
            (None, Some(path)) => self.resolver_at(path),
            (None, None) if self.policy == PathPolicy::Deny => Ok(Arc::new(DenyReferences)),
            (None, None) => Err(Error::invalid(
                "a stream lies in no directory, so that the names in it mean no files; say where it \
                 came from, or allow no references",
            )),
        }
    }

    /// Resolver of the references of an image at `path`.
    pub(crate) fn resolver_at(&self, path: &Path) -> Result<Arc<dyn Resolver>> {
        match &self.resolver {
            Some(resolver) => Ok(Arc::clone(resolver)),
            None => Ok(Arc::new(PathResolver::new(path, self.policy.clone())?)),
        }
    }

    pub(crate) fn limits_of(&self) -> &Limits {
        &self.limits
    }

    /// As [`detect`](crate::detect), with the formats of the caller.
    pub(crate) fn detect(&self, source: &dyn BlockSource) -> Result<Detected> {
        let window = Window::read(source)?;
        Ok(Detected::among(&self.formats, &window.probe()))
    }

    /// The format that was named, or else the one that was found.
    pub(crate) fn format_among(&self, detected: &Detected) -> Result<&'static dyn Format> {
        match &self.format {
            Some(name) => self.formats.named(name),
            None => detected.one_of(&self.formats),
        }
    }

    /// The same for a disk that will be read.
    fn format_to_read(&self, detected: &Detected) -> Result<&'static dyn Format> {
        match &self.format {
            Some(name) => self.formats.named(name),
            None => detected.one_to_read(&self.formats),
        }
    }

    /// The format that was named, or else the one that is detected in `source`.
    fn format_of(&self, source: &dyn BlockSource) -> Result<&'static dyn Format> {
        match &self.format {
            Some(name) => self.formats.named(name),
            None => self.detect(source)?.one_to_read(&self.formats),
        }
    }

    fn open_with(
        &self,
        source: Arc<dyn BlockSource>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Box<dyn Image>> {
        let format = self.format_of(&source)?;
        let chain = self.chain(resolver, source.identity());
        open_as(format, source, &chain)
    }

    /// The start of a chain with these options.
    fn chain(&self, resolver: Arc<dyn Resolver>, identity: Option<FileIdentity>) -> Chain {
        Chain::start(self, resolver, identity)
    }
}

/// Opens `source` as `format`, as the end of `chain`.
fn open_as(
    format: &dyn Format,
    source: Arc<dyn BlockSource>,
    chain: &Chain,
) -> Result<Box<dyn Image>> {
    chain.check_request(format)?;
    let image = format.open(source, &chain.request())?;
    chain.limits.check_virtual_size(image.size())?;
    Ok(image)
}
