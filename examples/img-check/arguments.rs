//! The arguments: those of `qemu-img check`, and where the repaired image goes.

use std::path::PathBuf;

use blockform::check::Scope;
use clap::{Parser, ValueEnum};

use crate::common::{self, Policy};
use crate::values::{CacheMode, Form};

/// Checks a disk image as `qemu-img check` does: whether its tables, counts and copies agree. The exit
/// status is 0 if nothing is wrong, 1 if the check could not be completed, 2 if the image is corrupt, 3
/// if it has leaked clusters and nothing worse, and 63 if its format has nothing to check.
#[derive(Debug, Parser)]
#[command(name = crate::COMMAND, version)]
pub(crate) struct Arguments {
    /// The format of the image; detected unless given
    #[arg(short, long, value_name = "FMT")]
    pub(crate) format: Option<String>,
    /// The form of what is printed
    #[arg(long, value_name = "human|json", default_value = "human")]
    pub(crate) output: Form,
    /// Repairs the image: leaked clusters, all that can be mended, or also by what only a second copy has
    #[arg(short, long, value_name = "leaks|all|redundant", requires = "where_to")]
    repair: Option<Mended>,
    /// Writes the repaired image to a new file
    #[arg(long, value_name = "NEW", group = "where_to", requires = "repair", value_parser = common::path())]
    pub(crate) to: Option<PathBuf>,
    /// Repairs the image where it is
    #[arg(long, group = "where_to", requires = "repair")]
    in_place: bool,
    /// Prints nothing but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Accepted for the sake of qemu-img's users: how the image is read does not change
    #[arg(
        short = 'T',
        long = "cache",
        value_name = "CACHE",
        default_value = "writeback"
    )]
    cache: CacheMode,
    /// Accepted for the sake of qemu-img's users: images are never locked here
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Which of the files that the image consists of may be opened: none, same-dir, those below the
    /// directory DIR, or anywhere. Backing files are never opened
    #[arg(
        long,
        value_name = "none|same-dir|DIR|anywhere",
        default_value = "none"
    )]
    pub(crate) allow_references: Policy,
    /// The image
    #[arg(value_name = "FILE", value_parser = common::path())]
    pub(crate) file: PathBuf,
}

/// What is to be repaired.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mended {
    Leaks,
    All,
    Redundant,
}

impl Arguments {
    /// What is to be repaired, if anything.
    pub(crate) fn repair(&self) -> Option<Scope> {
        self.repair.map(|mended| match mended {
            Mended::Leaks => Scope::Leaks,
            Mended::All => Scope::All,
            Mended::Redundant => Scope::Redundant,
        })
    }

    /// The image that was checked last.
    pub(crate) fn result(&self) -> &PathBuf {
        self.to.as_ref().unwrap_or(&self.file)
    }
}
