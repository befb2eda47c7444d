//! The arguments of `img-partition`: a subcommand for each step.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use blockform::image::parse_size;
use clap::{Args, Parser, Subcommand};

use crate::common::{Policy, path};

/// Converts a disk image in parts, each of which another process may do, on another machine. Every step
/// may be repeated; DST is whole in the end, or absent.
#[derive(Debug, Parser)]
#[command(name = crate::COMMAND, version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) step: Step,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Step {
    /// Cuts the conversion of SRC into parts, writes that to PLAN and prints how many parts there are
    Plan {
        /// The format of the source; detected unless given
        #[arg(short = 'f', value_name = "FMT")]
        source_format: Option<String>,
        /// The format to write
        #[arg(short = 'O', value_name = "FMT", default_value = "raw")]
        output_format: String,
        /// Options of the format to write, NAME=VALUE[,NAME=VALUE]…
        #[arg(short = 'o', value_name = "OPTIONS")]
        options: Vec<String>,
        /// The shortest run of zeros that becomes a hole, 4k unless given; 0 writes all zeros out
        #[arg(short = 'S', value_name = "SIZE", value_parser = size)]
        sparse_size: Option<u64>,
        /// How many parts, at most
        #[arg(
            long,
            value_name = "COUNT",
            default_value = "8",
            conflicts_with = "part_data"
        )]
        parts: usize,
        /// How much data a part has, about
        #[arg(long, value_name = "SIZE", value_parser = size)]
        part_data: Option<u64>,
        #[command(flatten)]
        source: Source,
        /// Where the plan goes
        #[arg(value_parser = path())]
        plan: PathBuf,
    },
    /// Makes the folder of the conversion into DST
    Prepare {
        #[command(flatten)]
        target: Target,
    },
    /// Does one part
    Part {
        /// How many threads work; as many as there are processors unless given
        #[arg(short = 'm', value_name = "THREADS")]
        threads: Option<NonZeroUsize>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        source: Source,
        /// Which part, counted from 0
        index: usize,
    },
    /// Ends the conversion: DST gets its name
    Seal {
        #[command(flatten)]
        target: Target,
    },
}

/// What is read.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// Which files that an image refers to may be opened: none, same-dir (those in the image's own
    /// directory), those below the directory DIR, or anywhere
    #[arg(
        long,
        value_name = "none|same-dir|DIR|anywhere",
        default_value = "none"
    )]
    pub(crate) allow_references: Policy,
    /// The source
    #[arg(id = "source_path", value_name = "SRC", value_parser = path())]
    pub(crate) path: PathBuf,
}

/// What is written.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Where the state of the conversion is kept, .NAME.parts beside DST unless given; a block device
    /// needs one
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) folder: Option<PathBuf>,
    /// The plan
    #[arg(id = "plan_path", value_name = "PLAN", value_parser = path())]
    pub(crate) plan: PathBuf,
    /// Where the image goes
    #[arg(id = "target_path", value_name = "DST", value_parser = path())]
    pub(crate) path: PathBuf,
}

fn size(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Some(bytes) if bytes % 512 == 0 => Ok(bytes),
        Some(_) => Err("it has to be a multiple of 512".to_owned()),
        None => Err("it has to be a size such as 4k".to_owned()),
    }
}
