//! What a check may open: the files that an image consists of, and none of those behind it.

use std::sync::Arc;

use crate::error::Result;
use crate::reference::{Reference, ReferenceKind};
use crate::resolver::{Resolved, Resolver};

/// Leaves closed what is behind the image, and asks about the rest.
#[derive(Debug)]
pub(super) struct OwnFiles(pub(super) Arc<dyn Resolver>);

impl Resolver for OwnFiles {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        match reference.kind {
            ReferenceKind::BackingFile => Ok(Resolved::Detached),
            _ => self.0.resolve(reference),
        }
    }
}
