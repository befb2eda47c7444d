//! Flat extents: everything goes where the guest sees it, in one file or in several.

use crate::error::{Error, Result};
use crate::image::{Finish, ImageWriter, Payload, Placed, Write, WriteRun, WriteShape};

use super::options::{Subformat, VmdkOptions};
use super::text::{self, Line};
use super::{Names, SPLIT, files_of};
use crate::formats::vmdk::header::SECTOR;

#[derive(Debug)]
pub(super) struct FlatWriter {
    size: u64,
    /// Bytes of every extent but the last.
    split: u64,
    extents: Vec<Line>,
    descriptor: Vec<u8>,
}

impl FlatWriter {
    pub(super) fn new(options: &VmdkOptions, size: u64, names: &Names) -> Result<Self> {
        let split = match options.subformat {
            Subformat::TwoGbMaxExtentFlat => SPLIT,
            _ => size,
        };
        let esxi = matches!(options.subformat, Subformat::Vmfs | Subformat::VmfsThin);
        let mut extents = Vec::new();
        let mut start = 0;
        while start < size {
            let name = match options.subformat {
                Subformat::TwoGbMaxExtentFlat => {
                    names.with(&format!("-f{:03}", extents.len() + 1))?
                }
                _ => names.with("-flat")?,
            };
            let len = split.min(size - start);
            extents.push(Line {
                access: "RW",
                size: len,
                kind: if esxi { "VMFS" } else { "FLAT" },
                name,
                offset: !esxi,
            });
            start += len;
        }
        let descriptor = text::descriptor(options, size, names, &extents);
        Ok(FlatWriter {
            size,
            split,
            extents,
            descriptor,
        })
    }
}

impl ImageWriter for FlatWriter {
    fn shape(&self) -> WriteShape {
        let mut shape = WriteShape::new(self.size, SECTOR);
        shape.zero_unit = 4096;
        // Zeros have to be written to targets that do not read as zero.
        shape.plain = true;
        shape.settled = true;
        let names: Vec<_> = self.extents.iter().map(|e| e.name.clone()).collect();
        shape.files = files_of(&names);
        shape
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        let (WriteRun::Verbatim { guest, len } | WriteRun::Zero { guest, len }) = run else {
            return Err(Error::invalid("a flat extent cannot be compressed"));
        };
        let host = guest % self.split;
        let taken = len.min(self.split - host);
        let file = usize::try_from(guest / self.split).unwrap_or(usize::MAX - 1) + 1;
        if matches!(run, WriteRun::Zero { .. }) {
            tables.push(Write::new(file, host, Payload::Zeroes(taken)));
        }
        Ok(Placed { file, host, taken })
    }

    fn finish(self: Box<Self>) -> Result<Finish> {
        let extents = self.extents.iter().map(|extent| extent.size);
        let sizes = std::iter::once(self.descriptor.len() as u64).chain(extents);
        let sizes = sizes.collect();
        let seal = vec![Write::new(0, 0, self.descriptor)];
        Ok(Finish::new(Vec::new(), seal, sizes))
    }
}
