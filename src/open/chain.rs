//! Files behind an image: each is opened through the resolver, in a chain of limited length.

use std::io::ErrorKind;
use std::sync::Arc;

use crate::detect::Detected;
use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::formats::Formats;
use crate::formats::raw::RAW;
use crate::image::{
    CheckedWithin, DiskSelector, Findings, Format, Image, Opener, Request, SnapshotSelector, Window,
};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::reference::Reference;
use crate::resolver::{Resolved, Resolver};
use crate::source::{BlockSource, BlockSourceExt, FileIdentity};

use super::own::OwnFiles;
use super::{OpenOptions, open_as};

/// Limits and resolver of an image that is opened, and the files above it.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(super) limits: Limits,
    pub(super) formats: Formats,
    /// Requests to this image, and not to those behind it.
    first: First,
    describes: bool,
    pub(super) salvages: bool,
    resolver: Arc<dyn Resolver>,
    /// The files from the first image down to this one, to find a chain that contains a file twice.
    above: Vec<Option<FileIdentity>>,
}

/// Requests of the caller to the first image.
#[derive(Debug, Clone, Default)]
struct First {
    snapshot: Option<SnapshotSelector>,
    disk: Option<DiskSelector>,
    verifies: bool,
}

impl Chain {
    /// The start of a chain with the requests of `options` to its first image.
    pub(super) fn start(
        options: &OpenOptions,
        resolver: Arc<dyn Resolver>,
        identity: Option<FileIdentity>,
    ) -> Self {
        Chain {
            limits: options.limits.clone(),
            formats: options.formats.clone(),
            first: First {
                snapshot: options.snapshot.clone(),
                disk: options.disk.clone(),
                verifies: options.verify_manifest,
            },
            describes: false,
            salvages: options.salvage,
            resolver,
            above: vec![identity],
        }
    }

    /// Refuses a request that no image of this format can honour.
    pub(crate) fn check_request(&self, format: &dyn Format) -> Result<()> {
        if let Some(error) = format.absent() {
            return Err(error);
        }
        let (can, first) = (format.capabilities(), &self.first);
        let requests = [
            (
                first.snapshot.is_some(),
                can.snapshots,
                "internal snapshots",
            ),
            (first.disk.is_some(), can.disks, "disks to choose from"),
            (first.verifies, can.manifest, "manifest to be compared with"),
        ];
        let refused = requests.iter().find(|(asked, can, _)| *asked && !can);
        refused.map_or(Ok(()), |(_, _, what)| {
            let format = format.id();
            Err(Error::invalid(format!("{format} images have no {what}")))
        })
    }

    /// The request for the image that the chain ends with.
    pub(crate) fn request(&self) -> Request<'_> {
        Request {
            limits: &self.limits,
            snapshot: self.first.snapshot.as_ref(),
            disk: self.first.disk.as_ref(),
            verifies: self.first.verifies,
            arriving: false,
            describes: self.describes,
            salvages: self.salvages,
            opener: self,
        }
    }

    /// Resolver of the references of the last file.
    pub(super) fn resolver(&self) -> &Arc<dyn Resolver> {
        &self.resolver
    }

    /// This chain for an image that is only described, with another resolver.
    pub(super) fn to_describe(&self, resolver: Arc<dyn Resolver>) -> Self {
        Chain {
            limits: self.limits.clone(),
            formats: self.formats.clone(),
            first: self.first.clone(),
            describes: true,
            salvages: self.salvages,
            resolver,
            above: self.above.clone(),
        }
    }

    /// The chain of a file that this image refers to.
    fn below(
        &self,
        identity: Option<FileIdentity>,
        within: Arc<dyn Resolver>,
        reference: &Reference,
    ) -> Result<Chain> {
        if identity.is_some() && self.above.contains(&identity) {
            return Err(Error::invalid(format!(
                "the image refers to {reference}, which leads back to a file above it"
            )));
        }
        self.one_further(identity, within)
    }

    /// The chain of a file below this one, or within it.
    fn one_further(
        &self,
        identity: Option<FileIdentity>,
        within: Arc<dyn Resolver>,
    ) -> Result<Chain> {
        let mut above = self.above.clone();
        above.push(identity);
        self.limits.check_chain_depth(above.len() as u64)?;
        Ok(Chain {
            limits: self.limits.clone(),
            formats: self.formats.clone(),
            first: First::default(),
            describes: false,
            salvages: self.salvages,
            resolver: within,
            above,
        })
    }

    /// The opened file; `None` if it is damaged or missing, and the image is salvaged.
    fn forgiven<T>(&self, opened: Result<Option<T>>) -> Result<Option<T>> {
        match opened {
            Err(Error::Io { .. } | Error::Malformed { .. } | Error::Unrecognized)
                if self.salvages =>
            {
                Ok(None)
            }
            opened => opened,
        }
    }

    /// The file that `reference` means, its declared format, and the chain from there on; `None` if
    /// the resolver left it closed.
    pub(super) fn follow(&self, reference: &Reference) -> Result<Option<Below>> {
        let (source, override_format, within) = match self.resolver.resolve(reference)? {
            Resolved::Detached => return Ok(None),
            Resolved::Open {
                source,
                format,
                within,
            } => (source, format, within),
        };
        let declared = reference.format.as_ref().map(ImageName::as_str);
        let format = match (override_format, declared) {
            (Some(format), _) => self.formats.named(format.as_str())?,
            (None, Some(Some(format))) => self.formats.named(format)?,
            (None, None) if reference.format_in_name => self.by_its_name(reference, &source)?,
            _ => {
                return Err(Error::invalid(format!(
                    "the image refers to {reference} without saying what format it has, and its \
                     content is not asked; write the format into the image \
                     (qemu-img rebase -u -F FORMAT -b FILE IMAGE) if it is trusted"
                )));
            }
        };
        let chain = self.below(source.identity(), within, reference)?;
        Ok(Some((source, format, chain)))
    }

    /// The format by the extension of the file's name, for images that cannot declare it. The
    /// content decides nothing, but has to agree: a guest may have written it.
    fn by_its_name(
        &self,
        reference: &Reference,
        source: &dyn BlockSource,
    ) -> Result<&'static dyn Format> {
        let refused = |why: &str| {
            Error::invalid(format!(
                "the image refers to {reference}, and has no room to say what format that has; {why}; \
                 name the format in code, with a Resolver, if the image is trusted"
            ))
        };
        let name = reference.name.as_str().unwrap_or_default();
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        let format = self
            .formats
            .by_extension(extension)
            .ok_or_else(|| refused("the ending of the name does not say it either"))?;
        let agrees = match self.detect(source)?.image_formats().as_slice() {
            [] => format.id() == RAW,
            [id] => *id == format.id(),
            _ => false,
        };
        match agrees {
            true => Ok(format),
            false => Err(refused(
                "the ending of the name says another than the content shows",
            )),
        }
    }

    /// The format of the image in `source`, which lies within another that declares it to be this.
    fn format_within(
        &self,
        source: &dyn BlockSource,
        declared: Option<FormatId>,
    ) -> Result<&'static dyn Format> {
        let detected = self.detect(source)?;
        let format = match (detected.matches.as_slice(), declared) {
            ([], Some(declared)) => self.formats.named(declared.as_str())?,
            ([(found, evidence), ..], Some(RAW)) => {
                // A guest may have written the signature of a format.
                return Err(Error::Ambiguous {
                    matches: vec![RAW, *found],
                    evidence: vec![
                        ("what the appliance says", 0),
                        (evidence.what, evidence.offset),
                    ],
                });
            }
            _ => detected.one_to_read(&self.formats)?,
        };
        match format.capabilities().disks {
            true => Err(Error::invalid(
                "an appliance within an appliance is not opened",
            )),
            false => Ok(format),
        }
    }

    pub(super) fn detect(&self, source: &dyn BlockSource) -> Result<Detected> {
        let window = Window::read(source)?;
        Ok(Detected::among(&self.formats, &window.probe()))
    }
}

