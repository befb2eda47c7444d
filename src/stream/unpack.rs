//! Compressed streams: gzip, xz, Zstandard. The bytes are decompressed as they arrive.

use std::fmt;

use crate::detect::magic::{self, Told};
use crate::error::{Error, Result};
use crate::limits::Limits;

use super::watch::Watch;

/// Compression of a whole stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Packing {
    /// gzip (RFC 1952), members one behind the other.
    Gzip,
    /// xz, streams one behind the other.
    Xz,
    /// Zstandard (RFC 8878), frames one behind the other.
    Zstd,
}

type ToldBy = fn(&[u8]) -> Told;

const SIGNATURES: [(Packing, ToldBy); 3] = [
    (Packing::Gzip, |start| magic::GZIP.told_by(start)),
    (Packing::Xz, |start| magic::XZ.told_by(start)),
    (Packing::Zstd, magic::zstd_told_by),
];

impl Packing {
    /// Its name, by which [`StreamOptions::allow`](super::StreamOptions::allow) knows it.
    pub fn name(self) -> &'static str {
        match self {
            Packing::Gzip => "gzip",
            Packing::Xz => "xz",
            Packing::Zstd => "zstd",
        }
    }

    /// The compression of a stream with these first bytes. If they are too few to tell and are not the
    /// `last`, an error with the number that is needed.
    pub(super) fn of(start: &[u8], last: bool) -> std::result::Result<Option<Self>, usize> {
        let mut needed = Ok(None);
        for (packing, told_by) in SIGNATURES {
            match told_by(start) {
                Told::At(_) => return Ok(Some(packing)),
                Told::Skips(_) if last => return Ok(Some(packing)),
                Told::Needs(len) | Told::Skips(len) if !last => {
                    needed = Err(needed.err().map_or(len, |least: usize| least.min(len)));
                }
                _ => {}
            }
        }
        needed
    }
}

/// A compressed stream, and the inspection of its content.
pub(super) struct Unpacked {
    pub(super) packing: Packing,
    pub(super) watch: Watch,
    decoder: Decoder,
    limits: Limits,
    /// Reason why the rest is not decompressed.
    pub(super) gave_up: Option<String>,
}

enum Decoder {
    #[cfg(feature = "zlib")]
    Gzip(Box<flate2::write::MultiGzDecoder<Vec<u8>>>),
    #[cfg(feature = "xz")]
    Xz(Box<xz::Decoder>),
    #[cfg(feature = "zstd")]
    /// The decoder, and whether a frame has ended and no other has begun.
    Zstd(Box<zstd::stream::raw::Decoder<'static>>, bool),
    #[allow(dead_code, reason = "all are built")]
    NotBuilt(&'static str),
}

/// Bytes that are decompressed at once.
#[cfg(any(feature = "xz", feature = "zstd"))]
const STEP: usize = 64 << 10;
/// Compressed bytes that are fed at once. Their content, at most a thousand times as much for gzip, is in
/// memory for a moment.
const PIECE: usize = 512;

impl fmt::Debug for Unpacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacked")
            .field("packing", &self.packing)
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}

impl Unpacked {
    pub(super) fn new(packing: Packing, watch: Watch, limits: &Limits) -> Self {
        let (decoder, gave_up) = match decoder(packing, limits) {
            Ok(decoder) => (decoder, None),
            Err(why) => (Decoder::NotBuilt(""), Some(why)),
        };
        let gave_up = match &decoder {
            Decoder::NotBuilt(feature) if gave_up.is_none() => Some(format!(
                "unpacking {} needs the feature {feature}",
                packing.name()
            )),
            _ => gave_up,
        };
        Unpacked {
            packing,
            watch,
            decoder,
            limits: limits.clone(),
            gave_up,
        }
    }

    /// Takes the next compressed bytes. Damage ends the decompression and is told at the end.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> Result<()> {
        for piece in chunk.chunks(PIECE) {
            if self.gave_up.is_some() {
                return Ok(());
            }
            self.step(piece)?;
        }
        Ok(())
    }

    fn step(&mut self, piece: &[u8]) -> Result<()> {
        let Unpacked {
            decoder,
            watch,
            limits,
            ..
        } = self;
        let mut refused = None;
        let mut take = |bytes: &[u8]| -> std::result::Result<(), String> {
            let after = watch.position().saturating_add(bytes.len() as u64);
            if after > limits.unpacked_bytes {
                return Err(format!(
                    "it unpacks to more than {} bytes, the limit unpacked_bytes",
                    limits.unpacked_bytes
                ));
            }
            watch.feed(bytes).map_err(|error| {
                refused = Some(error);
                String::new()
            })
        };
        let done = decoder.step(piece, &mut take);
        match (refused, done) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(()),
            (None, Err(why)) => {
                self.gave_up = Some(why);
                Ok(())
            }
        }
    }

    /// Ends the compressed stream. One that is cut short gives up.
    pub(super) fn finish(&mut self) {
        if self.gave_up.is_none() && !self.decoder.is_at_end() {
            self.gave_up = Some("it is cut short".to_owned());
        }
    }
}

type Taken = std::result::Result<(), String>;

