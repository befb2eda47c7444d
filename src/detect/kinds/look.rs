//! Inputs of a description: the window, the file, and its depth inside others.

use crate::detect::Detected;
use crate::error::Result;
use crate::image::{ImageInfo, Probe, Value};
use crate::source::BlockSource;
use crate::storage::Memory;

use super::kind_of;

/// Deepest nesting of wrappers that is looked into.
const DEPTH: u8 = 3;

/// A look at a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) file: &'a dyn BlockSource,
    pub(super) window: Probe<'a>,
    depth: u8,
}

impl<'a> Look<'a> {
    pub(super) fn new(file: &'a dyn BlockSource, window: Probe<'a>) -> Self {
        Look {
            file,
            window,
            depth: 0,
        }
    }

    /// The bytes of the file at `offset`: `len` of them, or as many as there are.
    pub(super) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let left = self.file.size().saturating_sub(offset);
        let len = usize::try_from(left).map_or(len, |left| len.min(left));
        let mut bytes = vec![0; len];
        let n = self.file.read_at(&mut bytes, offset)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// Describes bytes that begin something inside of the file: all that they match, and the
    /// details.
    pub(super) fn inside(&self, bytes: &[u8]) -> Option<Value> {
        if self.depth >= DEPTH || bytes.is_empty() {
            return None;
        }
        let head = bytes.get(..Probe::HEAD).unwrap_or(bytes);
        let window = Probe {
            head,
            tail: &[],
            size: u64::MAX,
        };
        let detected = Detected::of(&window);
        let matches = detected.matches.iter().chain(&detected.content);
        let matches: Vec<Value> = matches
            .map(|(id, evidence)| {
                let mut found = Value::map();
                found.insert("format", id.as_str());
                found.insert("evidence", evidence.what);
                found.insert("offset", evidence.offset);
                found
            })
            .collect();
        let mut inside = Value::map();
        inside.insert("matches", matches);
        if let Some(kind) = kind_of(&detected, &window) {
            let file = Memory::new(head.to_vec());
            let look = Look {
                file: &file,
                window,
                depth: self.depth + 1,
            };
            inside.insert("kind", kind.name);
            // Only the start is there, and a description of it may fail.
            if let Ok(ImageInfo {
                details: Some(details),
                ..
            }) = (kind.describe)(&look)
            {
                inside.insert("details", details);
            }
        }
        Some(inside)
    }
}

/// An info with these details.
pub(super) fn with_details(details: Value) -> ImageInfo {
    ImageInfo {
        details: Some(details),
        unknown_to_qemu: true,
        ..ImageInfo::default()
    }
}

/// An info of an image whose size nothing tells.
pub(super) fn of_unknown_size(details: Value) -> ImageInfo {
    ImageInfo {
        size_is_unknown: true,
        ..with_details(details)
    }
}
