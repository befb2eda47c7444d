//! Compares two disk images as `qemu-img compare` does.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockform::compare::{CompareOptions, Comparison, Failure, Side};
use blockform::{BlockSource, Image};
use clap::{Args, Parser};

use crate::arguments::{Opening, path};
use crate::command::{Call, about, complain, print};
use crate::progress::Meter;
use crate::qemu::CacheMode;

/// Cache mode of the sources.
#[derive(Debug, Args)]
pub(crate) struct SourceCache {
    /// Accepted for compatibility with qemu-img: sources are read in one way
    #[arg(
        id = "source_cache",
        short = 'T',
        long = "cache",
        value_name = "CACHE",
        default_value = "writeback"
    )]
    mode: CacheMode,
}

/// Compares the disks of two images as `qemu-img compare` does. The exit status is 0 if a guest reads the
/// same from both, 1 if not, 2 if one cannot be opened, and 3 or 4 if the status or the bytes of a range
/// cannot be read.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// Format of the first image; detected unless given
    #[arg(short = 'f', long = "a-format", value_name = "FMT")]
    first_format: Option<String>,
    /// Format of the second image; detected unless given
    #[arg(short = 'F', long = "b-format", value_name = "FMT")]
    second_format: Option<String>,
    /// Compares sizes and the status of ranges, too
    #[arg(short = 's', long)]
    strict: bool,
    /// Shows the progress
    #[arg(short = 'p', long)]
    progress: bool,
    /// Prints nothing but errors
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Number of threads; the number of processors unless given
    #[arg(short = 'm', value_name = "THREADS")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    cache: SourceCache,
    #[command(flatten)]
    opening: Opening,
    /// Images
    #[arg(value_name = "FILE", required = true, value_parser = path())]
    files: Vec<PathBuf>,
}

pub(crate) fn main(call: Call) -> ExitCode {
    call.run(2, |arguments: Arguments| {
        Ok(run(&arguments).unwrap_or_else(|(code, problem)| {
            complain(&problem);
            ExitCode::from(code)
        }))
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
    if !arguments.quiet {
        let text = text(comparison, one.size(), other.size());
        print(&text).map_err(|problem| (2, problem))?;
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
    let options = arguments.opening.options(format);
    options.open_path(path).map_err(|e| (2, about(path, &e)))
}

fn path_of<'a>(side: Side, first: &'a Path, second: &'a Path) -> &'a Path {
    match side {
        Side::First => first,
        Side::Second => second,
    }
}

/// Report of the result in qemu-img's words.
fn text(comparison: Comparison, first: u64, second: u64) -> String {
    const LONGER: &str = "Warning: Image size mismatch!\n";
    let end = first.min(second);
    // qemu-img rounds disks up to whole sectors, and a difference down to the start of its sector.
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