#[cfg_attr(
    not(all(feature = "zlib", feature = "xz", feature = "zstd")),
    allow(unused_variables, reason = "not all are built")
)]
impl Decoder {
    fn step(&mut self, piece: &[u8], take: &mut dyn FnMut(&[u8]) -> Taken) -> Taken {
        match self {
            #[cfg(feature = "zlib")]
            Decoder::Gzip(decoder) => {
                use std::io::Write;
                let written = decoder.write_all(piece).and_then(|()| decoder.flush());
                written.map_err(|e| e.to_string())?;
                let bytes = std::mem::take(decoder.get_mut());
                take(&bytes)
            }
            #[cfg(feature = "xz")]
            Decoder::Xz(decoder) => decoder.step(piece, take),
            #[cfg(feature = "zstd")]
            Decoder::Zstd(decoder, at_end) => zstandard(decoder, at_end, piece, take),
            Decoder::NotBuilt(_) => Ok(()),
        }
    }

    fn is_at_end(&mut self) -> bool {
        match self {
            #[cfg(feature = "zlib")]
            Decoder::Gzip(decoder) => decoder.try_finish().is_ok(),
            #[cfg(feature = "xz")]
            Decoder::Xz(decoder) => decoder.is_at_end(),
            #[cfg(feature = "zstd")]
            Decoder::Zstd(_, at_end) => *at_end,
            Decoder::NotBuilt(_) => true,
        }
    }
}

fn decoder(packing: Packing, limits: &Limits) -> std::result::Result<Decoder, String> {
    let _ = limits;
    Ok(match packing {
        #[cfg(feature = "zlib")]
        Packing::Gzip => Decoder::Gzip(Box::new(flate2::write::MultiGzDecoder::new(Vec::new()))),
        #[cfg(not(feature = "zlib"))]
        Packing::Gzip => Decoder::NotBuilt("zlib"),
        #[cfg(feature = "xz")]
        Packing::Xz => Decoder::Xz(Box::new(xz::Decoder::new(limits))),
        #[cfg(not(feature = "xz"))]
        Packing::Xz => Decoder::NotBuilt("xz"),
        #[cfg(feature = "zstd")]
        Packing::Zstd => {
            let mut decoder = zstd::stream::raw::Decoder::new().map_err(|e| e.to_string())?;
            let window = limits.window_bytes.clamp(1 << 10, 1 << 31).ilog2();
            decoder
                .set_parameter(zstd::stream::raw::DParameter::WindowLogMax(window))
                .map_err(|e| e.to_string())?;
            Decoder::Zstd(Box::new(decoder), false)
        }
        #[cfg(not(feature = "zstd"))]
        Packing::Zstd => Decoder::NotBuilt("zstd"),
    })
}

#[cfg(feature = "zstd")]
fn zstandard(
    decoder: &mut zstd::stream::raw::Decoder<'static>,
    at_end: &mut bool,
    mut piece: &[u8],
    take: &mut dyn FnMut(&[u8]) -> Taken,
) -> Taken {
    use zstd::stream::raw::Operation;
    let mut out = vec![0; STEP];
    loop {
        let status = decoder
            .run_on_buffers(piece, &mut out)
            .map_err(|e| e.to_string())?;
        piece = piece.get(status.bytes_read..).unwrap_or_default();
        take(out.get(..status.bytes_written).unwrap_or_default())?;
        if status.bytes_read > 0 || status.bytes_written > 0 {
            *at_end = status.remaining == 0;
        }
        let full = status.bytes_written == out.len();
        if piece.is_empty() && !full {
            return Ok(());
        }
        if status.bytes_read == 0 && status.bytes_written == 0 {
            return Err("its decoder makes no progress".to_owned());
        }
    }
}

#[cfg(feature = "xz")]
mod xz {
    //! xz streams, with the padding that may stand between them.

    use xz4rust::{XzDecoder, XzNextBlockResult};

    use super::{STEP, Taken};
    use crate::limits::Limits;

    pub(super) struct Decoder {
        inner: XzDecoder<'static>,
        /// True between two streams.
        between: bool,
    }

    impl Decoder {
        pub(super) fn new(limits: &Limits) -> Self {
            let most = usize::try_from(limits.window_bytes).unwrap_or(usize::MAX);
            Decoder {
                inner: XzDecoder::with_alloc_dict_size(4096.min(most), most),
                between: false,
            }
        }

        pub(super) fn is_at_end(&self) -> bool {
            self.between
        }

        pub(super) fn step(
            &mut self,
            mut piece: &[u8],
            take: &mut dyn FnMut(&[u8]) -> Taken,
        ) -> Taken {
            let mut out = vec![0; STEP];
            loop {
                if self.between {
                    let padding = piece.iter().take_while(|byte| **byte == 0).count();
                    piece = piece.get(padding..).unwrap_or_default();
                    if piece.is_empty() {
                        return Ok(());
                    }
                    self.inner.reset();
                    self.between = false;
                }
                let done = self.inner.decode(piece, &mut out);
                let done = done.map_err(|e| format!("its xz stream is damaged ({e})"))?;
                let (read, written) = (done.input_consumed(), done.output_produced());
                piece = piece.get(read..).unwrap_or_default();
                take(out.get(..written).unwrap_or_default())?;
                if let XzNextBlockResult::EndOfStream(..) = done {
                    self.between = true;
                } else if piece.is_empty() && written < out.len() {
                    return Ok(());
                } else if read == 0 && written == 0 {
                    return Err("its decoder makes no progress".to_owned());
                }
            }
        }
    }
}

/// The error of a stream that could not be decompressed to its end.
pub(super) fn unreadable(packing: Packing, why: &str) -> Error {
    Error::invalid(format!(
        "the {} stream was not decompressed to its end: {why}",
        packing.name()
    ))
}
