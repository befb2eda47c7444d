//! Conversion: one source, read once, written as an image of any format, on every core.

mod behind;
mod claim;
mod destination;
mod digests;
mod engine;
mod forward;
mod input;
mod journal;
mod kept;
mod lane;
mod many;
mod options;
mod order;
#[cfg(feature = "plan")]
pub mod partition;
mod place;
mod plan;
mod prepare;
mod resume;
mod segment;
mod spec;
mod verify;

pub use input::Input;
pub use many::{Conversion, Outcome, content_digest};
pub use options::{ConvertOptions, Summary};
pub use spec::ImageSpec;

pub use crate::progress::{Cancel, Phase, Progress};
