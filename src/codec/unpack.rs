//! Decompressing one unit into a buffer of exactly its size.

use std::borrow::Cow;

/// Why a unit could not be unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UnpackError {
    /// The compressed bytes are damaged, with the problem.
    Damaged(Cow<'static, str>),
    /// The crate was built without this feature.
    #[cfg_attr(
        all(feature = "zlib", feature = "zstd"),
        allow(dead_code, reason = "all are built")
    )]
    NotBuilt(&'static str),
}

#[cfg_attr(
    not(any(feature = "zlib", feature = "zstd")),
    allow(dead_code, reason = "no codec")
)]
fn damaged(problem: impl Into<Cow<'static, str>>) -> UnpackError {
    UnpackError::Damaged(problem.into())
}

/// Decompresses units of one codec.
#[derive(Debug)]
pub(crate) enum Unpacker {
    /// Deflate without a header.
    Deflate(deflate::Contexts),
    /// Zstandard frames.
    Zstd(zstandard::Contexts),
}

// Without a codec its contexts are a unit.
#[allow(clippy::default_constructed_unit_structs)]
impl Unpacker {
    pub(crate) fn deflate() -> Self {
        Unpacker::Deflate(deflate::Contexts::default())
    }

    pub(crate) fn zstd() -> Self {
        Unpacker::Zstd(zstandard::Contexts::default())
    }

    /// Fills all of `unit` from the start of `packed`; what follows in `packed` is ignored. Nothing
    /// is ever written or allocated beyond `unit`, whatever the packed bytes claim.
    pub(crate) fn unpack(&self, packed: &[u8], unit: &mut [u8]) -> Result<(), UnpackError> {
        match self {
            Unpacker::Deflate(contexts) => contexts.unpack(packed, unit),
            Unpacker::Zstd(contexts) => contexts.unpack(packed, unit),
        }
    }

    /// As [`unpack`](Self::unpack), for a deflate stream: how many bytes of `packed` it is, if it ends
    /// where `unit` is full.
    pub(crate) fn unpack_whole(
        &self,
        packed: &[u8],
        unit: &mut [u8],
    ) -> Result<Option<usize>, UnpackError> {
        match self {
            Unpacker::Deflate(contexts) => contexts.unpack_whole(packed, unit),
            Unpacker::Zstd(_) => Ok(None),
        }
    }
}

/// Decompresses zlib streams (RFC 1950): deflate with a header and a checksum.
#[derive(Debug, Default)]
pub(crate) struct ZlibUnpacker(deflate::Contexts);

impl ZlibUnpacker {
    /// Unpacks the one whole stream at the start of `packed` and returns how many bytes of `unit` it
    /// fills. A stream that goes on beyond `unit`, is cut short or fails its checksum is damaged.
    pub(crate) fn unpack(&self, packed: &[u8], unit: &mut [u8]) -> Result<usize, UnpackError> {
        self.0.unpack_zlib(packed, unit)
    }
}

#[cfg(feature = "zlib")]
mod deflate {
    use flate2::{Decompress, FlushDecompress, Status};

    use super::{UnpackError, damaged, fast};
    use crate::codec::Pool;

    #[derive(Debug, Default)]
    pub(crate) struct Contexts(Pool<Decompress>, fast::Contexts);

    impl Contexts {
        pub(super) fn unpack(&self, packed: &[u8], unit: &mut [u8]) -> Result<(), UnpackError> {
            if self.1.unpack(packed, unit) {
                return Ok(());
            }
            self.0.with(
                || Ok(Decompress::new(false)),
                |context| {
                    context.reset(false);
                    let status = context.decompress(packed, unit, FlushDecompress::Finish);
                    let made = context.total_out();
                    let want = unit.len() as u64;
                    match status {
                        // A full unit is enough: a stream that would go on is cut, as QEMU cuts it.
                        Ok(_) if made == want => Ok(()),
                        Ok(Status::StreamEnd) => Err(damaged(format!(
                            "the stream ends after {made} of {want} bytes"
                        ))),
                        Ok(_) => Err(damaged(format!("cut short after {made} of {want} bytes"))),
                        Err(_) => Err(damaged("not a valid deflate stream")),
                    }
                },
            )
        }

        pub(super) fn unpack_whole(
            &self,
            packed: &[u8],
            unit: &mut [u8],
        ) -> Result<Option<usize>, UnpackError> {
            self.0.with(
                || Ok(Decompress::new(false)),
                |context| {
                    context.reset(false);
                    let status = context.decompress(packed, unit, FlushDecompress::Finish);
                    let whole = matches!(status, Ok(Status::StreamEnd))
                        && context.total_out() == unit.len() as u64;
                    let len = usize::try_from(context.total_in()).ok();
                    Ok(len.filter(|_| whole))
                },
            )
        }

