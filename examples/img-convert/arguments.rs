//! The arguments of `img-convert`: those of `qemu-img convert`, and what goes together.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use blockform::image::{SnapshotSelector, parse_size};
use clap::{Parser, ValueEnum};

use crate::common::{Policy, path};

/// Converts disk images as `qemu-img convert` does. SRC and DST are paths and nothing else; several
/// SRC are taken one behind the other. DST is replaced only when the whole of it is written.
#[derive(Debug, Parser)]
#[command(name = crate::COMMAND, version)]
pub(crate) struct Arguments {
    /// The format of the sources; detected unless given
    #[arg(short = 'f', value_name = "FMT")]
    pub(crate) source_format: Option<String>,
    /// The format to write
    #[arg(short = 'O', value_name = "FMT", default_value = "raw")]
    pub(crate) output_format: String,
    /// Packs the data
    #[arg(short = 'c')]
    pub(crate) compress: bool,
    /// Options of the format to write, NAME=VALUE[,NAME=VALUE]…
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Shows how far the conversion is
    #[arg(short = 'p')]
    pub(crate) progress: bool,
    /// How many threads work; as many as there are processors unless given
    #[arg(short = 'm', value_name = "THREADS")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// The shortest run of zeros that becomes a hole, 4k unless given; 0 writes all zeros out
    #[arg(short = 'S', value_name = "SIZE", value_parser = sparse_size)]
    pub(crate) sparse_size: Option<u64>,
    /// Writes into DST as it is, which exists and is large enough; a failure leaves it half written
    #[arg(short = 'n')]
    pub(crate) no_create: bool,
    /// Takes the word for it that DST reads as zero (with -n)
    #[arg(long)]
    pub(crate) target_is_zero: bool,
    /// With unsafe, does not wait until the result is on stable storage; all others wait
    #[arg(short = 't', value_name = "CACHE", default_value = "writeback")]
    pub(crate) cache: CacheMode,
    /// Accepted for the sake of qemu-img's users: how the sources are read does not change
    #[arg(short = 'T', value_name = "CACHE", default_value = "writeback")]
    source_cache: CacheMode,
    /// Converts an internal snapshot: snapshot.id=ID, snapshot.name=NAME, or an id or a name
    #[arg(short = 'l', value_name = "SNAPSHOT", value_parser = snapshot)]
    pub(crate) snapshot: Option<SnapshotSelector>,
    /// Writes an overlay that records only what differs from FILE, a path relative to DST's directory
    #[arg(short = 'B', value_name = "FILE", requires = "backing_format", value_parser = path())]
    pub(crate) backing: Option<PathBuf>,
    /// The format of -B FILE
    #[arg(short = 'F', value_name = "FMT", requires = "backing")]
    pub(crate) backing_format: Option<String>,
    /// Shows nothing but errors
    #[arg(short = 'q')]
    pub(crate) quiet: bool,
    /// Accepted for the sake of qemu-img's users: the order of writes is not theirs to choose
    #[arg(short = 'W')]
    out_of_order: bool,
    /// Accepted for the sake of qemu-img's users: images are never locked here
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Which files that an image refers to, and -B, may be opened: none, same-dir (those in the
    /// image's own directory), those below the directory DIR, or anywhere
    #[arg(
        long,
        value_name = "none|same-dir|DIR|anywhere",
        default_value = "none"
    )]
    pub(crate) allow_references: Policy,
    /// The sources, and where to write to
    #[arg(value_names = ["SRC", "DST"], required = true, num_args = 2.., value_parser = path())]
    files: Vec<PathBuf>,
}

/// What QEMU calls a cache mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheMode {
    None,
    Writeback,
    Unsafe,
    Writethrough,
    Directsync,
}

impl Arguments {
    /// The sources and the destination, if all arguments go together.
    pub(crate) fn check(&self) -> Result<(&[PathBuf], &Path), String> {
        let Some((destination, sources)) = self.files.split_last() else {
            return Err("no files were given".to_owned());
        };
        let conflicts = [
            (
                self.target_is_zero && !self.no_create,
                "--target-is-zero requires -n: a new file reads as zero anyway",
            ),
            (
                self.no_create && !self.options.is_empty(),
                "-o has no meaning with -n: nothing is created",
            ),
            (
                self.no_create && self.backing.is_some(),
                "-B has no meaning with -n: nothing is created",
            ),
            (
                sources.len() > 1 && self.backing.is_some(),
                "-B has no meaning for several sources",
            ),
            (
                sources.len() > 1 && self.snapshot.is_some(),
                "-l has no meaning for several sources",
            ),
        ];
        match conflicts.into_iter().find(|(conflict, _)| *conflict) {
            Some((_, problem)) => Err(problem.to_owned()),
            None => Ok((sources, destination)),
        }
    }
}

fn sparse_size(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Some(bytes) if bytes % 512 == 0 => Ok(bytes),
        Some(_) => Err("it has to be a multiple of 512".to_owned()),
        None => Err("it has to be a size such as 4k".to_owned()),
    }
}

fn snapshot(text: &str) -> Result<SnapshotSelector, String> {
    let value = |value: &str| match value {
        "" => Err("it names no snapshot".to_owned()),
        value if value.contains(",snapshot.") => Err("give an id or a name, not both".to_owned()),
        value => Ok(value.to_owned()),
    };
    if let Some(id) = text.strip_prefix("snapshot.id=") {
        value(id).map(SnapshotSelector::Id)
    } else if let Some(name) = text.strip_prefix("snapshot.name=") {
        value(name).map(SnapshotSelector::Name)
    } else {
        value(text).map(SnapshotSelector::Any)
    }
}
