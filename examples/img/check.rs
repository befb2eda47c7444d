//! Checks a disk image as `qemu-img check` does, and repairs it.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use blockform::check::{Checked, Findings, Fixed, Repair, Scope};
use blockform::{Error, ImageName, OpenOptions};
use clap::{Parser, ValueEnum};

use crate::arguments::{Opening, path};
use crate::command::{Call, about, complain, print};
use crate::compare::SourceCache;
use crate::info::Form;

/// Checks a disk image as `qemu-img check` does: whether its tables, counts and copies agree. The exit
/// status is 0 if nothing is wrong, 1 if the check could not be completed, 2 if the image is corrupt, 3
/// if it has leaked clusters and nothing worse, and 63 if its format has nothing to check.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// The format of the image; detected unless given
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// The form of what is printed
    #[arg(long, value_name = "human|json", default_value = "human")]
    output: Form,
    /// Repairs the image: leaked clusters, all that can be mended, or also by what only a second copy has
    #[arg(short, long, value_name = "leaks|all|redundant", requires = "where_to")]
    repair: Option<Mended>,
    /// Writes the repaired image to a new file
    #[arg(long, value_name = "NEW", group = "where_to", requires = "repair", value_parser = path())]
    to: Option<PathBuf>,
    /// Repairs the image where it is
    #[arg(long, group = "where_to", requires = "repair")]
    in_place: bool,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    cache: SourceCache,
    #[command(flatten)]
    opening: Opening,
    /// The image
    #[arg(value_name = "FILE", value_parser = path())]
    file: PathBuf,
}

/// What is to be repaired.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mended {
    Leaks,
    All,
    Redundant,
}

impl Arguments {
    /// What is to be repaired, if anything.
    fn repair(&self) -> Option<Scope> {
        self.repair.map(|mended| match mended {
            Mended::Leaks => Scope::Leaks,
            Mended::All => Scope::All,
            Mended::Redundant => Scope::Redundant,
        })
    }

    /// The image that was checked last.
    fn result(&self) -> &PathBuf {
        self.to.as_ref().unwrap_or(&self.file)
    }
}

/// The check was not completed.
const NOT_COMPLETED: u8 = 1;
/// The format has nothing to check.
const NOT_SUPPORTED: u8 = 63;

pub(crate) fn main(call: Call) -> ExitCode {
    call.run(NOT_COMPLETED, |arguments: Arguments| {
        run(&arguments).map(ExitCode::from)
    })
}

fn run(arguments: &Arguments) -> Result<u8, String> {
    let options = arguments.opening.options(arguments.format.as_deref());
    let (checked, fixed) = match arguments.repair() {
        None => {
            let checked = match Checked::of_path(&arguments.file, &options) {
                // To qemu-img such a file is raw.
                Err(error @ Error::Unrecognized) => {
                    complain(&about(&arguments.file, &error));
                    return Ok(NOT_SUPPORTED);
                }
                checked => checked.map_err(|e| about(&arguments.file, &e))?,
            };
            (checked, Fixed::default())
        }
        Some(scope) => repair(arguments, options, scope)?,
    };
    let Some(findings) = &checked.findings else {
        complain("This image format does not support checks");
        return Ok(NOT_SUPPORTED);
    };
    tell_findings(findings, arguments.quiet);
    let text = match arguments.output {
        Form::Json => {
            let name = ImageName::from(arguments.result().as_path());
            checked.to_json(name, fixed) + "\n"
        }
        Form::Human if arguments.quiet => String::new(),
        Form::Human => repaired(fixed) + &text(findings),
    };
    print(&text)?;
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
    let repaired = repaired.map_err(|e| about(&arguments.file, &e))?;
    Ok((repaired.checked, repaired.fixed))
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
fn repaired(fixed: Fixed) -> String {
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
fn text(findings: &Findings) -> String {
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
