//! Arguments of every verb that opens an image.

use std::ffi::OsString;
use std::path::PathBuf;

use blockform::image::parse_size;
use blockform::{Limits, OpenOptions, PathPolicy};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

/// Permission for what images may open and demand.
#[derive(Debug, Args)]
pub(crate) struct Opening {
    /// Files that may be opened because an image refers to them: none, detach (none, and what lies in them
    /// is lost), same-dir (those in the directory of the image), those below the directory DIR, or anywhere
    #[arg(
        long,
        value_name = "none|detach|same-dir|DIR|anywhere",
        default_value = "none"
    )]
    pub(crate) allow_references: Policy,
    #[arg(long = "limit", value_name = "NAME=NUMBER", value_parser = limit, help = limits_help())]
    limits: Vec<(String, u64)>,
    /// Accepted for compatibility with qemu-img: images are never locked
    #[arg(short = 'U', long)]
    force_share: bool,
}

impl Opening {
    /// Options to open an image with, of this format if one is named.
    pub(crate) fn options(&self, format: Option<&str>) -> OpenOptions {
        let options = OpenOptions::new()
            .references(self.allow_references.0.clone())
            .limits(self.limits());
        match format {
            Some(format) => options.format(format),
            None => options,
        }
    }

    /// The limits that hold for every image.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for (name, value) in &self.limits {
            // The names were checked when they were parsed.
            drop(limits.set(name, *value));
        }
        limits
    }
}

/// Value of `--allow-references`.
#[derive(Debug, Clone)]
pub(crate) struct Policy(pub(crate) PathPolicy);

impl From<OsString> for Policy {
    fn from(text: OsString) -> Self {
        Policy(match text.to_str() {
            Some(text) => PathPolicy::from_text(text),
            None => PathPolicy::Within(PathBuf::from(text)),
        })
    }
}

fn limits_help() -> String {
    format!(
        "Sets a limit on what an image may demand: {}",
        Limits::NAMES.join(", ")
    )
}

fn limit(text: &str) -> Result<(String, u64), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("it has to be NAME=NUMBER, such as chain_depth=200")?;
    let value = size(value)?;
    let set = Limits::default().set(name, value);
    set.map_err(|e| e.to_string())?;
    Ok((name.to_owned(), value))
}

/// Parses a number of bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "it has to be a size such as 4k".to_owned())
}

/// Parses a path.
pub(crate) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|name| match name.is_empty() {
        true => Err("a file name cannot be empty"),
        false => Ok(PathBuf::from(name)),
    })
}
