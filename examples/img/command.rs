//! A call of a command: its arguments, what it prints and its errors.

use std::ffi::OsString;
use std::io::{self, Write};
use std::iter::once;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use blockform::{Error, Hint, ImageName};
use clap::Parser;
use clap::error::{ContextKind, ErrorKind};

/// Name by which the command was called, verb included: the beginning of its messages.
static NAME: OnceLock<String> = OnceLock::new();

/// Flags of `qemu-img` that are declined, with the reason.
const DECLINED: [(&str, &str); 6] = [
    ("--image-opts", "an image is named by its path"),
    ("--target-image-opts", "an image is named by its path"),
    ("--object", "encrypted images are not read"),
    ("--bitmaps", "bitmaps are not copied"),
    ("--skip-broken-bitmaps", "bitmaps are not copied"),
    ("-r", "the rate is not limited"),
];

/// A call of a command.
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: Vec<OsString>,
}

impl Call {
    /// Parses the arguments and does the work. The exit status of a failure is `wrong`.
    pub(crate) fn run<T: Parser>(
        self,
        wrong: u8,
        work: impl FnOnce(T) -> Result<ExitCode, String>,
    ) -> ExitCode {
        let name = NAME.get_or_init(|| self.name).as_str();
        let command = T::command().name(name).bin_name(name);
        let words = once(OsString::from(name)).chain(self.arguments);
        let parsed = command.try_get_matches_from(words);
        let result = match parsed.and_then(|matches| T::from_arg_matches(&matches)) {
            Ok(arguments) => work(arguments),
            Err(error) if is_asked_for(&error) => {
                error.print().map(|()| ExitCode::SUCCESS).map_err(unwritten)
            }
            Err(error) => Err(format!("{} (try '{name} --help')", in_one_line(&error))),
        };
        result.unwrap_or_else(|problem| {
            complain(&problem);
            ExitCode::from(wrong)
        })
    }
}

fn is_asked_for(error: &clap::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    )
}

fn in_one_line(error: &clap::Error) -> String {
    if let Some(flag) = error.get(ContextKind::InvalidArg) {
        let flag = flag.to_string();
        if let Some((flag, reason)) = DECLINED.iter().find(|(declined, _)| *declined == flag) {
            return format!("the option {flag} of qemu-img is not supported: {reason}");
        }
    }
    let text = error.render().to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"))
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let line = lines.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// Prints on standard error, in one line, what went wrong.
pub(crate) fn complain(problem: &str) {
    let name = NAME.get().map_or("img", String::as_str);
    let line = format!("{name}: {}\n", ImageName::from(problem).escaped());
    // One write, so that output of other programs does not come between.
    drop(io::stderr().write_all(line.as_bytes()));
}

/// Prints a result on standard output.
pub(crate) fn print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(unwritten)
}

/// Problem of a result that cannot be written.
pub(crate) fn unwritten(error: io::Error) -> String {
    format!("cannot write the result: {error}")
}

/// An error in one line: the message, those of its sources, and the flag that helps.
pub(crate) fn told(error: &Error) -> String {
    let Some(hint) = error.hint() else {
        return error.chain();
    };
    let advice = match hint {
        Hint::NameFormat => "name the format with -f".to_owned(),
        Hint::ReadAsRaw => "if it is a raw disk, name that format with -f raw".to_owned(),
        Hint::ChooseDisk => "choose one with --disk".to_owned(),
        Hint::AllowSameDirectory => {
            "allow it with --allow-references=same-dir if the image is trusted".to_owned()
        }
        Hint::AllowWithin(folder) => format!(
            "allow it with --allow-references={} if the image is trusted",
            quoted(&folder)
        ),
        Hint::RaiseLimit(limit) => {
            format!("raise it with --limit {limit}=NUMBER if the image is trusted")
        }
        Hint::AllowSpill => {
            "write it to a file first, or allow a spill file with --spill".to_owned()
        }
        other => other.to_string(),
    };
    format!("{}; {advice}", error.chain())
}

/// An error about a file, in one line.
pub(crate) fn about(path: &Path, error: &Error) -> String {
    format!("{}: {}", quoted(path), told(error))
}

/// A path in quotes, escaped.
pub(crate) fn quoted(path: &Path) -> String {
    ImageName::from(path).quoted().to_string()
}
