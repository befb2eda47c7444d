//! Describes disk images as `qemu-img info` does, with their content and safety.

use std::fmt;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockform::image::Value;
use blockform::inspect::{ExtentMap, Report, Safety, Unopened, to_json};
use blockform::stream::StreamOptions;
use blockform::{Error, OpenOptions, PathPolicy, Result};
use clap::{Parser, ValueEnum};

use crate::arguments::{Opening, path, size};
use crate::command::{Call, about, complain, print};

/// Describes disk images as `qemu-img info` does. FILE is a path and nothing else; - is standard input. Files
/// that an image refers to are named and not opened.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// Format of the images; detected unless given
    #[arg(short = 'f', value_name = "FMT")]
    format: Option<String>,
    /// Form of the description
    #[arg(long, value_name = "FORM", default_value = "human")]
    output: Form,
    /// Describes the backing files too, as far as --allow-references allows them
    #[arg(long)]
    backing_chain: bool,
    #[command(flatten)]
    opening: Opening,
    /// Adds how much of the disk is data, zeros and holes, and draws where; `auto` does so on a terminal
    #[arg(
        long,
        value_name = "auto|always|never",
        default_value = "auto",
        default_missing_value = "always",
        num_args = 0..=1,
        require_equals = true,
        hide_possible_values = true
    )]
    map: When,
    /// Adds the checks of the safety of the image; the exit status is 1 if one fails
    #[arg(long, conflicts_with = "backing_chain")]
    safety: bool,
    /// Formats that are accepted; a stream is read no further than the proof that it has none of them
    #[arg(long, value_name = "FMT,…", value_delimiter = ',')]
    allow_formats: Vec<String>,
    /// Largest virtual size that is accepted
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// Describes this disk of an appliance: its number, the name of its file, or its id
    #[arg(long, value_name = "DISK")]
    disk: Option<String>,
    /// Compares an appliance with its manifest
    #[arg(long)]
    verify_manifest: bool,
    /// Images
    #[arg(value_name = "FILE", required = true, value_parser = path())]
    files: Vec<PathBuf>,
}

/// Form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Human,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

impl When {
    fn holds(self) -> bool {
        match self {
            When::Auto => io::stdout().is_terminal(),
            When::Always => true,
            When::Never => false,
        }
    }
}

pub(crate) fn main(call: Call) -> ExitCode {
    call.run(1, run)
}

fn run(arguments: Arguments) -> Result<ExitCode, String> {
    let draws = arguments.output == Form::Human && arguments.map.holds();
    let mut told = Vec::new();
    let mut maps = Vec::new();
    let mut failed = false;
    for file in &arguments.files {
        match describe(file, &arguments) {
            Ok(described) => {
                let first = described.first().filter(|_| draws);
                maps.push(first.map_or(String::new(), |told| map(file, told, &arguments)));
                maps.resize(told.len() + described.len(), String::new());
                told.extend(described);
            }
            Err(error) => {
                failed = true;
                complain(&about(file, &error));
            }
        }
    }
    failed |= told.iter().any(Told::is_unsafe);
    let many = arguments.backing_chain || arguments.files.len() > 1;
    let text = match arguments.output {
        Form::Json if many => {
            to_json(&Value::List(told.iter().map(Told::to_value).collect())) + "\n"
        }
        Form::Json => told.iter().map(|t| to_json(&t.to_value()) + "\n").collect(),
        Form::Human => {
            let texts = told
                .iter()
                .zip(maps)
                .map(|(told, map)| told.to_string() + &map);
            let texts: Vec<String> = texts.collect();
            texts.join("\n")
        }
    };
    print(&text)?;
    Ok(ExitCode::from(u8::from(failed)))
}

