//! Lists the places of the bytes of a disk as `qemu-img map` does.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use blockform::extents::{Entries, Entry};
use clap::Parser;

use crate::arguments::{Opening, path, size};
use crate::command::{Call, about, unwritten};
use crate::info::Form;

/// Lists the places of the bytes of a disk, through its backing files, as `qemu-img map` does.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// Format of the image; detected unless given
    #[arg(short = 'f', long, value_name = "FMT")]
    format: Option<String>,
    /// Form of the list: a table of stored data, or JSON with everything
    #[arg(long, value_name = "FORM", default_value = "human")]
    output: Form,
    /// First byte of the disk to list
    #[arg(short = 's', long, value_name = "OFFSET", default_value = "0", value_parser = size)]
    start_offset: u64,
    /// Number of bytes to list
    #[arg(short = 'l', long, value_name = "LENGTH", value_parser = size)]
    max_length: Option<u64>,
    #[command(flatten)]
    opening: Opening,
    /// Image
    #[arg(value_name = "FILE", value_parser = path())]
    file: PathBuf,
}

pub(crate) fn main(call: Call) -> ExitCode {
    call.run(1, |arguments: Arguments| {
        run(&arguments).map(|()| ExitCode::SUCCESS)
    })
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let about = |error: blockform::Error| about(&arguments.file, &error);
    let options = arguments.opening.options(arguments.format.as_deref());
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
                "the data at byte {} of the disk is compressed, or in no file, and has no place in this table; \
                 use --output json",
                entry.start
            ));
        }
        if let Some(row) = entry.to_row() {
            writeln!(out, "{row}").map_err(unwritten)?;
        }
    }
    Ok(())
}
