//! Named checks that tell if an image can be handed to software that trusts it. `guide/safety.md` describes
//! each of them, and `tests/inspect/safety.rs` compares them with those of oslo.utils.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::detect::{Detected, detect};
use crate::error::{Error, Result};
use crate::formats::raw::RAW;
use crate::image::{Image, Outcome, SafetyCheck, Value};
use crate::inspect::mbr;
use crate::name::ImageName;
use crate::ondisk::luks;
use crate::open::{Layer, OpenOptions};
use crate::reference::ReferenceKind;
use crate::resolver::DetachReferences;
use crate::source::BlockSource;
use crate::storage::FileStorage;

/// All checks, in the order in which they are told. The names of oslo.utils are kept where it has one.
const NAMES: [&str; 11] = [
    "format",
    "banned",
    "version",
    "unknown_features",
    "backing_file",
    "data_file",
    "descriptor",
    "footer",
    "mbr",
    "structure",
    "limits",
];
/// The checks that say what is wrong better than `structure` can.
const EXACT: [&str; 5] = [
    "format",
    "version",
    "unknown_features",
    "descriptor",
    "footer",
];

/// The checks of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Safety {
    checks: Vec<SafetyCheck>,
}

impl Safety {
    /// Checks the image in the file at `path`. Nothing else is opened.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::InvalidInput`] if the format that the options
    /// name is not known. Faults of the image are in the checks.
    pub fn of_path(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        Safety::of_source(Arc::new(FileStorage::open(path.as_ref())?), options)
    }

    /// Checks the image in `source`, likewise.
    ///
    /// # Errors
    /// As [`of_path`](Self::of_path).
    pub fn of_source(source: Arc<dyn BlockSource>, options: &OpenOptions) -> Result<Self> {
        let detected = detect(&source)?;
        Safety::of_detected(source, detected, options)
    }

    /// Checks the image in `source`, which was found to be all this.
    pub(crate) fn of_detected(
        source: Arc<dyn BlockSource>,
        detected: Detected,
        options: &OpenOptions,
    ) -> Result<Self> {
        let mut checks = Checks::default();
        let format = match options.format_among(&detected) {
            Ok(format) => Some(format),
            Err(error @ Error::InvalidInput(_)) => return Err(error),
            Err(error @ Error::Unsupported { .. }) => {
                checks.note(SafetyCheck::passed("format"));
                checks.note(SafetyCheck::failed("banned", error.to_string()));
                None
            }
            Err(error) => {
                checks.refused(&error);
                None
            }
        };
        if let Some(format) = format {
            checks.note(SafetyCheck::passed("format"));
            match format.safety(&source, options.limits_of()) {
                Ok(own) => own.into_iter().for_each(|check| checks.note(check)),
                Err(error @ Error::Io { .. }) => return Err(error),
                // Opening meets it, too, and says the same.
                Err(_) => {}
            }
        }
        if format.is_none_or(|format| format.id() == RAW) {
            checks.of_disk(&source, &detected)?;
        }
        if format.is_some() || !checks.any_failed() {
            let resolver = Arc::new(DetachReferences);
            match Layer::of_detected(source, detected, resolver, options) {
                Ok(layer) => checks.of_image(&*layer.image),
                Err(error @ Error::Io { .. }) => return Err(error),
                Err(error) => checks.refused(&error),
            }
        }
        Ok(checks.finish())
    }

    /// The checks of an image that could not be looked into, for this reason.
    pub(crate) fn unknown(reason: &Error) -> Self {
        let mut checks = Checks::default();
        checks.note(SafetyCheck::failed("structure", reason.to_string()));
        checks.finish()
    }

    /// The checks, in an order that stays the same.
    pub fn checks(&self) -> &[SafetyCheck] {
        &self.checks
    }

    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &SafetyCheck> {
        self.checks.iter().filter(|check| check.has_failed())
    }

    /// Returns true if no check failed.
    pub fn is_safe(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The checks as a tree, for a description in JSON.
    pub fn to_value(&self) -> Value {
        let checks = self.checks.iter().map(|check| {
            let (outcome, reason) = match &check.outcome {
                Outcome::Passed => ("passed", None),
                Outcome::Failed(reason) => ("failed", Some(reason.clone())),
                Outcome::NotApplicable => ("not-applicable", None),
            };
            Value::map()
                .with("check", check.name)
                .with("outcome", outcome)
                .with_some("reason", reason)
        });
        Value::map()
            .with("safe", self.is_safe())
            .with_list("checks", checks)
    }
}

impl fmt::Display for Safety {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let safe = if self.is_safe() { "yes" } else { "no" };
        writeln!(f, "safe: {safe}")?;
        for check in &self.checks {
            match &check.outcome {
                Outcome::Passed => writeln!(f, "    {}: passed", check.name)?,
                Outcome::Failed(reason) => writeln!(f, "    {}: failed: {reason}", check.name)?,
                Outcome::NotApplicable => {}
            }
        }
        Ok(())
    }
}

