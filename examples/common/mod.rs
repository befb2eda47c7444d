//! What the commands share: how they read their arguments and how they say what went wrong.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockform::{Error, Hint, ImageName, PathPolicy};
use clap::Parser;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;

/// The arguments of this command, or the exit status with which it is over: help was asked for, or
/// something is wrong with the arguments, which is said on standard error in one line; the status is
/// `wrong` then.
pub(crate) fn arguments<T: Parser>(command: &str, wrong: ExitCode) -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        _ => {
            let text = error.render().to_string();
            let told: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.starts_with("Usage:"))
                .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
                .collect();
            let told = told.join(" ");
            let told = told.strip_prefix("error: ").unwrap_or(&told);
            complain(command, &format!("{told} (try '{command} --help')"));
            wrong
        }
    })
}

/// Says on standard error what went wrong, in one line, whatever the text holds.
pub(crate) fn complain(command: &str, problem: &str) {
    let line = format!("{command}: {}\n", ImageName::from(problem).escaped());
    // In one write, so that what others say there does not come between.
    drop(io::stderr().write_all(line.as_bytes()));
}

/// Takes an argument as a path, and nothing else than a path.
pub(crate) fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|name| match name.is_empty() {
        true => Err("a file name cannot be empty"),
        false => Ok(PathBuf::from(name)),
    })
}

/// An error with its sources, and the flag that helps.
pub(crate) fn told(error: &Error) -> String {
    let Some(hint) = error.hint() else {
        return error.chain();
    };
    let advice = match hint {
        Hint::NameFormat => "name the format that it is meant to have with -f".to_owned(),
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
            format!("raise it with --limit {limit}=N if the image is trusted")
        }
        Hint::AllowSpill => {
            "write it to a file first, or allow a temporary file with --spill".to_owned()
        }
        other => other.to_string(),
    };
    format!("{}; {advice}", error.chain())
}

/// A path in quotes, escaped.
pub(crate) fn quoted(path: &Path) -> String {
    ImageName::from(path).quoted().to_string()
}

/// What `--allow-references` means.
#[derive(Debug, Clone)]
pub(crate) struct Policy(pub(crate) PathPolicy);

impl From<OsString> for Policy {
    fn from(text: OsString) -> Self {
        Policy(match text.to_str() {
            Some(text) => PathPolicy::from_text(text),
            None => PathPolicy::Within(PathBuf::from(text)),
        })
    }
}
