//! Describes disk images as `qemu-img info` does, and what it has no words for.

mod arguments;
#[path = "../common/mod.rs"]
mod common;

use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use arguments::{Arguments, Form};
use blockform::image::{Value, parse_size};
use blockform::inspect::{ExtentMap, Report, Safety, Unopened, to_json};
use blockform::stream::StreamOptions;
use blockform::{Error, OpenOptions, PathPolicy, Result};
use common::{complain, quoted};

const COMMAND: &str = "img-info";

fn main() -> ExitCode {
    let arguments = match common::arguments::<Arguments>(COMMAND, ExitCode::FAILURE) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
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
                complain(
                    COMMAND,
                    &format!("{}: {}", quoted(file), crate::common::told(&error)),
                );
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

/// The map of an image that was described; nothing for what cannot be read. Where the files that it
/// refers to may not be opened, what lies in them is not looked at.
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
    let opened = match open(arguments.allow_references.0.clone()) {
        Err(Error::Denied { .. }) => open(PathPolicy::Detach),
        opened => opened,
    };
    opened.map_or(String::new(), |image| ExtentMap::of(&image).to_string())
}

/// What is told of a file.
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
            complain(
                COMMAND,
                &format!("{}: {}", quoted(file), crate::common::told(&error)),
            );
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
    let mut options = OpenOptions::new().references(arguments.allow_references.0.clone());
    if let Some(format) = &arguments.format {
        options = options.format(format);
    }
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

/// Fails if the image in a file is not what a stream might be.
fn check(report: &Report, arguments: &Arguments) -> Result<()> {
    let size = report.info.virtual_size;
    report.check_allowed(&arguments.allow_formats)?;
    match max_size(arguments)? {
        Some(most) if size > most => Err(Error::invalid(format!(
            "the disk has {size} bytes, over the {most} of --max-size"
        ))),
        _ => Ok(()),
    }
}

fn max_size(arguments: &Arguments) -> Result<Option<u64>> {
    let Some(text) = &arguments.max_size else {
        return Ok(None);
    };
    match parse_size(text) {
        Some(size) => Ok(Some(size)),
        None => Err(Error::invalid(
            "--max-size takes a number of bytes, as in 10G",
        )),
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
    let mut options = StreamOptions::new().allow(allowed);
    if let Some(most) = max_size(arguments)? {
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
