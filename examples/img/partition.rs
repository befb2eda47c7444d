//! Converts a disk image in parts, by several processes or machines.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockform::convert::partition::{Cut, Plan};
use blockform::convert::{Cancel, ConvertOptions};
use blockform::storage::PendingFile;
use blockform::{BlockTarget, Image, Limits};
use clap::{Args, Parser, Subcommand};

use crate::arguments::{Opening, path};
use crate::command::{Call, about, print, quoted, told};
use crate::qemu::{self, sparse_size};

/// Converts a disk image in parts, by several processes or machines. Every step may be repeated; DST is whole
/// in the end, or absent.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
struct Arguments {
    #[command(subcommand)]
    step: Step,
}

/// Step of a conversion in parts.
#[derive(Debug, Subcommand)]
enum Step {
    /// Cuts the conversion of SRC into parts, writes PLAN and prints the number of parts
    Plan {
        /// Format of the source; detected unless given
        #[arg(short = 'f', value_name = "FMT")]
        source_format: Option<String>,
        #[command(flatten)]
        to: qemu::Target,
        /// Shortest run of zeros that becomes a hole, 4k unless given; 0 writes all zeros out
        #[arg(short = 'S', value_name = "SIZE", value_parser = sparse_size)]
        sparse_size: Option<u64>,
        /// Largest number of parts
        #[arg(
            long,
            value_name = "COUNT",
            default_value = "8",
            conflicts_with = "part_data"
        )]
        parts: usize,
        /// Data of a part, about
        #[arg(long, value_name = "SIZE", value_parser = sparse_size)]
        part_data: Option<u64>,
        #[command(flatten)]
        source: Source,
        /// File to write the plan to
        #[arg(value_parser = path())]
        plan: PathBuf,
    },
    /// Creates the folder for the state of the conversion into DST
    Prepare {
        #[command(flatten)]
        target: Target,
    },
    /// Converts one part
    Part {
        /// Number of threads; the number of processors unless given
        #[arg(short = 'm', value_name = "THREADS")]
        threads: Option<NonZeroUsize>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        source: Source,
        /// Number of the part, from 0
        index: usize,
    },
    /// Ends the conversion: DST gets its name
    Seal {
        #[command(flatten)]
        target: Target,
    },
}

/// Image to read.
#[derive(Debug, Args)]
struct Source {
    #[command(flatten)]
    opening: Opening,
    /// Source
    #[arg(id = "source_path", value_name = "SRC", value_parser = path())]
    path: PathBuf,
}

/// Image to write.
#[derive(Debug, Args)]
struct Target {
    /// Folder for the state of the conversion, .NAME.parts beside DST unless given; a block device needs one
    #[arg(long, value_name = "DIR", value_parser = path())]
    folder: Option<PathBuf>,
    /// Plan
    #[arg(id = "plan_path", value_name = "PLAN", value_parser = path())]
    plan: PathBuf,
    /// Image to write
    #[arg(id = "target_path", value_name = "DST", value_parser = path())]
    path: PathBuf,
}

pub(crate) fn main(call: Call) -> ExitCode {
    call.run(1, |arguments: Arguments| {
        run(arguments.step).map(|()| ExitCode::SUCCESS)
    })
}

fn run(step: Step) -> Result<(), String> {
    let cancel = Cancel::new();
    let stop = cancel.clone();
    ctrlc::set_handler(move || stop.cancel())
        .map_err(|e| format!("cannot prepare for being interrupted: {e}"))?;
    match step {
        Step::Plan {
            source,
            source_format,
            to,
            sparse_size,
            parts,
            part_data,
            plan,
        } => {
            let image = open(&source, source_format.as_deref())?;
            let (options, backing) = to.options()?;
            if backing.is_some() {
                return Err("an overlay cannot be written in parts".to_owned());
            }
            let mut to = ConvertOptions::to(to.format).cancel(cancel);
            for (name, value) in options {
                to = to.option(name, value);
            }
            if let Some(bytes) = sparse_size {
                to = to.sparse_size(bytes);
            }
            let cut = match part_data {
                Some(bytes) => Cut::Data(bytes),
                None => Cut::Parts(parts),
            };
            let made = Plan::new(&*image, &to, cut)
                .and_then(|plan| plan.source_file(&source.path))
                .map_err(|e| about(&source.path, &e))?;
            write(&made, &plan).map_err(|e| about(&plan, &e))?;
            let parts = made.parts().len();
            print(&format!("{parts}\n"))
        }
        Step::Prepare { target } => {
            let plan = read(&target)?;
            plan.prepare(&target.path).map_err(|e| told(&e))
        }
        Step::Part {
            target,
            source,
            index,
            threads,
        } => {
            let mut plan = read(&target)?.cancel(cancel);
            if let Some(threads) = threads {
                plan = plan.threads(threads);
            }
            let image = open(&source, Some(plan.source_format()))?;
            plan.check_source_file(&source.path)
                .and_then(|()| plan.run_part(&*image, &target.path, index))
                .map_err(|e| told(&e))?;
            Ok(())
        }
        Step::Seal { target } => {
            let plan = read(&target)?;
            plan.seal(&target.path).map_err(|e| told(&e))
        }
    }
}

fn open(source: &Source, format: Option<&str>) -> Result<Box<dyn Image>, String> {
    let options = source.opening.options(format);
    options
        .open_path(&source.path)
        .map_err(|e| about(&source.path, &e))
}

fn write(plan: &Plan, path: &Path) -> blockform::Result<()> {
    let file = PendingFile::create(path)?;
    file.storage().write_all_at(plan.to_json()?.as_bytes(), 0)?;
    file.commit(true)
}

fn read(target: &Target) -> Result<Plan, String> {
    let text = std::fs::read_to_string(&target.plan);
    let text = text.map_err(|e| format!("cannot read {}: {e}", quoted(&target.plan)))?;
    let plan = Plan::from_json(&text, &Limits::default()).map_err(|e| about(&target.plan, &e))?;
    Ok(match &target.folder {
        Some(folder) => plan.in_folder(folder),
        None => plan,
    })
}
