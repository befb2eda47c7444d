//! The files behind an image: each is opened through the resolver, in a chain that has an end.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Format, Image, Opener, SnapshotSelector};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::reference::{Reference, Resolved, Resolver};
use crate::source::{BlockSource, FileIdentity};

use super::{named, open_as};

/// What an image gets to ask: the limits, and the way to the files that it refers to.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) limits: Limits,
    pub(super) snapshot: Option<SnapshotSelector>,
    resolver: Arc<dyn Resolver>,
    /// The files from the first image down to this one, to find a chain that bites its tail.
    above: Vec<Option<FileIdentity>>,
}

impl Chain {
    pub(super) fn start(
        limits: Limits,
        resolver: Arc<dyn Resolver>,
        identity: Option<FileIdentity>,
    ) -> Self {
        Chain {
            limits,
            snapshot: None,
            resolver,
            above: vec![identity],
        }
    }

    /// Who decides about the references of the last file.
    pub(super) fn resolver(&self) -> &Arc<dyn Resolver> {
        &self.resolver
    }

    /// This chain with somebody else to decide about the references of its last file.
    pub(super) fn with_resolver(&self, resolver: Arc<dyn Resolver>) -> Self {
        Chain {
            limits: self.limits.clone(),
            snapshot: self.snapshot.clone(),
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
        let mut above = self.above.clone();
        above.push(identity);
        self.limits.check_chain_depth(above.len() as u64)?;
        Ok(Chain {
            limits: self.limits.clone(),
            snapshot: None,
            resolver: within,
            above,
        })
    }

    /// The file that `reference` means, the format that it has by declaration, and the chain that
    /// goes on from there; `None` if the resolver left it closed.
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
            (Some(format), _) => named(format.as_str())?,
            (None, Some(Some(format))) => named(format)?,
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
}

/// A file further down, its format, and the chain from there on.
pub(super) type Below = (Arc<dyn BlockSource>, &'static dyn Format, Chain);

impl Opener for Chain {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn snapshot(&self) -> Option<&SnapshotSelector> {
        self.snapshot.as_ref()
    }

    fn open_image(&self, reference: &Reference) -> Result<Option<Arc<dyn Image>>> {
        let Some((source, format, chain)) = self.follow(reference)? else {
            return Ok(None);
        };
        Ok(Some(Arc::from(open_as(format, source, &chain)?)))
    }

    fn open_bytes(&self, reference: &Reference) -> Result<Option<Arc<dyn BlockSource>>> {
        match self.resolver.resolve(reference)? {
            Resolved::Detached => Ok(None),
            Resolved::Open { source, within, .. } => {
                self.below(source.identity(), within, reference)?;
                Ok(Some(source))
            }
        }
    }
}
