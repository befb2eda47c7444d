//! Laying an appliance out: the descriptor, the disk, the manifest, in an archive.
//!
//! ```text
//!   header  descriptor, with room to spare   header  streamOptimized VMDK   header  manifest   end
//!   └── written last                         └── its size is known when it is whole
//! ```

mod options;
mod text;

use std::sync::Arc;

use crate::digest::Algorithm;
use crate::error::{Error, Result};
use crate::formats::vmdk::{Subformat, VmdkOptions};
use crate::image::{
    CreateOptions, Encoder, Finish, ImageWriter, Payload, Placed, Write, WriteRun, WriteShape,
};
use crate::name::ImageName;

use super::header::{BLOCK, file_header};
use text::{DiskText, descriptor};

pub use options::{Controller, OvaOptions};

impl OvaOptions {
    /// Creates the writer of such an appliance with one disk of `virtual_size` bytes, rounded up to a sector.
    /// The files in it are named after `file_name`, the name of the archive.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that exclude each other and names that do not fit,
    /// [`Error::Unsupported`] without the codec of the disk.
    pub fn writer(
        self,
        virtual_size: u64,
        file_name: Option<&ImageName>,
    ) -> Result<Box<dyn ImageWriter>> {
        self.check()?;
        if let Some(algorithm) = self.manifest {
            // A codec that is not built in fails here, before anything is written.
            algorithm.digest(&[])?;
        }
        let stem = stem_of(file_name);
        let disk_name = format!("{stem}-disk1.vmdk");
        let mut create = CreateOptions::new(virtual_size);
        create.options = self.disk.clone();
        let adapter = self.controller.adapter().to_owned();
        create.options.push(("adapter_type".to_owned(), adapter));
        let hardware = self.hardware().to_string();
        create.options.push(("hwversion".to_owned(), hardware));
        let mut disk = VmdkOptions::parse(&create)?;
        disk.subformat = Subformat::StreamOptimized;
        let disk = disk.writer(virtual_size, Some(&ImageName::from(disk_name.as_str())))?;
        let name = self.name.clone().unwrap_or_else(|| stem.clone());
        let mut layout = Layout {
            capacity: disk.shape().virtual_size,
            options: self,
            name,
            stem,
            disk_name,
            room: 0,
        };
        // The longest size that the descriptor may have to hold.
        let room = layout.descriptor(u64::MAX).len() as u64;
        layout.room = room.next_multiple_of(BLOCK);
        Ok(Box::new(OvaWriter { disk, layout }))
    }
}

/// Stem of the files' names: the archive's name without its ending, as far as any system and any
/// reader of URIs takes it.
fn stem_of(file_name: Option<&ImageName>) -> String {
    let name = file_name.and_then(ImageName::as_str).unwrap_or_default();
    let dot = name.rfind('.').filter(|at| *at > 0);
    let stem = name.get(..dot.unwrap_or(name.len())).unwrap_or_default();
    let plain = |c: char| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') => c,
        _ => '_',
    };
    let mut plain: String = stem.trim_start_matches('.').chars().map(plain).collect();
    while plain.len() > 80 {
        plain.pop();
    }
    match plain.is_empty() {
        true => "appliance".to_owned(),
        false => plain,
    }
}

#[derive(Debug)]
struct OvaWriter {
    /// Writer of the disk, as if it were a file of its own.
    disk: Box<dyn ImageWriter>,
    layout: Layout,
}

/// Parts of the archive around the disk.
#[derive(Debug)]
struct Layout {
    options: OvaOptions,
    /// The machine's name.
    name: String,
    /// Stem of the files' names.
    stem: String,
    disk_name: String,
    /// Virtual size in bytes.
    capacity: u64,
    /// Bytes of the descriptor's file.
    room: u64,
}

impl Layout {
    fn descriptor(&self, file_size: u64) -> String {
        let disk = DiskText {
            file: &self.disk_name,
            file_size,
            capacity: self.capacity,
        };
        descriptor(&self.options, &self.name, disk)
    }

    /// The header of the file that is called after the archive, with this suffix.
    fn member(&self, suffix: &str, size: u64) -> Result<Vec<u8>> {
        file_header(&format!("{}{suffix}", self.stem), size, self.options.mtime)
    }

    /// Offset of the disk in the archive.
    fn base(&self) -> u64 {
        BLOCK + self.room + BLOCK
    }

    fn moved(&self, mut writes: Vec<Write>) -> Vec<Write> {
        let base = self.base();
        writes.iter_mut().for_each(|write| write.offset += base);
        writes
    }

    /// The lines of the manifest but for the last digest, and how many bytes that has.
    fn manifest(&self, algorithm: Algorithm, descriptor: &[u8]) -> Result<(String, u64)> {
        let word = algorithm.as_str().to_ascii_uppercase();
        let digest = algorithm.digest(descriptor)?.to_hex();
        let lines = format!(
            "{word}({}.ovf)= {digest}\n{word}({})= ",
            self.stem, self.disk_name
        );
        Ok((lines, 2 * algorithm.output_len() as u64))
    }
}

impl ImageWriter for OvaWriter {
    fn shape(&self) -> WriteShape {
        let mut shape = self.disk.shape();
        shape.preallocation = self.layout.moved(shape.preallocation);
        // The descriptor comes first and holds the final size of the disk.
        shape.forward = false;
        shape
    }

    fn encoder(&self) -> Option<Arc<dyn Encoder>> {
        self.disk.encoder()
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        let mut own = Vec::new();
        let placed = self.disk.place(run, &mut own)?;
        tables.append(&mut self.layout.moved(own));
        Ok(Placed {
            host: placed.host + self.layout.base(),
            ..placed
        })
    }

    fn finish(self: Box<Self>) -> Result<Finish> {
        let OvaWriter { disk, layout } = *self;
        let closed = disk.finish()?;
        let too_large = || Error::invalid("the archive is larger than any file");
        let size = closed.sizes.first().copied().unwrap_or(0);
        let base = layout.base();
        let end = size
            .checked_next_multiple_of(BLOCK)
            .and_then(|len| base.checked_add(len))
            .filter(|end| *end < i64::MAX as u64 - (1 << 20))
            .ok_or_else(too_large)?;

        let mut text = layout.descriptor(size).into_bytes();
        text.resize(usize::try_from(layout.room).unwrap_or(0), b'\n');

        let mut tables = layout.moved(closed.tables);
        tables.append(&mut layout.moved(closed.seal));
        let mut push = |offset, bytes| {
            tables.push(Write::new(0, offset, bytes));
        };
        push(base - BLOCK, layout.member("-disk1.vmdk", size)?);
        let mut seal = Vec::new();
        let mut next = end;
        if let Some(algorithm) = layout.options.manifest {
            let (lines, digest) = layout.manifest(algorithm, &text)?;
            let len = lines.len() as u64 + digest + 1;
            push(next, layout.member(".mf", len)?);
            let digest_at = next + BLOCK + lines.len() as u64;
            push(next + BLOCK, lines.into_bytes());
            seal.push(Write::new(
                0,
                digest_at,
                Payload::Digest {
                    algorithm,
                    start: base,
                    len: size,
                },
            ));
            push(digest_at + digest, b"\n".to_vec());
            next += BLOCK + len;
        }
        let total = next.next_multiple_of(BLOCK) + 2 * BLOCK;
        push(BLOCK, text);
        tables.push(Write::new(0, next, Payload::WrittenZeroes(total - next)));
        // An archive begins with it: without it the file is not an archive.
        seal.push(Write::new(0, 0, layout.member(".ovf", layout.room)?));
        Ok(Finish::new(tables, seal, vec![total]))
    }
}
