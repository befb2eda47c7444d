//! The places of everything in an image, asked of its writer before anything is written.

use std::ffi::OsStr;
use std::path::Path;

use crate::convert::options::ConvertOptions;
use crate::convert::partition::Part;
use crate::error::{Error, Result};
use crate::image::{CreateOptions, Finish, ImageWriter, WriteRun, WriteShape};
use crate::name::{ImageName, quoted_path};

/// An image whose guest's bytes have their places from the start.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) shape: WriteShape,
    pub(super) finish: Finish,
    writer: Box<dyn ImageWriter>,
}

/// A run of guest bytes that lies in one piece in one file. Consecutive ones follow each other in the
/// disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) file: usize,
    pub(super) host: u64,
    pub(super) len: u64,
}

impl Layout {
    /// The layout of a disk of `size` bytes in files that are named after `file_name`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if parts of the image cannot be written apart, or if it is another one
    /// each time it is made.
    pub(super) fn of(
        options: &ConvertOptions,
        size: u64,
        file_name: Option<&OsStr>,
    ) -> Result<Self> {
        let mut create: CreateOptions = options.image.create.clone();
        create.virtual_size = size;
        create.file_name = file_name.map(|name| ImageName::from(Path::new(name)));
        let format = crate::formats::Formats::all().named(&options.image.format)?;
        let writer = format.create(&create)?;
        let shape = writer.shape();
        if !shape.settled || writer.encoder().is_some() {
            return Err(Error::invalid(format!(
                "this {} image cannot be written in parts; raw, fixed VHD, flat VMDK and fixed VDI can",
                format.id()
            )));
        }
        if !options.image.is_repeatable(size)? {
            return Err(Error::invalid(
                "an image whose identifiers are new ones each time cannot be written in parts",
            ));
        }
        let finish = format.create(&create)?.finish()?;
        if finish.sizes.len() != shape.files.len() {
            return Err(Error::invalid("the image writer lost count of its files"));
        }
        Ok(Layout {
            shape,
            finish,
            writer,
        })
    }

    /// The places of a part in the files.
    pub(super) fn stretches(&mut self, part: &Part) -> Result<Vec<Stretch>> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let (mut done, mut tables) = (0, Vec::new());
        while done < part.len {
            let run = WriteRun::Verbatim {
                guest: part.start + done,
                len: part.len - done,
            };
            let placed = self.writer.place(run, &mut tables)?;
            let len = placed.taken.min(part.len - done);
            if len == 0 || !tables.is_empty() {
                return Err(Error::invalid(
                    "the image writer does not keep to the places that it announced",
                ));
            }
            done += len;
            match stretches.last_mut() {
                Some(last) if last.file == placed.file && last.host + last.len == placed.host => {
                    last.len += len;
                }
                _ => stretches.push(Stretch {
                    file: placed.file,
                    host: placed.host,
                    len,
                }),
            }
        }
        Ok(stretches)
    }

    /// Fails if a device of `room` bytes is too small for the image.
    pub(super) fn check_room(&self, path: &Path, room: u64) -> Result<()> {
        let sizes = self.finish.sizes.iter().copied();
        let size = sizes.max().unwrap_or(0).max(self.shape.virtual_size);
        if room < size {
            return Err(Error::invalid(format!(
                "{} is too small: it has {room} bytes and the image has {size}",
                quoted_path(path)
            )));
        }
        Ok(())
    }
}
