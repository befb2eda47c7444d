//! Tells where the bytes of a disk image are, as `qemu-img map` does.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/values.rs"]
mod values;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use blockform::OpenOptions;
use blockform::extents::{Entries, Entry};
use clap::Parser;
use common::{Policy, complain, quoted};
use values::{Form, size};

const COMMAND: &str = "img-map";

/// Tells where the bytes of a disk image are, through its backing files, as `qemu-img map` does.
#[derive(Debug, Parser)]
#[command(name = COMMAND, version)]
struct Arguments {
    /// The format of the image; detected unless given
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,
    /// The form of the list: a table of what is stored, or JSON with everything
    #[arg(long, value_name = "FORM", default_value = "human")]
    output: Form,
    /// Where in the disk to begin
    #[arg(short = 's', long, value_name = "OFFSET", default_value = "0", value_parser = size)]
    start_offset: u64,
    /// How much of the disk to look at
    #[arg(short = 'l', long, value_name = "LENGTH", value_parser = size)]
    max_length: Option<u64>,
    /// Accepted for the sake of qemu-img's users: images are never locked here
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Which of the files that the image refers to may be opened: none, same-dir, those below the
    /// directory DIR, or anywhere
    #[arg(
        long,
        value_name = "none|same-dir|DIR|anywhere",
        default_value = "none"
    )]
    allow_references: Policy,
    /// The image
    #[arg(value_name = "FILE", value_parser = common::path())]
    file: PathBuf,
}

fn main() -> ExitCode {
    let arguments = match common::arguments::<Arguments>(COMMAND, ExitCode::FAILURE) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            complain(COMMAND, &problem);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let about = |error: blockform::Error| {
        format!(
            "{}: {}",
            quoted(&arguments.file),
            crate::common::told(&error)
        )
    };
    let mut options = OpenOptions::new().references(arguments.allow_references.0.clone());
    if let Some(format) = &arguments.format {
        options = options.format(format);
    }
    let image = options.open_path(&arguments.file).map_err(about)?;
    let length = arguments.max_length.unwrap_or(u64::MAX);
    let entries = Entries::of(&*image, arguments.file.as_path().into());
    let entries = entries.within(arguments.start_offset, length);
    let entries = entries.map(|entry| entry.map_err(about));
    let mut out = BufWriter::new(io::stdout().lock());
    match arguments.output {
        Form::Human => table(&mut out, entries),
        Form::Json => list(&mut out, entries),
    }?;
    out.flush().map_err(unwritten)
}

fn list(
    out: &mut impl Write,
    entries: impl Iterator<Item = Result<Entry, String>>,
) -> Result<(), String> {
    let mut before = "[";
    for entry in entries {
        write!(out, "{before}{}", entry?.to_json()).map_err(unwritten)?;
        before = ",\n";
    }
    writeln!(out, "]").map_err(unwritten)
}

fn table(
    out: &mut impl Write,
    entries: impl Iterator<Item = Result<Entry, String>>,
) -> Result<(), String> {
    writeln!(out, "{}", Entry::heading()).map_err(unwritten)?;
    for entry in entries {
        let entry = entry?;
        if entry.data && entry.offset.is_none() {
            return Err(format!(
                "what is stored at byte {} of the disk is packed, or in no file, and has no place in \
                 this table; --output json tells of it",
                entry.start
            ));
        }
        if let Some(row) = entry.to_row() {
            writeln!(out, "{row}").map_err(unwritten)?;
        }
    }
    Ok(())
}

fn unwritten(error: io::Error) -> String {
    format!("cannot write the list: {error}")
}
