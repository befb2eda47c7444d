//! Pages about the use of this library.

#[doc = include_str!("images.md")]
pub mod images {}

#[doc = include_str!("streams.md")]
pub mod streams {}

#[doc = include_str!("async_code.md")]
pub mod async_code {}

#[doc = include_str!("machine.md")]
pub mod machine {}

#[doc = include_str!("errors.md")]
pub mod errors {}

#[doc = include_str!("safety.md")]
pub mod safety {}
