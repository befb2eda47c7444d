//! Converts disk images as `qemu-img convert` does, into a file that is whole in the end or absent, or
//! to standard output; from files, or from standard input.

mod arguments;
mod losses;
mod standard;
mod stdin;

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use arguments::Arguments;
use blockform::convert::{Cancel, Conversion, ConvertOptions, ImageSpec, Input, Summary};
use blockform::image::Backing;
use blockform::salvage::Salvage;
use blockform::storage::Concat;
use blockform::{
    BlockSource, Error, Image, ImageName, OpenOptions, PathResolver, Reference, ReferenceKind,
    Resolved, Resolver, Result,
};

use crate::command::{Call, about, complain, print, told, unwritten};
use crate::progress::Meter;
use crate::qemu::CacheMode;

/// Time for the reader of standard output to notice that the conversion was stopped.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) fn main(call: Call) -> ExitCode {
    call.run(1, |arguments: Arguments| run(&arguments))
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let (sources, destination) = arguments.check()?;
    let cancel = Cancel::new();
    let stop = cancel.clone();
    let to_stdout = standard::is_standard(destination);
    ctrlc::set_handler(move || {
        stop.cancel();
        if to_stdout {
            // A write to a reader that does not read would wait for ever. There is nothing to clear away.
            std::thread::sleep(PATIENCE);
            complain("cancelled");
            std::process::exit(1);
        }
    })
    .map_err(|e| format!("cannot prepare for being interrupted: {e}"))?;
    let (mut images, mut files): (Vec<Box<dyn BlockSource>>, Vec<_>) = (Vec::new(), Vec::new());
    let (mut salvage, mut stream) = (None, None);
    for path in sources {
        let options = open_options(arguments);
        if standard::is_standard(path) {
            let image = stdin::open(&options, arguments, destination, &cancel);
            stream = Some(image.map_err(|e| told(&e))?);
        } else {
            let (image, file) = options
                .open_path_and_file(path)
                .map_err(|e| about(path, &e))?;
            files.push(file);
            match &arguments.salvage {
                Some(map) => salvage = Some((Arc::new(Salvage::of(image)), map.as_deref())),
                None => images.push(Box::new(image)),
            }
        }
    }
    let image = image(arguments, destination)?;
    let meter = Meter::new(arguments.progress && !arguments.quiet, to_stdout);
    if let Some((salvage, map)) = &salvage {
        losses::check_map(*map, &**salvage, destination)?;
    }
    let joined = joined(images).map_err(|error| told(&error))?;
    let source = match (&stream, &salvage) {
        (Some(stream), _) => Input::from(stream),
        (None, Some((salvage, _))) => Input::from(salvage),
        (None, None) => Input::from(&joined),
    };
    let converted = if arguments.also.is_empty() {
        let options = options(image, &files, arguments).cancel(cancel);
        let options = match meter.report() {
            Some(report) => options.progress(report),
            None => options,
        };
        if to_stdout {
            convert_to_stdout(&options, source)
        } else if arguments.no_create {
            options.convert_into_existing(source, destination)
        } else {
            options.convert_to_path(source, destination)
        }
    } else {
        let mut conversion = Conversion::of(source).cancel(cancel);
        if let Some(report) = meter.report() {
            conversion = conversion.progress(move |target, progress| match target {
                0 => report(progress),
                _ => ControlFlow::Continue(()),
            });
        }
        convert_to_all(conversion, image, &files, destination, arguments)
    };
    meter.finish(converted.is_ok());
    let summary = converted.map_err(|error| told(&error))?;
    let code = match (&salvage, sources) {
        (Some((salvage, map)), [source]) => losses::tell(salvage, source, *map)?,
        _ => ExitCode::SUCCESS,
    };
    if arguments.quiet {
        return Ok(code);
    }
    let digests = summary
        .content
        .iter()
        .map(ToString::to_string)
        .chain(summary.file_digests.iter().map(|d| format!("source {d}")))
        .chain(summary.target_digests.iter().map(|d| format!("target {d}")));
    let text: String = digests.map(|digest| digest + "\n").collect();
    // Standard output is the image then.
    match to_stdout {
        true => io::stderr().write_all(text.as_bytes()).map_err(unwritten)?,
        false => print(&text)?,
    }
    Ok(code)
}

/// Writes the image to standard output.
fn convert_to_stdout(options: &ConvertOptions, source: Input<'_>) -> Result<Summary> {
    if io::stdout().is_terminal() {
        return Err(Error::invalid(
            "standard output is a terminal: send it to a file or a program",
        ));
    }
    let cannot_open = |error| Error::io("open standard output", error);
    let output = standard::file(&io::stdout()).map_err(cannot_open)?;
    let identity = standard::identity(&output).map_err(cannot_open)?;
    if identity.is_some_and(|file| source.uses_file(file)) {
        return Err(Error::invalid(
            "standard output is a file that the conversion reads: it cannot be its target",
        ));
    }
    options.convert_to_writer(source, output)
}

