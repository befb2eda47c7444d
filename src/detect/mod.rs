//! Which format a file is of: all probes see the same window, and all that match are the answer.

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::formats::BUILTIN;
use crate::image::{Evidence, Format, Verdict, Window};
use crate::source::BlockSource;

/// Everything that a file was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detected {
    /// The formats whose signatures were found, with the evidence for each.
    pub matches: Vec<(FormatId, Evidence)>,
}

/// Runs every format's probe over `source`.
///
/// Raw is never among the answers: everything is a raw disk to those who say so.
///
/// # Errors
/// What reading fails with.
pub fn detect(source: &dyn BlockSource) -> Result<Detected> {
    let window = Window::read(source)?;
    let matches = BUILTIN
        .iter()
        .filter_map(|format| match format.probe(&window.probe()) {
            Verdict::Reject => None,
            Verdict::Match(evidence) => Some((format.id(), evidence)),
        });
    Ok(Detected {
        matches: matches.collect(),
    })
}

impl Detected {
    /// The one format that the file is of.
    ///
    /// # Errors
    /// [`Error::Unrecognized`] if there is none, [`Error::Ambiguous`] if there are several.
    pub fn one(&self) -> Result<&'static dyn Format> {
        match self.matches.as_slice() {
            [] => Err(Error::Unrecognized),
            [(id, _)] => crate::formats::by_name(id.as_str()).ok_or(Error::Unrecognized),
            several => Err(Error::Ambiguous {
                matches: several.iter().map(|(id, _)| *id).collect(),
            }),
        }
    }
}
