//! Tells how large an image would become, as `qemu-img measure` does.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/values.rs"]
mod values;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use blockform::image::{Backing, SnapshotSelector, parse_options};
use blockform::measure::{Measure, MeasureOptions};
use blockform::{ImageName, OpenOptions};
use clap::Parser;
use common::{Policy, complain, quoted};
use values::{Form, size, snapshot};

const COMMAND: &str = "img-measure";

/// Tells how large an image would become that img-convert writes, as `qemu-img measure` does: from
/// FILE, or for an empty disk of --size bytes.
#[derive(Debug, Parser)]
#[command(name = COMMAND, version)]
struct Arguments {
    /// The format of FILE; detected unless given
    #[arg(short = 'f', long, value_name = "FMT", conflicts_with = "size")]
    format: Option<String>,
    /// The format to write
    #[arg(
        short = 'O',
        long = "target-format",
        value_name = "FMT",
        default_value = "raw"
    )]
    output_format: String,
    /// Options of the format to write, NAME=VALUE[,NAME=VALUE]…
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// The data is to be packed
    #[arg(short = 'c')]
    compress: bool,
    /// Measures an empty disk of SIZE bytes
    #[arg(short = 's', long, value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
    /// Measures an internal snapshot: snapshot.id=ID, snapshot.name=NAME, or an id or a name
    #[arg(short = 'l', long = "snapshot", value_name = "SNAPSHOT", value_parser = snapshot, conflicts_with = "size")]
    snapshot: Option<SnapshotSelector>,
    /// The form of the result
    #[arg(long, value_name = "FORM", default_value = "human")]
    output: Form,
    /// Accepted for the sake of qemu-img's users: images are never locked here
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Which of the files that FILE refers to may be opened: none, same-dir, those below the
    /// directory DIR, or anywhere
    #[arg(
        long,
        value_name = "none|same-dir|DIR|anywhere",
        default_value = "none"
    )]
    allow_references: Policy,
    /// The image to be converted
    #[arg(value_name = "FILE", value_parser = common::path(), required_unless_present = "size", conflicts_with = "size")]
    file: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match common::arguments::<Arguments>(COMMAND, ExitCode::FAILURE) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let told = measure(&arguments).and_then(|measure| {
        let text = match arguments.output {
            Form::Human => table(&measure),
            Form::Json => json(&measure),
        };
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|e| format!("cannot write the result: {e}"))
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            complain(COMMAND, &problem);
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<Measure, String> {
    let options = options(arguments)?;
    match (&arguments.file, arguments.size) {
        (Some(file), _) => {
            let mut open = OpenOptions::new().references(arguments.allow_references.0.clone());
            if let Some(format) = &arguments.format {
                open = open.format(format);
            }
            if let Some(snapshot) = &arguments.snapshot {
                open = open.snapshot(snapshot.clone());
            }
            let measured = open
                .open_path(file)
                .and_then(|image| options.of_image(&*image));
            measured.map_err(|e| format!("{}: {}", quoted(file), crate::common::told(&e)))
        }
        (None, Some(size)) => options.of_size(size).map_err(|e| crate::common::told(&e)),
        (None, None) => Err("either --size SIZE or FILE is needed".to_owned()),
    }
}

fn options(arguments: &Arguments) -> Result<MeasureOptions, String> {
    let mut options = MeasureOptions::to(&arguments.output_format).compress(arguments.compress);
    let mut backing = None;
    let mut backing_format = None;
    for text in &arguments.options {
        for (name, value) in parse_options(text).map_err(|e| crate::common::told(&e))? {
            match name.as_str() {
                // These qemu-img has among the options, and img-convert has flags for them.
                "backing_file" => backing = Some(ImageName::from(value.as_str())),
                "backing_fmt" => backing_format = Some(value),
                _ => options = options.option(name, value),
            }
        }
    }
    match (backing, backing_format) {
        (Some(name), Some(format)) => Ok(options.backing(Backing::new(name, format))),
        (None, None) => Ok(options),
        _ => Err("options backing_file and backing_fmt go together".to_owned()),
    }
}

fn table(measure: &Measure) -> String {
    let mut text = format!(
        "required size: {}\nfully allocated size: {}\n",
        measure.required, measure.fully_allocated
    );
    if let Some(bytes) = measure.bitmaps {
        text.push_str(&format!("bitmaps size: {bytes}\n"));
    }
    text
}

fn json(measure: &Measure) -> String {
    let mut entries = vec![
        format!("    \"required\": {}", measure.required),
        format!("    \"fully-allocated\": {}", measure.fully_allocated),
    ];
    if let Some(bytes) = measure.bitmaps {
        entries.insert(0, format!("    \"bitmaps\": {bytes}"));
    }
    format!("{{\n{}\n}}\n", entries.join(",\n"))
}
