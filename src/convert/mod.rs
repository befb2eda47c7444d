//! Conversion: one source, read once, written as an image of any format, on every core.

mod claim;
mod destination;
mod engine;
mod options;
mod place;
mod prepare;
mod segment;

pub use options::{Cancel, ConvertOptions, Progress, Summary};