/// Report on an image that cannot be described: the checks, which say why.
#[derive(Debug, Clone)]
pub struct Unopened {
    /// Caller's name for the file.
    pub filename: ImageName,
    /// The checks of its safety.
    pub safety: Safety,
}

impl Unopened {
    /// Report on the file that the caller calls `filename`.
    pub fn new(filename: ImageName, safety: Safety) -> Self {
        Unopened { filename, safety }
    }

    /// As [`Report::to_value`](super::Report::to_value), with what is known: the name and the checks.
    pub fn to_value(&self) -> Value {
        let own = Value::map().with("safety", self.safety.to_value());
        Value::map()
            .with("filename", self.filename.clone())
            .with("blockform", own)
    }
}

impl fmt::Display for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "image: {}", self.filename.escaped())?;
        write!(f, "{}", self.safety)
    }
}

/// Checks on their way.
#[derive(Debug, Default)]
struct Checks(Vec<SafetyCheck>);

impl Checks {
    /// Takes a check. One that failed stays failed, with its first reason.
    fn note(&mut self, check: SafetyCheck) {
        match self.0.iter_mut().find(|known| known.name == check.name) {
            Some(known) if known.has_failed() => {}
            Some(known) => *known = check,
            None => self.0.push(check),
        }
    }

    fn any_failed(&self) -> bool {
        self.0.iter().any(SafetyCheck::has_failed)
    }

    /// Notes the error that refused the image.
    fn refused(&mut self, error: &Error) {
        let known = |name: &str| EXACT.contains(&name);
        let explained = self
            .0
            .iter()
            .any(|check| check.has_failed() && known(check.name));
        match error {
            Error::Ambiguous { .. } => self.note(SafetyCheck::failed("format", error.to_string())),
            // Nothing is known of it that could be trusted: a raw disk.
            Error::Unrecognized => self.note(SafetyCheck::passed("format")),
            Error::LimitExceeded { .. } => {
                self.note(SafetyCheck::failed("limits", error.to_string()));
            }
            _ if explained => {}
            _ => self.note(SafetyCheck::failed("structure", error.chain())),
        }
    }

    /// Notes the references of an open image.
    fn of_image(&mut self, image: &dyn Image) {
        self.note(SafetyCheck::passed("structure"));
        self.note(SafetyCheck::passed("limits"));
        if image.format() != RAW {
            self.note(SafetyCheck::passed("backing_file"));
        }
        for reference in image.references() {
            let name = match reference.kind {
                ReferenceKind::BackingFile => "backing_file",
                ReferenceKind::DataFile => "data_file",
                ReferenceKind::ExtentFile | ReferenceKind::PackageFile => "descriptor",
            };
            self.note(SafetyCheck::failed(name, format!("refers to {reference}")));
        }
    }

    /// Notes the content of a raw disk.
    fn of_disk(&mut self, source: &dyn BlockSource, detected: &Detected) -> Result<()> {
        let content = &detected.content;
        let is = |name: &str| content.iter().any(|(id, _)| id.as_str() == name);
        // A boot sector without a table that makes sense is for the check to refuse, one of a file
        // system or of a disc has none.
        let is_table = content.is_empty() || is("mbr") || is("gpt");
        let mut bytes = [0; luks::HEADER_LEN];
        let n = source.read_at(&mut bytes, 0)?;
        match luks::version(bytes.get(..n).unwrap_or_default()) {
            Some(1 | 2) => self.note(SafetyCheck::passed("version")),
            Some(other) => {
                let problem = format!("the version of LUKS is {other}");
                self.note(SafetyCheck::failed("version", problem));
            }
            None if is("luks") => {
                let problem = "the header of LUKS is cut short".to_owned();
                self.note(SafetyCheck::failed("version", problem));
            }
            None => {}
        }
        if let Some(check) = mbr::check(source, is_table)? {
            self.note(check);
        }
        Ok(())
    }

    fn finish(mut self) -> Safety {
        let checks = NAMES.iter().map(|name| {
            let known = self.0.iter().position(|check| check.name == *name);
            known.map_or(
                SafetyCheck {
                    name,
                    outcome: Outcome::NotApplicable,
                },
                |at| self.0.swap_remove(at),
            )
        });
        let mut checks: Vec<SafetyCheck> = checks.collect();
        // A format may have checks of its own.
        checks.append(&mut self.0);
        Safety { checks }
    }
}
