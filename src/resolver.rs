//! The decision which references of an image may be opened.

use std::fmt::Debug;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::hint::Hint;
use crate::reference::Reference;
use crate::source::BlockSource;

/// Decides what a name found inside an image may open.
///
/// The only way from an image to another file. [`DenyReferences`] is the default of
/// [`OpenOptions`](crate::OpenOptions).
pub trait Resolver: Debug + Send + Sync {
    /// Opens what `reference` means, declines to, or refuses.
    ///
    /// # Errors
    /// [`Error::Denied`] to refuse, and errors of opening.
    fn resolve(&self, reference: &Reference) -> Result<Resolved>;
}

/// Result of resolving a reference.
#[derive(Debug)]
#[non_exhaustive]
pub enum Resolved {
    /// The file that the reference means.
    Open {
        /// Its bytes.
        source: Arc<dyn BlockSource>,
        /// Format that takes the place of the one that the image declares.
        format: Option<FormatId>,
        /// Decides about the references inside this file.
        within: Arc<dyn Resolver>,
    },
    /// Not opened. The image opens all the same, and reading a range that lives in the referenced
    /// file fails with [`Error::Detached`].
    Detached,
}

/// Refuses every reference: an image is read alone or not at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct DenyReferences;

impl Resolver for DenyReferences {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        Err(Error::Denied {
            reference: Box::new(reference.clone()),
            hint: Some(Hint::AllowSameDirectory),
        })
    }
}

/// Opens no reference, but lets the image open, so that it can be described.
#[derive(Debug, Clone, Copy, Default)]
pub struct DetachReferences;

impl Resolver for DetachReferences {
    fn resolve(&self, _: &Reference) -> Result<Resolved> {
        Ok(Resolved::Detached)
    }
}
