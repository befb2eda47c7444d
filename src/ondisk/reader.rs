//! A bounds-checked walk through a structure of variable length.

use crate::error::{Error, Result};
use crate::format_id::FormatId;

/// Takes fields out of bytes from front to back. Whatever is missing is named in the error.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    /// File offset of `rest`.
    at: u64,
    format: FormatId,
    structure: &'static str,
}

impl<'a> Reader<'a> {
    /// A walk through `bytes`, which start at byte `at` of the file and are a `structure`.
    pub(crate) fn new(bytes: &'a [u8], at: u64, format: FormatId, structure: &'static str) -> Self {
        Reader {
            rest: bytes,
            at,
            format,
            structure,
        }
    }

    /// Returns the file offset of the next field.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// Returns whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: u64, field: &'static str) -> Result<&'a [u8]> {
        let split = usize::try_from(len)
            .ok()
            .and_then(|len| self.rest.split_at_checked(len));
        let Some((taken, rest)) = split else {
            let left = self.rest.len();
            return Err(
                self.malformed(field, format!("needs {len} bytes and only {left} are left"))
            );
        };
        self.rest = rest;
        self.at += len;
        Ok(taken)
    }

    /// Passes over what is missing to a multiple of `alignment` bytes from `origin` in the file, as
    /// far as there are bytes.
    pub(crate) fn align(&mut self, origin: u64, alignment: u64) {
        let into = self.at.saturating_sub(origin) % alignment;
        if into > 0 {
            let skip = usize::try_from(alignment - into)
                .unwrap_or(usize::MAX)
                .min(self.rest.len());
            self.rest = self.rest.get(skip..).unwrap_or_default();
            self.at += skip as u64;
        }
    }

    /// An error about the field that would come next.
    pub(crate) fn malformed(
        &self,
        field: &'static str,
        problem: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Error {
        Error::Malformed {
            format: self.format,
            structure: self.structure,
            field: Some(field),
            offset: Some(self.at),
            problem: problem.into(),
        }
    }
}
