//! All verbs in one program. The verb is the first argument, `img check FILE`, also if the program is called
//! `qemu-img`; or the end of the name by which it is called, `img-check FILE`.

mod arguments;
mod check;
mod command;
mod compare;
mod convert;
mod info;
mod map;
mod measure;
#[cfg(feature = "plan")]
mod partition;
mod progress;
mod qemu;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use command::Call;

/// A verb: its name, its description and its function.
type Verb = (&'static str, &'static str, fn(Call) -> ExitCode);

const VERBS: &[Verb] = &[
    ("check", "Checks an image, and repairs it", check::main),
    ("compare", "Compares the disks of two images", compare::main),
    (
        "convert",
        "Converts an image into another format",
        convert::main,
    ),
    ("info", "Describes images", info::main),
    (
        "map",
        "Lists where the bytes of a disk are stored",
        map::main,
    ),
    (
        "measure",
        "Computes the size of a converted image",
        measure::main,
    ),
    #[cfg(feature = "plan")]
    ("partition", "Converts an image in parts", partition::main),
];

/// Verbs of `qemu-img` that are missing.
const MISSING: [&str; 9] = [
    "amend", "bench", "bitmap", "commit", "create", "dd", "rebase", "resize", "snapshot",
];

/// Works on disk images as `qemu-img` does.
#[derive(Debug, Parser)]
#[command(version, override_usage = "img VERB [OPTIONS] FILE…", after_help = verbs())]
struct Arguments {}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let called = Path::new(&called).file_stem().unwrap_or_default();
    let called = called.to_string_lossy().into_owned();
    let mut arguments: Vec<OsString> = arguments.collect();
    // The verb, and the name by which messages call this program.
    let (verb, name) = match (called.strip_prefix("img-"), arguments.first()) {
        (Some(verb), _) => (verb.to_owned(), called.clone()),
        (None, Some(word)) if !word.as_encoded_bytes().starts_with(b"-") => {
            let verb = word.to_string_lossy().into_owned();
            arguments.remove(0);
            let name = format!("{called} {verb}");
            (verb, name)
        }
        _ => {
            let name = called;
            return Call { name, arguments }.run(1, |Arguments {}| Err("no verb".to_owned()));
        }
    };
    match VERBS.iter().find(|(known, ..)| *known == verb) {
        Some((_, _, main)) => main(Call { name, arguments }),
        None => Call {
            name: called,
            arguments: Vec::new(),
        }
        .run(1, |Arguments {}| Err(no_such(&verb))),
    }
}

fn no_such(verb: &str) -> String {
    if MISSING.contains(&verb) {
        format!("{verb} is not supported yet: use {verb} of QEMU's qemu-img")
    } else if verb == "partition" {
        "the verb partition needs a build with --features plan".to_owned()
    } else {
        format!("there is no verb {verb}; --help lists the verbs")
    }
}

/// The verbs as the help shows them.
fn verbs() -> String {
    let verbs = VERBS.iter();
    let lines = verbs.map(|(verb, text, _)| format!("  {verb:9}  {text}\n"));
    format!(
        "Verbs:\n{}\nNot supported yet: {}",
        lines.collect::<String>(),
        MISSING.join(", ")
    )
}
