//! The inspector as a reader that passes on what it reads.

use std::io::{self, Read};

use crate::error::{Error, Result};

use super::{StreamInspector, StreamReport};

/// Passes the bytes of another reader on, unchanged, and inspects them.
///
/// A read that brings the proof that the stream is not what it may be fails with an [`io::Error`] that
/// carries the [`Error`], and none of the bytes of that read are passed on. So does the read that finds
/// the end, where it is the end that proves it.
#[derive(Debug)]
pub struct InspectedReader<R> {
    inner: R,
    inspector: StreamInspector,
    report: Option<StreamReport>,
}

impl<R> InspectedReader<R> {
    pub(super) fn new(inner: R, inspector: StreamInspector) -> Self {
        InspectedReader {
            inner,
            inspector,
            report: None,
        }
    }

    /// The inspector, with all that is known so far.
    pub fn inspector(&self) -> &StreamInspector {
        &self.inspector
    }

    /// The report, once the stream was read to its end.
    pub fn report(&self) -> Option<&StreamReport> {
        self.report.as_ref()
    }

    /// The reader and the report. The stream counts as ended where reading stopped.
    ///
    /// # Errors
    /// As [`StreamInspector::finish`].
    pub fn finish(mut self) -> Result<(R, StreamReport)> {
        let report = match self.report {
            Some(report) => report,
            None => self.inspector.finish()?,
        };
        Ok((self.inner, report))
    }
}

impl<R: Read> Read for InspectedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.report.is_some() {
            return Ok(0);
        }
        let n = self.inner.read(buf)?;
        match buf.get(..n) {
            Some([]) if buf.is_empty() => {}
            Some([]) => self.report = Some(self.inspector.finish()?),
            Some(chunk) => self.inspector.feed(chunk)?,
            None => {
                return Err(Error::invalid("the reader returned more than was asked for").into());
            }
        }
        Ok(n)
    }
}
