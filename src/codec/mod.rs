//! Compression and decompression of units of data: pure functions of bytes, with their contexts kept for reuse.

pub(crate) mod pack;
mod pool;
mod unpack;

pub(crate) use pool::Pool;
pub(crate) use unpack::{UnpackError, Unpacker, ZlibUnpacker};
