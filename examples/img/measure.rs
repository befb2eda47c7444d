//! Computes the size of a converted image as `qemu-img measure` does.

use std::path::PathBuf;
use std::process::ExitCode;

use blockform::image::{Backing, SnapshotSelector};
use blockform::measure::{Measure, MeasureOptions};
use clap::Parser;

use crate::arguments::{Opening, path, size};
use crate::command::{Call, about, print, told};
use crate::info::Form;
use crate::qemu::{Target, snapshot};

/// Computes the size of the image that a conversion of FILE, or of an empty disk of --size bytes, would write,
/// as `qemu-img measure` does.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// Format of FILE; detected unless given
    #[arg(short = 'f', long, value_name = "FMT", conflicts_with = "size")]
    format: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Measures a compressed image: the required size is an upper bound
    #[arg(short = 'c')]
    compress: bool,
    /// Measures an empty disk of SIZE bytes
    #[arg(short = 's', long, value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
    /// Measures an internal snapshot: snapshot.id=ID, snapshot.name=NAME, or an id or a name
    #[arg(short = 'l', long = "snapshot", value_name = "SNAPSHOT", value_parser = snapshot, conflicts_with = "size")]
    snapshot: Option<SnapshotSelector>,
    /// Form of the result
    #[arg(long, value_name = "FORM", default_value = "human")]
    output: Form,
    #[command(flatten)]
    opening: Opening,
    /// Image to be converted
    #[arg(value_name = "FILE", value_parser = path(), required_unless_present = "size", conflicts_with = "size")]
    file: Option<PathBuf>,
}

pub(crate) fn main(call: Call) -> ExitCode {
    call.run(1, |arguments: Arguments| {
        let measure = measure(&arguments)?;
        print(&match arguments.output {
            Form::Human => table(&measure),
            Form::Json => json(&measure),
        })?;
        Ok(ExitCode::SUCCESS)
    })
}

fn measure(arguments: &Arguments) -> Result<Measure, String> {
    let options = options(arguments)?;
    match (&arguments.file, arguments.size) {
        (Some(file), _) => {
            let mut open = arguments.opening.options(arguments.format.as_deref());
            if let Some(snapshot) = &arguments.snapshot {
                open = open.snapshot(snapshot.clone());
            }
            let measured = open
                .open_path(file)
                .and_then(|image| options.of_image(&*image));
            measured.map_err(|e| about(file, &e))
        }
        (None, Some(size)) => options.of_size(size).map_err(|e| told(&e)),
        (None, None) => Err("either --size SIZE or FILE is needed".to_owned()),
    }
}

fn options(arguments: &Arguments) -> Result<MeasureOptions, String> {
    let target = &arguments.target;
    let (options, backing) = target.options()?;
    let mut measure = MeasureOptions::to(&target.format).compress(arguments.compress);
    for (name, value) in options {
        measure = measure.option(name, value);
    }
    Ok(match backing {
        Some((name, format)) => measure.backing(Backing::new(name, format)),
        None => measure,
    })
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