/// Map of an image that was described; empty if the image cannot be read. Data in files that may not be opened
/// is left out.
fn map(file: &Path, told: &Told, arguments: &Arguments) -> String {
    let Told::Report(report) = told else {
        return String::new();
    };
    if file == Path::new("-") {
        return String::new();
    }
    let open = |policy: PathPolicy| {
        let options = OpenOptions::new().format(report.format.as_str());
        options.references(policy).open_path(file)
    };
    let opened = match open(arguments.opening.allow_references.0.clone()) {
        Err(Error::Denied { .. }) => open(PathPolicy::Detach),
        opened => opened,
    };
    opened.map_or(String::new(), |image| ExtentMap::of(&image).to_string())
}

/// Description of a file.
enum Told {
    Report(Box<Report>),
    Unopened(Unopened),
}

impl Told {
    fn to_value(&self) -> Value {
        match self {
            Told::Report(report) => report.to_value(),
            Told::Unopened(unopened) => unopened.to_value(),
        }
    }

    fn is_unsafe(&self) -> bool {
        match self {
            Told::Report(report) => report.safety.as_ref().is_some_and(|s| !s.is_safe()),
            Told::Unopened(_) => true,
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Told::Report(report) => report.fmt(f),
            Told::Unopened(unopened) => unopened.fmt(f),
        }
    }
}

fn describe(file: &Path, arguments: &Arguments) -> Result<Vec<Told>> {
    let (described, safety) = if file == Path::new("-") {
        of_stream(arguments)?
    } else {
        of_file(file, arguments)?
    };
    let mut told = Vec::new();
    match (described, safety) {
        (Err(error @ Error::Io { .. }), _) | (Err(error), None) => return Err(error),
        (Err(error), Some(safety)) => {
            complain(&about(file, &error));
            told.push(Told::Unopened(Unopened::new(file.into(), safety)));
        }
        (Ok(reports), safety) => told.extend(reports.into_iter().map(|mut report| {
            report.safety.clone_from(&safety);
            Told::Report(Box::new(report))
        })),
    }
    Ok(told)
}

type Described = (Result<Vec<Report>>, Option<Safety>);

fn of_file(file: &Path, arguments: &Arguments) -> Result<Described> {
    let mut options = arguments.opening.options(arguments.format.as_deref());
    if let Some(disk) = &arguments.disk {
        options = options.disk(disk.as_str());
    }
    options = options.verify_manifest(arguments.verify_manifest);
    let described = match arguments.backing_chain {
        true => Report::chain_of_path(file, &options),
        false => Report::of_path(file, &options).map(|report| vec![report]),
    };
    if let Ok([report, ..]) = described.as_deref() {
        check(report, arguments)?;
    }
    let safety = match arguments.safety {
        true => Some(Safety::of_path(file, &options)?),
        false => None,
    };
    Ok((described, safety))
}

/// Applies the conditions for a stream to the image in a file.
fn check(report: &Report, arguments: &Arguments) -> Result<()> {
    let size = report.info.virtual_size;
    report.check_allowed(&arguments.allow_formats)?;
    match arguments.max_size {
        Some(most) if size > most => Err(Error::invalid(format!(
            "the disk has {size} bytes, over the {most} of --max-size"
        ))),
        _ => Ok(()),
    }
}

fn of_stream(arguments: &Arguments) -> Result<Described> {
    if arguments.backing_chain {
        return Err(Error::invalid("a stream has no backing chain; name a file"));
    }
    let mut allowed = arguments.allow_formats.clone();
    if let Some(format) = &arguments.format {
        allowed = vec![format.clone()];
    }
    let mut options = StreamOptions::new()
        .allow(allowed)
        .limits(arguments.opening.limits());
    if let Some(most) = arguments.max_size {
        options = options.max_virtual_size(most);
    }
    let mut inspector = options.inspector();
    let mut input = io::stdin().lock();
    let mut buf = vec![0; 256 << 10];
    loop {
        let n = match input.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("read standard input", error)),
        };
        inspector.feed(buf.get(..n).unwrap_or_default())?;
    }
    let told = inspector.finish()?;
    let safety = arguments.safety.then_some(told.safety);
    Ok((told.description.map(|report| vec![report]), safety))
}
