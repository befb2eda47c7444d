//! Packing clusters (section "Compressed Clusters Descriptor" and the header's `compression_type`).

use crate::codec::pack::{Method, Packer};
use crate::error::{Error, Result};
#[cfg(not(all(feature = "zlib", feature = "zstd")))]
use crate::formats::qcow2::QCOW2;
use crate::formats::qcow2::header::CompressionType;
use crate::image::{Encoder, Form, Take};
use crate::packed::Codec;

use super::options::Qcow2Options;

/// Compresses whole clusters. A cluster that does not get shorter is stored as it is: readers expect
/// compressed data to be shorter than a cluster.
#[derive(Debug)]
pub(super) struct ClusterEncoder {
    packer: Packer,
    /// Codec whose data is copied compressed, unless a level was asked for.
    takes: Option<Codec>,
}

impl ClusterEncoder {
    pub(super) fn new(options: &Qcow2Options) -> Result<Self> {
        let level = options.compression_level;
        let method = match options.compression_type {
            CompressionType::Zlib => deflate(level)?,
            CompressionType::Zstd => zstandard(level)?,
        };
        let codec = match options.compression_type {
            CompressionType::Zlib => Codec::Deflate,
            CompressionType::Zstd => Codec::Zstd,
        };
        Ok(ClusterEncoder {
            packer: Packer::new(method),
            takes: level.is_none().then_some(codec),
        })
    }
}

impl Encoder for ClusterEncoder {
    fn encode(&self, _: u64, unit: &[u8], out: &mut Vec<u8>) -> Result<Form> {
        Ok(match self.packer.pack(unit, out)? {
            true => Form::Packed,
            false => Form::Verbatim,
        })
    }

    fn takes(&self, codec: Codec) -> Option<Take> {
        (self.takes == Some(codec)).then_some(Take::AsTheyAre)
    }
}

/// The level, within what the codec has.
fn level_within(level: u32, least: u32, most: u32) -> Result<u32> {
    if (least..=most).contains(&level) {
        return Ok(level);
    }
    Err(Error::invalid(format!(
        "option compression_level is {level}, but has to be {least} to {most}"
    )))
}

/// Readers give deflate a window of 4 KiB. Level 1 is left out: it compresses badly with so small a window.
/// Level 4 comes within 1 % of the size of level 6, in seven eighths of its time.
fn deflate(level: Option<u32>) -> Result<Method> {
    let level = level_within(level.unwrap_or(4), 2, 9)?;
    #[cfg(feature = "zlib")]
    return Ok(Method::Deflate {
        level,
        window_bits: 12,
    });
    #[cfg(not(feature = "zlib"))]
    return Err(missing(
        level,
        "compression type zlib",
        "build with the feature zlib",
    ));
}

fn zstandard(level: Option<u32>) -> Result<Method> {
    let level = level_within(level.unwrap_or(3), 1, 22)?;
    #[cfg(feature = "zstd")]
    return Ok(Method::Zstd {
        level: i32::try_from(level).unwrap_or(3),
    });
    #[cfg(not(feature = "zstd"))]
    return Err(missing(
        level,
        "compression type zstd",
        "build with the feature zstd",
    ));
}

#[cfg(not(all(feature = "zlib", feature = "zstd")))]
fn missing(_: u32, feature: &str, hint: &'static str) -> Error {
    Error::unsupported(QCOW2, feature.to_owned(), hint)
}
