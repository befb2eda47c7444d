//! Images one at a time: each is opened alone, and its references are followed on request.

use std::path::Path;
use std::sync::Arc;

use crate::detect::{Described, Detected, Kind, kind_of};
use crate::error::{Error, Result};
use crate::image::{Format, Image, Window};
use crate::limits::Limits;
use crate::reference::{Reference, ReferenceKind};
use crate::resolver::{Resolved, Resolver};
use crate::source::{BlockSource, BlockSourceExt};
use crate::storage::FileStorage;

use super::chain::Chain;
use super::{OpenOptions, open_as};

/// One image of a chain, opened without the files that it refers to.
#[derive(Debug)]
pub(crate) struct Layer {
    /// The image.
    pub(crate) image: Box<dyn Image>,
    /// The file that it lies in.
    pub(crate) source: Arc<dyn BlockSource>,
    /// Result of the detection.
    pub(crate) detected: Detected,
    /// True if the image is taken for raw because no format was named or found.
    pub(crate) assumed_raw: bool,
    chain: Chain,
}

impl Layer {
    /// The image at `path`, in the format that the options name or detection finds. A file in which
    /// nothing is found is taken for raw: no bytes of it steer the description. A file of a kind
    /// that cannot be read is described as that.
    pub(crate) fn first(path: &Path, options: &OpenOptions) -> Result<Self> {
        let source = Arc::new(FileStorage::open(path)?);
        Layer::of(source, options.resolver_at(path)?, options)
    }

    /// The same for the image in `source`.
    pub(crate) fn of(
        source: Arc<dyn BlockSource>,
        resolver: Arc<dyn Resolver>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let window = Window::read(&source)?;
        let detected = Detected::among(&options.formats, &window.probe());
        Layer::of_window(source, detected, &window, resolver, options)
    }

    /// The image in `source`, with this result of the detection.
    pub(crate) fn of_detected(
        source: Arc<dyn BlockSource>,
        detected: Detected,
        resolver: Arc<dyn Resolver>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let window = Window::read(&source)?;
        Layer::of_window(source, detected, &window, resolver, options)
    }

    fn of_window(
        source: Arc<dyn BlockSource>,
        detected: Detected,
        window: &Window,
        resolver: Arc<dyn Resolver>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let window = window.probe();
        let nothing = detected.matches.is_empty() && detected.content.is_empty();
        let assumed_raw = options.format.is_none() && nothing;
        let chain = options.chain(resolver, source.identity());
        let kind = kind_of(&detected, &window);
        let meant = |kind: &&Kind| options.format.as_ref().is_none_or(|name| kind.is(name));
        if let Some(kind) = kind.filter(meant) {
            let image = Described::new(kind, Arc::clone(&source), window)?;
            options.limits.check_virtual_size(image.size())?;
            return Ok(Layer {
                image: Box::new(image),
                source,
                detected,
                assumed_raw: false,
                chain,
            });
        }
        let format = match assumed_raw {
            true => options.formats.named("raw")?,
            false => options.format_among(&detected)?,
        };
        let mut layer = Layer::alone(source, detected, format, chain)?;
        layer.assumed_raw = assumed_raw;
        Ok(layer)
    }

    /// The image's backing file, in the format that the image declares; `None` if it has none or the
    /// resolver left it closed.
    pub(crate) fn below(&self) -> Result<Option<Self>> {
        let Some(reference) = self.backing() else {
            return Ok(None);
        };
        let Some((source, format, chain)) = self.chain.follow(reference)? else {
            return Ok(None);
        };
        let detected = self.chain.detect(&source)?;
        Layer::alone(source, detected, format, chain).map(Some)
    }

    /// Limits of what the image may demand.
    pub(crate) fn limits(&self) -> &Limits {
        &self.chain.limits
    }

    /// The name of the image's backing file.
    fn backing(&self) -> Option<&Reference> {
        let mut references = self.image.references().iter();
        references.find(|reference| reference.kind == ReferenceKind::BackingFile)
    }

    fn alone(
        source: Arc<dyn BlockSource>,
        detected: Detected,
        format: &dyn Format,
        chain: Chain,
    ) -> Result<Self> {
        let alone = ExtentsOnly(Arc::clone(chain.resolver()));
        let detached = chain.to_describe(Arc::new(alone));
        let image = open_as(format, Arc::clone(&source), &detached)?;
        Ok(Layer {
            image,
            source,
            detected,
            assumed_raw: false,
            chain,
        })
    }
}

/// Opens the files that an image consists of, where that is allowed, and not its backing files.
#[derive(Debug)]
struct ExtentsOnly(Arc<dyn Resolver>);

impl Resolver for ExtentsOnly {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        if reference.kind != ReferenceKind::ExtentFile {
            return Ok(Resolved::Detached);
        }
        match self.0.resolve(reference) {
            Err(Error::Denied { .. }) => Ok(Resolved::Detached),
            other => other,
        }
    }
}
