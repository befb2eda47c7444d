//! Files that a check may open: those that an image consists of, and not its backing files.

use std::sync::Arc;

use crate::error::Result;
use crate::reference::{Reference, ReferenceKind};
use crate::resolver::{Resolved, Resolver};

/// Leaves backing files closed, and asks another resolver about the rest.
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
