//! The arguments of `img-info`: those of `qemu-img info`, and what is its own.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::common::Policy;

/// Describes disk images as `qemu-img info` does. FILE is a path and nothing else; the files that an
/// image refers to are named, and not opened.
#[derive(Debug, Parser)]
#[command(name = crate::COMMAND, version)]
pub(crate) struct Arguments {
    /// The format of the images; detected unless given
    #[arg(short = 'f', value_name = "FMT")]
    pub(crate) format: Option<String>,
    /// The form of the description
    #[arg(long, value_name = "FORM", default_value = "human")]
    pub(crate) output: Form,
    /// Describes the backing files too, as far as --allow-references lets them be opened
    #[arg(long)]
    pub(crate) backing_chain: bool,
    /// Which of the files that an image refers to --backing-chain may open: none, same-dir, those
    /// below the directory DIR, or anywhere
    #[arg(
        long,
        value_name = "none|same-dir|DIR|anywhere",
        default_value = "none"
    )]
    pub(crate) allow_references: Policy,
    /// Tells behind the text how much of the disk is data, zeros and holes, and draws where: `auto`
    /// does on a terminal
    #[arg(
        long,
        value_name = "auto|always|never",
        default_value = "auto",
        default_missing_value = "always",
        num_args = 0..=1,
        require_equals = true,
        hide_possible_values = true
    )]
    pub(crate) map: When,
    /// Tells which checks of its safety the image passes, too; fails if there is one that it does not
    #[arg(long, conflicts_with = "backing_chain")]
    pub(crate) safety: bool,
    /// The formats that may come, one or several; a stream is not read further than to the proof that it
    /// is of none of them
    #[arg(long, value_name = "FMT,…", value_delimiter = ',')]
    pub(crate) allow_formats: Vec<String>,
    /// The largest disk that may come
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_size: Option<String>,
    /// Describes this disk of an appliance: its href, its id or its number from 0 on
    #[arg(long, value_name = "DISK")]
    pub(crate) disk: Option<String>,
    /// Compares an appliance with its manifest, too
    #[arg(long)]
    pub(crate) verify_manifest: bool,
    /// Accepted for the sake of qemu-img's users: images are never locked here
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The images
    #[arg(value_name = "FILE", required = true, value_parser = crate::common::path())]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Human,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

impl When {
    pub(crate) fn holds(self) -> bool {
        match self {
            When::Auto => io::stdout().is_terminal(),
            When::Always => true,
            When::Never => false,
        }
    }
}
