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

/// Checks the tables, counts and copies of a disk image as `qemu-img check` does, and repairs them. The exit
/// status is 0 if nothing is wrong, 1 if the check was not completed, 2 if the image is corrupt, 3 if it
/// has leaked clusters and nothing worse, and 63 if its format has nothing to check.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
struct Arguments {
    /// Format of the image; detected unless given
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Form of the result
    #[arg(long, value_name = "human|json", default_value = "human")]
    output: Form,
    /// Repairs leaked clusters, all that needs no guess, or also data that only a redundant table has
    #[arg(short, long, value_name = "leaks|all|redundant", requires = "where_to")]
    repair: Option<Mended>,
    /// Writes the repaired image to a new file
    #[arg(long, value_name = "NEW", group = "where_to", requires = "repair", value_parser = path())]
    to: Option<PathBuf>,
    /// Repairs the image in place
    #[arg(long, group = "where_to", requires = "repair")]
    in_place: bool,
    /// Prints nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    cache: SourceCache,
    #[command(flatten)]
    opening: Opening,
    /// Image
    #[arg(value_name = "FILE", value_parser = path())]
    file: PathBuf,
}

/// Scope of a repair.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mended {
    Leaks,
    All,
    Redundant,
}

impl Arguments {
    /// The scope of the repair, if one is asked for.
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

/// Exit status if the check was not completed.
const NOT_COMPLETED: u8 = 1;
/// Exit status if the format has nothing to check.
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
                // qemu-img calls such a file raw.
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

/// Prints the findings on standard error, one a line.
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
    // A closed standard error does not stop the check: the counts are on standard output.
    drop(io::stderr().write_all(text.as_bytes()));
}

/// Report of a repair in qemu-img's words.
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

/// Report of the result in qemu-img's words.
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

/// Share of a whole, in percent with two decimals.
#[allow(
    clippy::cast_precision_loss,
    reason = "two decimals are printed, as by a C program"
)]
fn percent(part: u64, whole: u64) -> String {
    format!("{:.2}", part as f64 * 100.0 / whole as f64)
}
