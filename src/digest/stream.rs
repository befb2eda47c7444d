//! Digests of bytes on their way.

use std::io::{self, Read, Write};

use crate::digest::{Digest, Hasher};

/// A reader that passes its bytes on and takes them into a digest.
#[derive(Debug)]
pub struct DigestReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> DigestReader<R> {
    /// Reads from `inner` and feeds `hasher`.
    pub fn new(inner: R, hasher: Hasher) -> Self {
        DigestReader { inner, hasher }
    }

    /// The reader, and the digest of all that was read.
    pub fn finish(self) -> (R, Digest) {
        (self.inner, self.hasher.finish())
    }
}

impl<R: Read> Read for DigestReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// A writer that passes its bytes on and takes those that were accepted into a digest.
#[derive(Debug)]
pub struct DigestWriter<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> DigestWriter<W> {
    /// Writes to `inner` and feeds `hasher`.
    pub fn new(inner: W, hasher: Hasher) -> Self {
        DigestWriter { inner, hasher }
    }

    /// The writer, and the digest of all that was written.
    pub fn finish(self) -> (W, Digest) {
        (self.inner, self.hasher.finish())
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[cfg(feature = "checksum")]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    /// Takes, and gives, two bytes at a time.
    struct Slow(Vec<u8>);

    impl Read for Slow {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = buf.len().min(2).min(self.0.len());
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            Ok(n)
        }
    }

    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let n = buf.len().min(2);
            self.0.extend_from_slice(&buf[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_passes_is_what_is_digested() {
        let want = Algorithm::Md5.digest(b"passed on").unwrap();
        let hasher = || Hasher::new(Algorithm::Md5).unwrap();
        let mut reader = DigestReader::new(Slow(b"passed on".to_vec()), hasher());
        let mut writer = DigestWriter::new(Slow(Vec::new()), hasher());
        io::copy(&mut reader, &mut writer).unwrap();
        assert_eq!(reader.finish().1, want);
        let (Slow(written), digest) = writer.finish();
        assert_eq!((written.as_slice(), digest), (&b"passed on"[..], want));
    }
}
