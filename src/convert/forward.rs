//! Streams as the target: pipes, sockets, uploads.

use std::io;
use std::sync::{Arc, Mutex};

use crate::convert::claim::Cursor;
use crate::convert::destination::Destination;
use crate::convert::input::Input;
use crate::convert::lane::Remake;
use crate::convert::options::{ConvertOptions, Summary};
use crate::convert::plan::{InOrder, Performance, Plan};
use crate::convert::segment::capacity;
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::image::{ImageWriter, WriteShape};
use crate::lock::lock;
use crate::name::ImageName;
use crate::storage::ForwardTarget;
use crate::target::BlockTarget;

/// A stream whose bytes are digested on their way.
struct Hashing<W>(W, Arc<Mutex<Vec<Hasher>>>);

impl<W: io::Write> io::Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.0.write(buf)?;
        let taken = buf.get(..n).unwrap_or_default();
        for hasher in lock(&self.1).iter_mut() {
            hasher.update(taken);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl ConvertOptions {
    /// Converts `source` into a stream, from its first byte to its last, and flushes it. Small tables are written one by one: an upload may want a
    /// [`BufWriter`](io::BufWriter).
    ///
    /// A raw disk, a fixed VHD and a streamOptimized VMDK are written as they would be into a file.
    /// Other images begin with tables that tell where everything will be. For them the conversion is
    /// rehearsed first: the source is asked for its extents, twice in all, but read only once. What it calls
    /// data is then stored whole: zeros are not searched for in it, nor is it compared with a
    /// backing file that is not its own. A source that knows its holes gives the same image that a file
    /// would have got.
    ///
    /// While the writer waits for a stalled reader, the conversion waits, even if it is cancelled.
    ///
    /// A header goes out long before the data it speaks of: **a reader must not use the stream unless this
    /// returned without an error**.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], before anything is written, for options that the format does not have,
    /// for an image of several files, and for one whose layout depends on what packing the data comes to
    /// (a compressed qcow2); also if the extents of the source change meanwhile. [`Error::Io`] where
    /// the writer fails, with the kind [`BrokenPipe`](io::ErrorKind::BrokenPipe) where its reader went
    /// away; [`Error::Cancelled`], and what reading the source fails with.
    pub fn convert_to_writer<'a>(
        &self,
        source: impl Into<Input<'a>>,
        writer: impl io::Write + Send,
    ) -> Result<Summary> {
        let source = source.into();
        let layout = self.writer(source, None)?;
        let shape = layout.shape();
        self.check_streamable(layout.as_ref(), &shape)?;
        if self.job.resumable.is_some() {
            return Err(Error::invalid(
                "a conversion into a stream cannot be resumed: what was written is gone",
            ));
        }
        let mut hashers = Vec::new();
        for algorithm in &self.image.target_digests {
            hashers.push(Hasher::new(*algorithm)?);
        }
        let hashers = Arc::new(Mutex::new(hashers));
        let writer = Hashing(writer, Arc::clone(&hashers));
        let files: Vec<Arc<dyn BlockTarget + '_>> = vec![Arc::new(ForwardTarget::new(writer))];
        let planned = !shape.forward;
        if let Some(arriving) = source.arriving.filter(|_| planned) {
            if !arriving.spill()? {
                return Err(self.not_streamable(
                    "its tables come before the data, and that is known only when the source, a stream \
                     itself, has ended; allow a spill file",
                ));
            }
        }
        let layout: Box<dyn ImageWriter> = if planned {
            let ground = self.ground(source, &shape, &files, true);
            let (size, unit) = (shape.virtual_size, shape.unit);
            let mut cursor = Cursor::new(source, vec![&ground], false, size, unit, capacity(unit));
            let stopped = || self.job.work.cancel.is_cancelled();
            let plan = Plan::rehearse(layout, &mut cursor, &stopped)?;
            let plan = plan.ok_or_else(|| {
                self.not_streamable("its data does not come to stand in the order of the disk")
            })?;
            Box::new(Performance::new(self.writer(source, None)?, plan))
        } else {
            Box::new(InOrder(layout))
        };
        let mut target = self.target(source, layout, files, true);
        (target.sync, target.whole) = (true, planned);
        target.remake = target
            .remake
            .map(|remake| -> Remake { Box::new(move |size| Ok(Box::new(InOrder(remake(size)?)))) });
        let mut summary = self.run(source, Destination::of(target))?;
        let hashers = std::mem::take(&mut *lock(&hashers));
        summary.target_digests = hashers.into_iter().map(Hasher::finish).collect();
        Ok(summary)
    }

    /// Fails if an image is none that a stream can hold.
    fn check_streamable(&self, writer: &dyn ImageWriter, shape: &WriteShape) -> Result<()> {
        match shape.files.len() {
            1 => {}
            files => return Err(self.not_streamable(&format!("it consists of {files} files"))),
        }
        if writer.encoder().is_some() && !shape.forward {
            return Err(self.not_streamable(
                "it is compressed, and its tables say where everything is before anything is packed",
            ));
        }
        Ok(())
    }

    fn not_streamable(&self, why: &str) -> Error {
        let mut what = self.image.format.clone();
        for (name, value) in &self.image.create.options {
            what.push_str(&format!(" {name}={value}"));
        }
        let what = ImageName::from(what.as_str());
        Error::invalid(format!(
            "an image of format {} cannot be written to a stream: {why}; write it to a file, or choose one \
             that is made for streams (vmdk with subformat=streamOptimized)",
            what.escaped()
        ))
    }
}
