//! Compression: what formats pack their units with. No format is known here.

pub(crate) mod pack;
