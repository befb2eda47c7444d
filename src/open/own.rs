//! Files that a check may open: those that an image consists of, and not its backing files.

use std::sync::Arc;

use crate::error::Result;
use crate::reference::{Reference, ReferenceKind, Resolved, Resolver};
use crate::source::FileIdentity;

use super::OpenOptions;
use super::chain::Chain;

impl OpenOptions {
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
