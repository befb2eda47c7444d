//! Checks a disk image as `qemu-img check` does, and repairs it.

mod arguments;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/values.rs"]
mod values;

use std::io::{self, Write};
use std::process::ExitCode;

use arguments::Arguments;
use blockform::check::{Checked, Findings, Fixed, Repair, Scope};
use blockform::{Error, ImageName, OpenOptions};
use common::{complain, quoted};
use values::Form;

const COMMAND: &str = "img-check";

/// The check was not completed.
const NOT_COMPLETED: u8 = 1;
/// The format has nothing to check.
const NOT_SUPPORTED: u8 = 63;

fn main() -> ExitCode {
    let wrong = ExitCode::from(NOT_COMPLETED);
    let arguments = match common::arguments::<Arguments>(COMMAND, wrong) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            complain(COMMAND, &problem);
            wrong
        }
    }
}

fn run(arguments: &Arguments) -> Result<u8, String> {
    let mut options = OpenOptions::new().references(arguments.allow_references.0.clone());
    if let Some(format) = &arguments.format {
        options = options.format(format.as_str());
    }
    let (checked, fixed) = match arguments.repair() {
        None => {
            let checked = match Checked::of_path(&arguments.file, &options) {
                // To qemu-img such a file is raw.
                Err(error @ Error::Unrecognized) => {
                    complain(COMMAND, &about(arguments, &error));
                    return Ok(NOT_SUPPORTED);
                }
                checked => checked.map_err(|e| about(arguments, &e))?,
            };
            (checked, Fixed::default())
        }
        Some(scope) => repair(arguments, options, scope)?,
    };
    let Some(findings) = &checked.findings else {
        complain(COMMAND, "This image format does not support checks");
        return Ok(NOT_SUPPORTED);
    };
    tell_findings(findings, arguments.quiet);
    let text = match arguments.output {
        Form::Json => {
            let name = ImageName::from(arguments.result().as_path());
            checked.to_json(name, fixed) + "\n"
        }
        Form::Human if arguments.quiet => String::new(),
        Form::Human => mended(fixed) + &told(findings),
    };
    let mut out = io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|e| format!("cannot write the result: {e}"))?;
    if findings.errors > 0 {
        return Err("Check failed".to_owned());
    }
    Ok(match (findings.corruptions, findings.leaks) {
        (0, 0) => 0,
        (0, _) => 3,
        _ => 2,
    })
}

fn repair(
    arguments: &Arguments,
    options: OpenOptions,
    scope: Scope,
) -> Result<(Checked, Fixed), String> {
    let repair = Repair::new(options, scope);
    let repaired = match &arguments.to {
        Some(to) => repair.to_path(&arguments.file, to),
        None => repair.in_place(&arguments.file),
    };
    let repaired = repaired.map_err(|e| about(arguments, &e))?;
    Ok((repaired.checked, repaired.fixed))
}

fn about(arguments: &Arguments, error: &blockform::Error) -> String {
    format!(
        "{}: {}",
        quoted(&arguments.file),
        crate::common::told(error)
    )
}

/// Tells on standard error what was found, one finding a line.
fn tell_findings(findings: &Findings, quiet: bool) {
    if quiet {
        return;
    }
    let mut text = String::new();
    for finding in findings.told() {
        let line = ImageName::from(finding.to_string().as_str());
        text.push_str(&format!("{}\n", line.escaped()));
    }
    if findings.left_out() > 0 {
        text.push_str(&format!("and {} more\n", findings.left_out()));
    }
    // Who does not read them has the counts.
    drop(io::stderr().write_all(text.as_bytes()));
}

/// What was mended, in qemu-img's words.
fn mended(fixed: Fixed) -> String {
    if fixed == Fixed::default() {
        return String::new();
    }
    format!(
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} \
         corruptions\n\nDouble checking the fixed image now...\n",
        fixed.leaks, fixed.corruptions
    )
}

/// The result in qemu-img's words.
fn told(findings: &Findings) -> String {
    let mut text = String::new();
    if findings.is_clean() {
        text.push_str("No errors were found on the image.\n");
    }
    if findings.corruptions > 0 {
        text.push_str(&format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the \
             image may corrupt it.\n",
            findings.corruptions
        ));
    }
    if findings.leaks > 0 {
        text.push_str(&format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no \
             harm to data.\n",
            findings.leaks
        ));
    }
    if findings.errors > 0 {
        text.push_str(&format!(
            "\n{} internal errors have occurred during the check.\n",
            findings.errors
        ));
    }
    let clusters = findings.clusters.unwrap_or_default();
    if clusters.total > 0 && clusters.allocated > 0 {
        text.push_str(&format!(
            "{}/{} = {}% allocated, {}% fragmented, {}% compressed clusters\n",
            clusters.allocated,
            clusters.total,
            percent(clusters.allocated, clusters.total),
            percent(clusters.fragmented, clusters.allocated),
            percent(clusters.compressed, clusters.allocated),
        ));
    }
    if let Some(end) = findings.image_end.filter(|end| *end > 0) {
        text.push_str(&format!("Image end offset: {end}\n"));
    }
    text
}

/// A share of a whole with two decimals.
#[allow(
    clippy::cast_precision_loss,
    reason = "two decimals are told, as a C program tells them"
)]
fn percent(part: u64, whole: u64) -> String {
    format!("{:.2}", part as f64 * 100.0 / whole as f64)
}
