//! Layout of a raw disk: every byte is at its guest offset.

use crate::error::{Error, Result};
use crate::image::{
    CreateOptions, Finish, ImageWriter, Payload, Placed, Write, WriteRun, WriteShape,
};

/// Space of a raw disk that is reserved on its file system before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Preallocation {
    /// None: zeros stay holes.
    #[default]
    Off,
    /// All of it, without writing it.
    Falloc,
    /// All of it, by writing zeros.
    Full,
}

/// Options of a new raw disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawOptions {
    /// Space that is reserved: `preallocation` = `off`, `falloc` or `full`.
    pub preallocation: Preallocation,
}

impl RawOptions {
    /// Parses the options.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that a raw disk does not have.
    pub fn parse(create: &CreateOptions) -> Result<Self> {
        if create.backing.is_some() {
            return Err(Error::invalid("a raw disk cannot have a backing file"));
        }
        if create.compress {
            return Err(Error::invalid("a raw disk cannot be compressed"));
        }
        let mut set = create.option_set("raw");
        let all = [
            Preallocation::Off,
            Preallocation::Falloc,
            Preallocation::Full,
        ];
        let chosen = set.word("preallocation", &["off", "falloc", "full"])?;
        set.finish()?;
        let preallocation = chosen.and_then(|i| all.get(i).copied()).unwrap_or_default();
        Ok(RawOptions { preallocation })
    }

    /// Makes the writer of such a disk of `virtual_size` bytes.
    ///
    /// # Errors
    /// None today.
    pub fn writer(self, virtual_size: u64) -> Result<Box<dyn ImageWriter>> {
        Ok(Box::new(RawWriter {
            virtual_size,
            preallocation: self.preallocation,
        }))
    }
}

#[derive(Debug)]
struct RawWriter {
    virtual_size: u64,
    preallocation: Preallocation,
}

impl ImageWriter for RawWriter {
    fn shape(&self) -> WriteShape {
        // 4 KiB is the block of nearly every file system: less does not save space.
        let mut shape = WriteShape::new(self.virtual_size, 512);
        shape.zero_unit = 4096;
        shape.plain = true;
        shape.forward = true;
        shape.settled = true;
        let payload = match self.preallocation {
            Preallocation::Off => return shape,
            Preallocation::Falloc => Payload::Allocate(self.virtual_size),
            Preallocation::Full => Payload::WrittenZeroes(self.virtual_size),
        };
        shape.preallocation.push(Write::new(0, 0, payload));
        shape
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        match run {
            WriteRun::Verbatim { guest, len } => Ok(Placed::new(0, guest, len)),
            WriteRun::Zero { guest, len } => {
                tables.push(Write::new(0, guest, Payload::Zeroes(len)));
                Ok(Placed::new(0, guest, len))
            }
            WriteRun::Packed { .. } | WriteRun::Copied { .. } => {
                Err(Error::invalid("a raw disk cannot be compressed"))
            }
        }
    }

    fn finish(self: Box<Self>) -> Result<Finish> {
        Ok(Finish::new(Vec::new(), Vec::new(), vec![self.virtual_size]))
    }
}