        pub(super) fn unpack_zlib(
            &self,
            packed: &[u8],
            unit: &mut [u8],
        ) -> Result<usize, UnpackError> {
            if let Some(made) = self.1.unpack_zlib(packed, unit) {
                return Ok(made);
            }
            self.0.with(
                || Ok(Decompress::new(true)),
                |context| {
                    context.reset(true);
                    let status = context.decompress(packed, unit, FlushDecompress::Finish);
                    let made = usize::try_from(context.total_out()).unwrap_or(usize::MAX);
                    match status {
                        Ok(Status::StreamEnd) => Ok(made),
                        Ok(_) if made == unit.len() => Err(damaged(format!(
                            "the stream goes on after {made} bytes, or ends without its checksum"
                        ))),
                        Ok(_) => Err(damaged(format!("cut short after {made} bytes"))),
                        Err(_) => Err(damaged("not a valid zlib stream")),
                    }
                },
            )
        }
    }
}

/// A faster way for whole streams in a buffer, by the C library libdeflate. Whatever it does not like is
/// looked at again, by the one that tells what is wrong.
#[cfg(all(feature = "zlib", feature = "libdeflate"))]
mod fast {
    use libdeflater::Decompressor;

    use crate::codec::Pool;

    #[derive(Debug, Default)]
    pub(super) struct Contexts(Pool<Decompressor>);

    impl Contexts {
        pub(super) fn unpack(&self, packed: &[u8], unit: &mut [u8]) -> bool {
            let made = self.0.with(
                || Ok(Decompressor::new()),
                |context| context.deflate_decompress(packed, unit),
            );
            made == Ok(unit.len())
        }

        pub(super) fn unpack_zlib(&self, packed: &[u8], unit: &mut [u8]) -> Option<usize> {
            let made = self.0.with(
                || Ok(Decompressor::new()),
                |context| context.zlib_decompress(packed, unit),
            );
            made.ok()
        }
    }
}

#[cfg(all(feature = "zlib", not(feature = "libdeflate")))]
mod fast {
    #[derive(Debug, Default)]
    pub(super) struct Contexts;

    impl Contexts {
        pub(super) fn unpack(&self, _: &[u8], _: &mut [u8]) -> bool {
            false
        }

        pub(super) fn unpack_zlib(&self, _: &[u8], _: &mut [u8]) -> Option<usize> {
            None
        }
    }
}

#[cfg(not(feature = "zlib"))]
mod deflate {
    use super::UnpackError;

    #[derive(Debug, Default)]
    pub(crate) struct Contexts;

    impl Contexts {
        pub(super) fn unpack(&self, _: &[u8], _: &mut [u8]) -> Result<(), UnpackError> {
            Err(UnpackError::NotBuilt("zlib"))
        }

        pub(super) fn unpack_whole(
            &self,
            _: &[u8],
            _: &mut [u8],
        ) -> Result<Option<usize>, UnpackError> {
            Err(UnpackError::NotBuilt("zlib"))
        }

        pub(super) fn unpack_zlib(&self, _: &[u8], _: &mut [u8]) -> Result<usize, UnpackError> {
            Err(UnpackError::NotBuilt("zlib"))
        }
    }
}

#[cfg(feature = "zstd")]
mod zstandard {
    use zstd::zstd_safe::{DCtx, find_frame_compressed_size, get_error_name};

    use super::{UnpackError, damaged};
    use crate::codec::Pool;

    #[derive(Debug, Default)]
    pub(crate) struct Contexts(Pool<DCtx<'static>>);

    impl Contexts {
        pub(super) fn unpack(&self, packed: &[u8], unit: &mut [u8]) -> Result<(), UnpackError> {
            let want = unit.len();
            self.0.with(
                || DCtx::try_create().ok_or_else(|| damaged("no memory for a decoder")),
                |context| {
                    let (mut rest, mut made) = (packed, 0);
                    // A unit may be several frames, and what follows the last one is padding.
                    while let Some(room) = unit.get_mut(made..).filter(|room| !room.is_empty()) {
                        let frame_len = find_frame_compressed_size(rest).unwrap_or(0);
                        let Some((frame, after)) = rest
                            .split_at_checked(frame_len)
                            .filter(|(frame, _)| !frame.is_empty())
                        else {
                            let problem = format!("no whole frame after {made} of {want} bytes");
                            return Err(damaged(problem));
                        };
                        made += context
                            .decompress(room, frame)
                            .map_err(|code| damaged(get_error_name(code)))?;
                        rest = after;
                    }
                    Ok(())
                },
            )
        }
    }
}

#[cfg(not(feature = "zstd"))]
mod zstandard {
    use super::UnpackError;

    #[derive(Debug, Default)]
    pub(crate) struct Contexts;

    impl Contexts {
        pub(super) fn unpack(&self, _: &[u8], _: &mut [u8]) -> Result<(), UnpackError> {
            Err(UnpackError::NotBuilt("zstd"))
        }
    }
}