/// Converts into DST and all others in one read. Prints a line for each target that failed while others went
/// on; the last of them is the error.
fn convert_to_all(
    conversion: Conversion<'_>,
    image: ImageSpec,
    files: &[Arc<dyn BlockSource>],
    destination: &Path,
    arguments: &Arguments,
) -> Result<Summary> {
    let mut paths = vec![destination];
    let mut conversion = conversion
        .limits(arguments.opening.limits())
        .allow_failure(arguments.allow_failure)
        .check_packed(arguments.check_packed)
        .sync(arguments.cache != CacheMode::Unsafe)
        .to_path(image, destination);
    for also in &arguments.also {
        let mut image = ImageSpec::new(&also.format)
            .compress(arguments.compress)
            .verify(arguments.verify);
        for (name, value) in &also.options {
            image = image.option(name, value);
        }
        if let Some(bytes) = arguments.sparse_size {
            image = image.sparse_size(bytes);
        }
        conversion = conversion.to_path(image, &also.path);
        paths.push(&also.path);
    }
    if let Some(threads) = arguments.threads {
        conversion = conversion.threads(threads);
    }
    if let Some(algorithm) = arguments.content_digest {
        conversion = conversion.content_digest(algorithm);
    }
    if let Some(digest) = &arguments.expect_content {
        conversion = conversion.expect_content(digest.clone());
    }
    if let [file] = files {
        for digest in &arguments.expect_source {
            conversion = conversion.expect_file(Arc::clone(file), digest.clone());
        }
        for algorithm in &arguments.source_digest {
            conversion = conversion.file_digest(Arc::clone(file), *algorithm);
        }
    }
    let outcome = conversion.run()?;
    let mut first = None;
    let mut last = Ok(());
    let mut failed = Vec::new();
    for (result, path) in outcome.targets.into_iter().zip(paths) {
        match result {
            Ok(summary) => first = first.or(Some(summary)),
            Err(error) => {
                failed.push(about(path, &error));
                last = Err(error);
            }
        }
    }
    failed.pop();
    failed.iter().for_each(|problem| complain(problem));
    let mut summary = first.unwrap_or_default();
    summary.file_digests = outcome.file_digests;
    last.map(|()| summary)
}

/// The options of a conversion into `image` alone.
fn options(
    image: ImageSpec,
    files: &[Arc<dyn BlockSource>],
    arguments: &Arguments,
) -> ConvertOptions {
    let mut options = ConvertOptions::from(image)
        .limits(arguments.opening.limits())
        .sync(arguments.cache != CacheMode::Unsafe)
        .check_packed(arguments.check_packed);
    if let Some(threads) = arguments.threads {
        options = options.threads(threads);
    }
    if let Some(algorithm) = arguments.content_digest {
        options = options.content_digest(algorithm);
    }
    if let Some(digest) = &arguments.expect_content {
        options = options.expect_content(digest.clone());
    }
    // Several sources have no file of their own.
    if let [file] = files {
        for digest in &arguments.expect_source {
            options = options.expect_file(Arc::clone(file), digest.clone());
        }
        for algorithm in &arguments.source_digest {
            options = options.file_digest(Arc::clone(file), *algorithm);
        }
    }
    if arguments.resumable {
        options = options.resumable(ConvertOptions::CHECKPOINT);
    }
    options
}

fn open_options(arguments: &Arguments) -> OpenOptions {
    let mut options = arguments
        .opening
        .options(arguments.source_format.as_deref());
    if let Some(snapshot) = &arguments.snapshot {
        options = options.snapshot(snapshot.clone());
    }
    if let Some(disk) = &arguments.disk {
        options = options.disk(disk.as_str());
    }
    options
        .salvage(arguments.salvage.is_some())
        .verify_manifest(arguments.verify_manifest)
}

/// The images one behind the other. One image alone is not wrapped: compressed data is copied as it is.
fn joined(images: Vec<Box<dyn BlockSource>>) -> Result<Box<dyn BlockSource>> {
    let mut images = images;
    match images.pop() {
        Some(image) if images.is_empty() => Ok(image),
        last => {
            let parts = images.into_iter().chain(last);
            Ok(Box::new(Concat::new(parts.map(Arc::from))?))
        }
    }
}

/// The image to be written to DST.
fn image(arguments: &Arguments, destination: &Path) -> Result<ImageSpec, String> {
    let (named, _) = arguments.target.options()?;
    let mut image = ImageSpec::new(&arguments.target.format)
        .compress(arguments.compress)
        .target_is_zero(arguments.target_is_zero)
        .verify(arguments.verify);
    for (name, value) in named {
        image = image.option(name, value);
    }
    for algorithm in &arguments.target_digest {
        image = image.target_digest(*algorithm);
    }
    if let Some(bytes) = arguments.sparse_size {
        image = image.sparse_size(bytes);
    }
    if let Some((name, format)) = arguments.backing()? {
        let backing = open_backing(&name, &format, arguments, destination)
            .map_err(|e| format!("backing file {}: {}", name.quoted(), told(&e)))?;
        image = image.overlay(Backing::new(name, format), backing);
    }
    Ok(image)
}

/// Opens the backing file of the image to be written by the rules for a file that an image names: opening the
/// result takes the same rules.
fn open_backing(
    name: &ImageName,
    format: &str,
    arguments: &Arguments,
    destination: &Path,
) -> Result<Arc<dyn Image>> {
    let reference = Reference::new(ReferenceKind::BackingFile, name.clone())
        .with_format(Some(ImageName::from(format)));
    let policy = arguments.opening.allow_references.0.clone();
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
