//! Compression, one unit at a time, from any thread.

#![cfg_attr(
    not(any(feature = "zlib", feature = "zstd")),
    allow(
        dead_code,
        clippy::ptr_arg,
        unused_imports,
        unused_variables,
        reason = "there is no codec"
    )
)]

use crate::codec::Pool;
use crate::error::{Error, Result};

/// The compression of units. The level is part of it: contexts are pooled by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// Deflate without a header and with a window of `1 << window_bits` bytes.
    #[cfg(feature = "zlib")]
    Deflate { level: u32, window_bits: u8 },
    /// A zlib stream (RFC 1950): deflate with a header, a checksum and the largest window.
    #[cfg(feature = "zlib")]
    Zlib { level: u32 },
    /// One Zstandard frame.
    #[cfg(feature = "zstd")]
    Zstd { level: i32 },
}

/// Compresses units, with contexts that are made once and used again.
#[derive(Debug)]
pub(crate) struct Packer {
    method: Method,
    contexts: Pool<Context>,
}

impl Packer {
    pub(crate) fn new(method: Method) -> Self {
        Packer {
            method,
            contexts: Pool::default(),
        }
    }

    /// Appends the compressed form of `unit` to `out` if it is shorter than the unit, and nothing
    /// otherwise. Returns whether it is.
    ///
    /// # Errors
    /// [`Error::Io`] with what the codec says.
    pub(crate) fn pack(&self, unit: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let start = out.len();
        let done = self.contexts.with(
            || Context::new(self.method),
            |context| context.pack(unit, out),
        );
        let shorter = matches!(done, Ok(true)) && out.len() - start < unit.len();
        if !shorter {
            out.truncate(start);
        }
        done.map(|_| shorter)
    }

    /// Appends the compressed form of `unit` to `out`, even if it is no shorter.
    ///
    /// # Errors
    /// [`Error::Io`] with what the codec says.
    pub(crate) fn pack_always(&self, unit: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let whole = self.contexts.with(
            || Context::new(self.method),
            |context| context.pack(unit, out),
        )?;
        if !whole {
            return Err(Error::invalid("the codec did not compress a whole unit"));
        }
        Ok(())
    }
}

enum Context {
    #[cfg(feature = "zlib")]
    Deflate(flate2::Compress),
    #[cfg(feature = "zstd")]
    Zstd(zstd::bulk::Compressor<'static>),
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Context")
    }
}

impl Context {
    fn new(method: Method) -> Result<Self> {
        match method {
            #[cfg(feature = "zlib")]
            Method::Deflate { level, window_bits } => {
                let level = flate2::Compression::new(level);
                let new = flate2::Compress::new_with_window_bits(level, false, window_bits);
                Ok(Context::Deflate(new))
            }
            #[cfg(feature = "zlib")]
            Method::Zlib { level } => {
                let level = flate2::Compression::new(level);
                Ok(Context::Deflate(flate2::Compress::new(level, true)))
            }
            #[cfg(feature = "zstd")]
            Method::Zstd { level } => {
                let new = zstd::bulk::Compressor::new(level);
                new.map(Context::Zstd).map_err(failed)
            }
        }
    }

    /// Appends the compressed form and returns whether it is all there. The room is always enough for
    /// units that grow: zlib-rs was seen to fail with little of it.
    fn pack(&mut self, unit: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        match self {
            #[cfg(feature = "zlib")]
            Context::Deflate(deflate) => {
                out.reserve(unit.len() + unit.len() / 4 + 1024);
                deflate.reset();
                let status = deflate.compress_vec(unit, out, flate2::FlushCompress::Finish);
                let status = status.map_err(|e| failed(std::io::Error::other(e)))?;
                Ok(status == flate2::Status::StreamEnd)
            }
            #[cfg(feature = "zstd")]
            Context::Zstd(compressor) => {
                out.reserve(zstd::zstd_safe::compress_bound(unit.len()));
                let end = out.len() as u64;
                let mut to = std::io::Cursor::new(out);
                to.set_position(end);
                compressor
                    .compress_to_buffer(unit, &mut to)
                    .map_err(failed)?;
                Ok(true)
            }
            #[cfg(not(any(feature = "zlib", feature = "zstd")))]
            _ => Ok(false),
        }
    }
}

#[cfg(any(feature = "zlib", feature = "zstd"))]
fn failed(source: std::io::Error) -> Error {
    Error::io("compress a unit", source)
}

#[cfg(all(test, any(feature = "zlib", feature = "zstd")))]
mod tests {
    use super::*;

    fn methods() -> Vec<Method> {
        let mut methods = Vec::new();
        #[cfg(feature = "zlib")]
        methods.extend((2..=9).map(|level| Method::Deflate {
            level,
            window_bits: 12,
        }));
        #[cfg(feature = "zlib")]
        methods.extend((1..=9).map(|level| Method::Zlib { level }));
        #[cfg(feature = "zstd")]
        methods.extend([1, 3, 19].map(|level| Method::Zstd { level }));
        methods
    }

    fn noise(len: usize, mut state: u32) -> Vec<u8> {
        let step = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        };
        std::iter::repeat_with(step).take(len).collect()
    }

    #[allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a helper of tests"
    )]
    fn unpack(method: Method, packed: &[u8], len: usize) -> Vec<u8> {
        match method {
            #[cfg(feature = "zlib")]
            Method::Deflate { window_bits, .. } => {
                let mut out = Vec::with_capacity(len + 1);
                let mut inflate = flate2::Decompress::new_with_window_bits(false, window_bits);
                let done =
                    inflate.decompress_vec(packed, &mut out, flate2::FlushDecompress::Finish);
                assert_eq!(done.unwrap(), flate2::Status::StreamEnd);
                out
            }
            #[cfg(feature = "zlib")]
            Method::Zlib { .. } => {
                let mut out = vec![0; len];
                let made = crate::codec::ZlibUnpacker::default().unpack(packed, &mut out);
                assert_eq!(made, Ok(len));
                out
            }
            #[cfg(feature = "zstd")]
            Method::Zstd { .. } => zstd::bulk::decompress(packed, len).unwrap(),
        }
    }

    #[test]
    fn a_used_context_packs_as_a_new_one_does() {
        for method in methods() {
            let used = Packer::new(method);
            for (seed, len) in (7..).zip([512, 65_536, 4096, 256 << 10, 65_536]) {
                let mut unit = noise(len / 3, seed);
                unit.resize(len, b'x');
                let mut first = b"before".to_vec();
                assert!(used.pack(&unit, &mut first).unwrap(), "{method:?} {len}");
                let mut second = b"before".to_vec();
                assert!(Packer::new(method).pack(&unit, &mut second).unwrap());
                assert_eq!(first, second, "{method:?} {len}");
                assert_eq!(unpack(method, &first[6..], len), unit, "{method:?} {len}");
            }
        }
    }

    #[test]
    fn what_does_not_get_shorter_leaves_nothing_behind() {
        for method in methods() {
            let packer = Packer::new(method);
            for len in [512, 4096, 65_536] {
                let mut out = b"before".to_vec();
                assert!(
                    !packer.pack(&noise(len, 99), &mut out).unwrap(),
                    "{method:?}"
                );
                assert_eq!(out, b"before");
            }
        }
    }
}
