//! Compression of the grains of a stream: marker, zlib stream, padding (section "Stream-Optimized Compressed
//! Sparse Extents").

#[cfg(feature = "zlib")]
use zlib_rs::adler32::adler32;

use crate::codec::pack::{Method, Packer};
use crate::codec::{Pool, Unpacker};
use crate::error::{Error, Result};
use crate::formats::vmdk::header::{GRAIN_MARKER_LEN, Marker, SECTOR, SECTOR_LEN};
use crate::image::{Encoder, Form, Take};
use crate::packed::Codec;

use super::GRAIN;

/// Compresses every grain, even if it gets no shorter: a stream has no other grains.
#[derive(Debug)]
pub(super) struct GrainEncoder {
    packer: Packer,
    /// Set if compressed grains of a source are taken as they are: a level that is asked for is that of all grains.
    takes: bool,
    unpacker: Unpacker,
    grains: Pool<Vec<u8>>,
}

impl GrainEncoder {
    /// Level 5 comes within 0.1 % of the size of level 6, and is faster.
    pub(super) fn new(level: Option<u32>) -> Result<Self> {
        Ok(GrainEncoder {
            packer: Packer::new(method(level.unwrap_or(5))?),
            takes: level.is_none(),
            unpacker: Unpacker::deflate(),
            grains: Pool::default(),
        })
    }
}

impl Encoder for GrainEncoder {
    /// Section "Non-compressible data" of RFC 1951: what does not get shorter is stored in blocks that
    /// add five bytes to some thousands, and RFC 1950 adds six to them all.
    fn longest(&self) -> Option<u32> {
        let blocks = GRAIN.div_ceil(4096);
        let longest = GRAIN_MARKER_LEN as u64 + GRAIN + 5 * blocks + 6;
        u32::try_from(longest.next_multiple_of(SECTOR)).ok()
    }

    fn encode(&self, guest: u64, unit: &[u8], out: &mut Vec<u8>) -> Result<Form> {
        with_marker(guest, out, |out| self.packer.pack_always(unit, out))?;
        Ok(Form::Packed)
    }

    fn takes(&self, codec: Codec) -> Option<Take> {
        (self.takes && matches!(codec, Codec::Deflate | Codec::Zlib)).then_some(Take::Wrapped)
    }

    fn wrap(&self, guest: u64, codec: Codec, packed: &[u8], out: &mut Vec<u8>) -> Result<Form> {
        match codec {
            Codec::Zlib => with_marker(guest, out, |out| {
                out.extend_from_slice(packed);
                Ok(())
            })?,
            Codec::Deflate => {
                // The checksum is over the decompressed data, and the end of the stream gives its length.
                let found = self.grains.with(
                    || Ok::<_, Error>(Vec::new()),
                    |grain| {
                        grain.resize(GRAIN_LEN, 0);
                        let len = self.unpacker.unpack_whole(packed, grain).ok().flatten();
                        Ok(len.map(|len| (len, adler32(1, grain))))
                    },
                )?;
                let Some((len, checksum)) = found else {
                    return Ok(Form::Verbatim);
                };
                with_marker(guest, out, |out| {
                    out.extend_from_slice(&ZLIB_HEADER);
                    out.extend_from_slice(packed.get(..len).unwrap_or_default());
                    out.extend_from_slice(&checksum.to_be_bytes());
                    Ok(())
                })?;
            }
            Codec::Zstd => return Ok(Form::Verbatim),
        }
        Ok(Form::Packed)
    }
}

/// Deflate with a window of 32 KiB and the default level (RFC 1950, section 2.2).
const ZLIB_HEADER: [u8; 2] = [0x78, 0x9c];

const GRAIN_LEN: usize = 64 << 10;
const _: () = assert!(GRAIN_LEN as u64 == GRAIN);

/// Appends a grain: its marker, the data that `pack` appends, and padding to a whole sector.
fn with_marker(
    guest: u64,
    out: &mut Vec<u8>,
    pack: impl FnOnce(&mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    let start = out.len();
    out.resize(start + GRAIN_MARKER_LEN, 0);
    pack(out)?;
    let data = out.len() - start - GRAIN_MARKER_LEN;
    let size = u32::try_from(data).map_err(|_| Error::invalid("a grain is too long"))?;
    let marker = out.get_mut(start..).unwrap_or_default();
    Marker::val.put(marker, guest / SECTOR);
    Marker::size.put(marker, size);
    let len = (out.len() - start).next_multiple_of(SECTOR_LEN);
    out.resize(start + len, 0);
    Ok(())
}

/// Stands in where nothing is inflated, and so nothing summed.
#[cfg(not(feature = "zlib"))]
fn adler32(sum: u32, _: &[u8]) -> u32 {
    sum
}

#[cfg(feature = "zlib")]
fn method(level: u32) -> Result<Method> {
    Ok(Method::Zlib { level })
}

#[cfg(not(feature = "zlib"))]
fn method(_: u32) -> Result<Method> {
    Err(Error::unsupported(
        crate::formats::vmdk::VMDK,
        "writing subformat streamOptimized",
        "build with the feature zlib",
    ))
}