/// Checks an image that is a part of another.
fn check_as(
    format: &dyn Format,
    source: Arc<dyn BlockSource>,
    mut chain: Chain,
) -> Result<CheckedWithin> {
    chain.resolver = Arc::new(OwnFiles(chain.resolver));
    let checker = format.checker();
    let mut findings = match checker {
        Some(check) => check(&source, &chain.request())?,
        None => Findings::default(),
    };
    // A check goes on where an open fails, and may miss the reason.
    let virtual_size = match open_as(format, source, &chain) {
        Ok(image) => Some(image.size()),
        Err(error) if findings.is_clean() => {
            findings.add_obstacle("image", error)?;
            None
        }
        Err(_) => None,
    };
    Ok(CheckedWithin::new(format.id(), virtual_size, findings))
}

/// A file further down, its format, and the chain from there on.
pub(super) type Below = (Arc<dyn BlockSource>, &'static dyn Format, Chain);

impl Opener for Chain {
    fn open_within(
        &self,
        source: Arc<dyn BlockSource>,
        declared: Option<FormatId>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Arc<dyn Image>> {
        let format = self.format_within(&source, declared)?;
        let chain = self.one_further(None, resolver)?;
        Ok(Arc::from(open_as(format, source, &chain)?))
    }

    fn check_within(
        &self,
        source: Arc<dyn BlockSource>,
        declared: Option<FormatId>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<CheckedWithin> {
        let format = self.format_within(&source, declared)?;
        let chain = self.one_further(None, resolver)?;
        check_as(format, source, chain)
    }

    fn check_image(&self, reference: &Reference) -> Result<Option<CheckedWithin>> {
        let below = self.follow(reference)?;
        let checked = below.map(|(source, format, chain)| check_as(format, source, chain));
        checked.transpose()
    }

    fn open_first(&self, references: &[Reference]) -> Result<Option<(usize, Arc<dyn Image>)>> {
        let mut first_failure = None;
        for (index, reference) in references.iter().enumerate() {
            let opened = self.follow(reference).and_then(|below| match below {
                None => Ok(None),
                Some((source, format, chain)) => open_as(format, source, &chain).map(Some),
            });
            match opened {
                Ok(image) => return Ok(image.map(|image| (index, Arc::from(image)))),
                Err(error) if error.io_kind() == ErrorKind::NotFound => {
                    first_failure.get_or_insert(error);
                }
                // The next name is tried only where no file has this one.
                Err(error) => {
                    first_failure.get_or_insert(error);
                    break;
                }
            }
        }
        self.forgiven(first_failure.map_or(Ok(None), Err))
    }

    fn open_bytes(&self, reference: &Reference) -> Result<Option<Arc<dyn BlockSource>>> {
        self.forgiven(match self.resolver.resolve(reference) {
            Ok(Resolved::Detached) => Ok(None),
            Ok(Resolved::Open { source, within, .. }) => {
                self.below(source.identity(), within, reference)?;
                Ok(Some(source))
            }
            Err(error) => Err(error),
        })
    }
}

impl super::OpenOptions {
    /// The chain of an image in that file, if only its own files are of interest.
    pub(crate) fn own_files(
        &self,
        resolver: Arc<dyn Resolver>,
        identity: Option<FileIdentity>,
    ) -> Chain {
        let mut chain = self.chain(Arc::new(OwnFiles(resolver)), identity);
        // A check has to report parts that cannot be read.
        chain.salvages = false;
        chain
    }
}
