//! Describes disk images as `qemu-img info` does, without opening anything that they refer to.

#[path = "../common/mod.rs"]
mod common;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockform::inspect::{Report, list_to_json};
use blockform::{OpenOptions, Result};
use clap::{Parser, ValueEnum};
use common::{Policy, complain, quoted};

const COMMAND: &str = "img-info";

/// Describes disk images as `qemu-img info` does. FILE is a path and nothing else; the files that an
/// image refers to are named, and not opened.
#[derive(Debug, Parser)]
#[command(name = COMMAND, version)]
struct Arguments {
    /// The format of the images; detected unless given
    #[arg(short = 'f', value_name = "FMT")]
    format: Option<String>,
    /// The form of the description
    #[arg(long, value_name = "FORM", default_value = "human")]
    output: Form,
    /// Describes the backing files too, as far as --allow-references lets them be opened
    #[arg(long)]
    backing_chain: bool,
    /// Which of the files that an image refers to --backing-chain may open: none, same-dir, those
    /// below the directory DIR, or anywhere
    #[arg(
        long,
        value_name = "none|same-dir|DIR|anywhere",
        default_value = "none"
    )]
    allow_references: Policy,
    /// Accepted for the sake of qemu-img's users: images are never locked here
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The images
    #[arg(value_name = "FILE", required = true, value_parser = common::path())]
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Human,
    Json,
}

fn main() -> ExitCode {
    let arguments = match common::arguments::<Arguments>(COMMAND) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let mut reports = Vec::new();
    let mut failed = false;
    for file in &arguments.files {
        match describe(file, &arguments) {
            Ok(described) => reports.extend(described),
            Err(error) => {
                failed = true;
                complain(COMMAND, &format!("{}: {}", quoted(file), error.chain()));
            }
        }
    }
    let many = arguments.backing_chain || arguments.files.len() > 1;
    let text = match arguments.output {
        Form::Json if many => list_to_json(&reports) + "\n",
        Form::Json => reports.iter().map(|r| r.to_json() + "\n").collect(),
        Form::Human => {
            let texts: Vec<String> = reports.iter().map(Report::to_string).collect();
            texts.join("\n")
        }
    };
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        failed = true;
        complain(COMMAND, &format!("cannot write the description: {error}"));
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn describe(file: &Path, arguments: &Arguments) -> Result<Vec<Report>> {
    let mut options = OpenOptions::new().references(arguments.allow_references.0.clone());
    if let Some(format) = &arguments.format {
        options = options.format(format);
    }
    if arguments.backing_chain {
        Report::chain_of_path(file, &options)
    } else {
        Ok(vec![Report::of_path(file, &options)?])
    }
}
