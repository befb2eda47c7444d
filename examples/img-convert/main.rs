//! Converts disk images as `qemu-img convert` does, into a file that is whole in the end or absent.

mod arguments;
#[path = "../common/mod.rs"]
mod common;
mod progress;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use arguments::{Arguments, CacheMode};
use blockform::convert::{Cancel, ConvertOptions};
use blockform::image::{Backing, parse_options};
use blockform::storage::Concat;
use blockform::{
    BlockSource, Error, Image, ImageName, OpenOptions, PathResolver, Reference, ReferenceKind,
    Resolved, Resolver, Result,
};
use common::{complain, quoted};
use progress::Meter;

const COMMAND: &str = "img-convert";

fn main() -> ExitCode {
    let arguments = match common::arguments::<Arguments>(COMMAND) {
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
    let (sources, destination) = arguments.check()?;
    let mut images = Vec::new();
    for path in sources {
        images.push(open(path, arguments).map_err(|e| about(path, &e))?);
    }
    let cancel = Cancel::new();
    let stop = cancel.clone();
    ctrlc::set_handler(move || stop.cancel())
        .map_err(|e| format!("cannot prepare for being interrupted: {e}"))?;
    let options = options(arguments, destination)?.cancel(cancel);
    let meter = Meter::new(arguments.progress && !arguments.quiet);
    let options = meter.attach(options);
    let converted = joined(images).and_then(|source| {
        if arguments.no_create {
            options.convert_into_existing(&*source, destination)
        } else {
            options.convert_to_path(&*source, destination)
        }
    });
    meter.finish(converted.is_ok());
    converted.map(drop).map_err(|error| error.chain())
}

fn about(path: &Path, error: &Error) -> String {
    format!("{}: {}", quoted(path), error.chain())
}

fn open(path: &Path, arguments: &Arguments) -> Result<Box<dyn Image>> {
    let mut options = OpenOptions::new().references(arguments.allow_references.0.clone());
    if let Some(format) = &arguments.source_format {
        options = options.format(format);
    }
    if let Some(snapshot) = &arguments.snapshot {
        options = options.snapshot(snapshot.clone());
    }
    options.open_path(path)
}

/// The images one behind the other. One alone stays what it is, so that what it has packed can be
/// copied packed.
fn joined(images: Vec<Box<dyn Image>>) -> Result<Box<dyn BlockSource>> {
    let mut images = images;
    match images.pop() {
        Some(image) if images.is_empty() => Ok(Box::new(image)),
        last => {
            let parts = images.into_iter().chain(last);
            let parts = parts.map(|image| Arc::new(image) as Arc<dyn BlockSource>);
            Ok(Box::new(Concat::new(parts)?))
        }
    }
}

fn options(arguments: &Arguments, destination: &Path) -> Result<ConvertOptions, String> {
    let mut options = ConvertOptions::to(&arguments.output_format)
        .compress(arguments.compress)
        .target_is_zero(arguments.target_is_zero)
        .sync(arguments.cache != CacheMode::Unsafe);
    for text in &arguments.options {
        for (name, value) in parse_options(text).map_err(|e| e.chain())? {
            options = options.option(name, value);
        }
    }
    if let Some(threads) = arguments.threads {
        options = options.threads(threads);
    }
    if let Some(bytes) = arguments.sparse_size {
        options = options.sparse_size(bytes);
    }
    if let (Some(path), Some(format)) = (&arguments.backing, &arguments.backing_format) {
        let name = ImageName::from(path.as_path());
        let image = open_backing(&name, format, arguments, destination)
            .map_err(|e| format!("backing file {}: {}", name.quoted(), e.chain()))?;
        options = options.overlay(Backing::new(name, format), image);
    }
    Ok(options)
}

/// Opens the backing file of the image to be written by the same rules as one that an image names:
/// whoever opens the result will have to open it by these, too.
fn open_backing(
    name: &ImageName,
    format: &str,
    arguments: &Arguments,
    destination: &Path,
) -> Result<Arc<dyn Image>> {
    let reference = Reference::new(ReferenceKind::BackingFile, name.clone())
        .with_format(Some(ImageName::from(format)));
    let policy = arguments.allow_references.0.clone();
    match PathResolver::new(destination, policy)?.resolve(&reference)? {
        Resolved::Open { source, within, .. } => {
            let options = OpenOptions::new().format(format).resolver(within);
            Ok(Arc::from(options.open(source)?))
        }
        _ => Err(Error::Detached {
            reference: Box::new(reference),
        }),
    }
}
