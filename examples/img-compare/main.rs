//! Compares two disk images as `qemu-img compare` does.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/progress.rs"]
mod progress;
#[path = "../common/values.rs"]
mod values;

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockform::compare::{CompareOptions, Comparison, Failure, Side};
use blockform::{BlockSource, Image, OpenOptions};
use clap::Parser;
use common::{Policy, complain, quoted};
use progress::Meter;
use values::CacheMode;

const COMMAND: &str = "img-compare";

/// Compares two disk images as `qemu-img compare` does: whether a guest would read the same from both.
/// The exit status is 0 if they are the same, 1 if they differ, 2 if one cannot be opened, 3 and 4 if
/// the status or the bytes of a range cannot be read.
#[derive(Debug, Parser)]
#[command(name = COMMAND, version)]
struct Arguments {
    /// The format of the first image; detected unless given
    #[arg(short = 'f', long = "a-format", value_name = "FMT")]
    first_format: Option<String>,
    /// The format of the second image; detected unless given
    #[arg(short = 'F', long = "b-format", value_name = "FMT")]
    second_format: Option<String>,
    /// Sizes, and what is stored in which way, have to be the same, too
    #[arg(short = 's', long)]
    strict: bool,
    /// Shows how far the comparison is
    #[arg(short = 'p', long)]
    progress: bool,
    /// Prints nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,
    /// How many threads work; as many as there are processors unless given
    #[arg(short = 'm', value_name = "THREADS")]
    threads: Option<NonZeroUsize>,
    /// Accepted for the sake of qemu-img's users: how the images are read does not change
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
    /// Which of the files that the images refer to may be opened: none, same-dir, those below the
    /// directory DIR, or anywhere
    #[arg(
        long,
        value_name = "none|same-dir|DIR|anywhere",
        default_value = "none"
    )]
    allow_references: Policy,
    /// The images
    #[arg(value_names = ["FILE1", "FILE2"], required = true, num_args = 2, value_parser = common::path())]
    files: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match common::arguments::<Arguments>(COMMAND, ExitCode::from(2)) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    run(&arguments).unwrap_or_else(|(code, problem)| {
        complain(COMMAND, &problem);
        ExitCode::from(code)
    })
}

fn run(arguments: &Arguments) -> Result<ExitCode, (u8, String)> {
    let [first, second] = arguments.files.as_slice() else {
        return Err((2, "two images are needed".to_owned()));
    };
    let one = open(first, arguments.first_format.as_deref(), arguments)?;
    let other = open(second, arguments.second_format.as_deref(), arguments)?;
    let mut options = CompareOptions::new().strict(arguments.strict);
    if let Some(threads) = arguments.threads {
        options = options.threads(threads);
    }
    let meter = Meter::new(arguments.progress && !arguments.quiet, false);
    if let Some(report) = meter.report() {
        options = options.progress(report);
    }
    let compared = options.compare(&one, &other);
    meter.finish(compared.is_ok());
    let comparison = compared.map_err(|failure| match failure {
        Failure::Status { side, source, .. } => (3, about(path_of(side, first, second), &source)),
        Failure::Read { side, source, .. } => (4, about(path_of(side, first, second), &source)),
        other => (2, other.to_string()),
    })?;
    let text = told(comparison, one.size(), other.size());
    if !arguments.quiet {
        let mut out = io::stdout().lock();
        let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        printed.map_err(|e| (2, format!("cannot write the result: {e}")))?;
    }
    Ok(match comparison {
        Comparison::Same => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    })
}

fn open(
    path: &Path,
    format: Option<&str>,
    arguments: &Arguments,
) -> Result<Box<dyn Image>, (u8, String)> {
    let mut options = OpenOptions::new().references(arguments.allow_references.0.clone());
    if let Some(format) = format {
        options = options.format(format);
    }
    options.open_path(path).map_err(|e| (2, about(path, &e)))
}

fn about(path: &Path, error: &blockform::Error) -> String {
    format!("{}: {}", quoted(path), crate::common::told(error))
}

fn path_of<'a>(side: Side, first: &'a Path, second: &'a Path) -> &'a Path {
    match side {
        Side::First => first,
        Side::Second => second,
    }
}

/// The result in qemu-img's words.
fn told(comparison: Comparison, first: u64, second: u64) -> String {
    const LONGER: &str = "Warning: Image size mismatch!\n";
    let end = first.min(second);
    // To qemu-img the disks end with whole sectors, and a difference is where its sector starts.
    let sector = |offset: u64| offset - offset % 512;
    let is_longer = first.next_multiple_of(512) != second.next_multiple_of(512);
    match comparison {
        Comparison::Same if is_longer => format!("{LONGER}Images are identical.\n"),
        Comparison::Same => "Images are identical.\n".to_owned(),
        Comparison::Differ { offset } => {
            let longer = if is_longer && offset >= end {
                LONGER
            } else {
                ""
            };
            format!("{longer}Content mismatch at offset {}!\n", sector(offset))
        }
        Comparison::SizeDiffers { .. } => "Strict mode: Image size mismatch!\n".to_owned(),
        Comparison::StatusDiffers { offset } => {
            format!("Strict mode: Offset {offset} block status mismatch!\n")
        }
        other => format!("{other:?}\n"),
    }
}
