//! Converts a disk image in parts, each of which another process may do, on another machine.

mod arguments;
#[path = "../common/mod.rs"]
mod common;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use arguments::{Arguments, Source, Step, Target};
use blockform::convert::partition::{Cut, Plan};
use blockform::convert::{Cancel, ConvertOptions};
use blockform::image::parse_options;
use blockform::storage::PendingFile;
use blockform::{BlockTarget, Error, Image, Limits, OpenOptions};
use common::{complain, quoted};

const COMMAND: &str = "img-partition";

fn main() -> ExitCode {
    let arguments = match common::arguments::<Arguments>(COMMAND, ExitCode::FAILURE) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match run(arguments.step) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            complain(COMMAND, &problem);
            ExitCode::FAILURE
        }
    }
}

fn run(step: Step) -> Result<(), String> {
    let cancel = Cancel::new();
    let stop = cancel.clone();
    ctrlc::set_handler(move || stop.cancel())
        .map_err(|e| format!("cannot prepare for being interrupted: {e}"))?;
    match step {
        Step::Plan {
            source,
            source_format,
            output_format,
            options,
            sparse_size,
            parts,
            part_data,
            plan,
        } => {
            let image = open(&source, source_format.as_deref())?;
            let mut to = ConvertOptions::to(output_format).cancel(cancel);
            for text in &options {
                for (name, value) in parse_options(text).map_err(|e| crate::common::told(&e))? {
                    to = to.option(name, value);
                }
            }
            if let Some(bytes) = sparse_size {
                to = to.sparse_size(bytes);
            }
            let cut = match part_data {
                Some(bytes) => Cut::Data(bytes),
                None => Cut::Parts(parts),
            };
            let made = Plan::new(&*image, &to, cut)
                .and_then(|plan| plan.source_file(&source.path))
                .map_err(|e| about(&source.path, &e))?;
            write(&made, &plan).map_err(|e| about(&plan, &e))?;
            let parts = made.parts().len();
            writeln!(io::stdout(), "{parts}").map_err(|e| format!("cannot tell the parts: {e}"))
        }
        Step::Prepare { target } => {
            let plan = read(&target)?;
            plan.prepare(&target.path)
                .map_err(|e| crate::common::told(&e))
        }
        Step::Part {
            target,
            source,
            index,
            threads,
        } => {
            let mut plan = read(&target)?.cancel(cancel);
            if let Some(threads) = threads {
                plan = plan.threads(threads);
            }
            let image = open(&source, Some(plan.source_format()))?;
            plan.check_source_file(&source.path)
                .and_then(|()| plan.run_part(&*image, &target.path, index))
                .map_err(|e| crate::common::told(&e))?;
            Ok(())
        }
        Step::Seal { target } => {
            let plan = read(&target)?;
            plan.seal(&target.path).map_err(|e| crate::common::told(&e))
        }
    }
}

fn about(path: &Path, error: &Error) -> String {
    format!("{}: {}", quoted(path), crate::common::told(error))
}

fn open(source: &Source, format: Option<&str>) -> Result<Box<dyn Image>, String> {
    let mut options = OpenOptions::new().references(source.allow_references.0.clone());
    if let Some(format) = format {
        options = options.format(format);
    }
    options
        .open_path(&source.path)
        .map_err(|e| about(&source.path, &e))
}

fn write(plan: &Plan, path: &Path) -> blockform::Result<()> {
    let file = PendingFile::create(path)?;
    file.storage().write_all_at(plan.to_json()?.as_bytes(), 0)?;
    file.commit(true)
}

fn read(target: &Target) -> Result<Plan, String> {
    let text = std::fs::read_to_string(&target.plan);
    let text = text.map_err(|e| format!("cannot read {}: {e}", quoted(&target.plan)))?;
    let plan = Plan::from_json(&text, &Limits::default()).map_err(|e| about(&target.plan, &e))?;
    Ok(match &target.folder {
        Some(folder) => plan.in_folder(folder),
        None => plan,
    })
}
