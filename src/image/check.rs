//! What a check of an image finds, and what a repair is asked to mend.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::name::ImageName;
use crate::target::BlockTarget;

use super::Request;

/// What is wrong with an image, exactly counted, and told as far as a person reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Findings {
    /// What breaks the format's rules: data may be lost, or may be by the next write.
    pub corruptions: u64,
    /// Clusters of the file that nothing uses: space is wasted, and no data is at risk.
    pub leaks: u64,
    /// What could not be looked at: how many findings there are of it is not known.
    pub errors: u64,
    /// How the disk's clusters are stored, for formats of which QEMU tells it.
    pub clusters: Option<Clusters>,
    /// Where in the file the last cluster ends that is in use, in bytes, for formats of which QEMU
    /// tells it.
    pub image_end: Option<u64>,
    told: Vec<Finding>,
    left_out: u64,
}

/// How the clusters of a disk are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Clusters {
    /// Clusters that the disk has.
    pub total: u64,
    /// Those that are stored.
    pub allocated: u64,
    /// Those of them that are packed.
    pub compressed: u64,
    /// Those of them that do not follow the one before in the file.
    pub fragmented: u64,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub kind: FindingKind,
    /// The on-disk structure, in the words of the specification.
    pub structure: &'static str,
    /// Where in the file, in bytes, if it is one place.
    pub offset: Option<u64>,
    /// Where on the disk, in bytes, if it is one place.
    pub guest: Option<u64>,
    /// As how many it counts: a table that several others refer to is damaged for each of them.
    pub count: u64,
    /// What is wrong.
    pub problem: Cow<'static, str>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// A rule of the format is broken.
    Corruption,
    /// A cluster that nothing uses counts as used.
    Leak,
    /// Something could not be looked at.
    Error,
    /// Worth knowing, and no damage.
    Note,
}

impl FindingKind {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Corruption => "corruption",
            FindingKind::Leak => "leak",
            FindingKind::Error => "error",
            FindingKind::Note => "note",
        }
    }
}

impl Finding {
    /// A rule that is broken.
    pub fn corruption(structure: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self::new(FindingKind::Corruption, structure, problem)
    }

    /// A finding of this kind.
    pub fn new(
        kind: FindingKind,
        structure: &'static str,
        problem: impl Into<Cow<'static, str>>,
    ) -> Self {
        Finding {
            kind,
            structure,
            offset: None,
            guest: None,
            count: 1,
            problem: problem.into(),
        }
    }

    /// This finding at a byte of the file.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// This finding at a byte of the disk.
    #[must_use]
    pub fn guest(mut self, guest: u64) -> Self {
        self.guest = Some(guest);
        self
    }

    /// This finding, so many times.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.count = count;
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.structure)?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        if let Some(guest) = self.guest {
            write!(f, " (guest offset {guest})")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl Findings {
    /// The most findings that are kept. The rest is counted.
    pub const TOLD: usize = 1000;

    /// The findings in the order in which they were made, the first [`TOLD`](Self::TOLD) of them.
    pub fn told(&self) -> &[Finding] {
        &self.told
    }

    /// How many findings there were besides.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Whether nothing is wrong, and everything was looked at.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.errors == 0
    }

    /// Counts and keeps a finding.
    pub fn add(&mut self, finding: Finding) {
        let count = match finding.kind {
            FindingKind::Corruption => &mut self.corruptions,
            FindingKind::Leak => &mut self.leaks,
            FindingKind::Error => &mut self.errors,
            FindingKind::Note => &mut 0,
        };
        *count = count.saturating_add(finding.count);
        if self.told.len() < Self::TOLD {
            self.told.push(finding);
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    /// Takes what a parser says of a damaged structure for a finding, and goes on.
    ///
    /// # Errors
    /// Any other error: what could not be read, or is over a limit.
    pub fn add_damage(&mut self, error: Error) -> Result<()> {
        let Error::Malformed {
            structure,
            field,
            offset,
            problem,
            ..
        } = error
        else {
            return Err(error);
        };
        let problem = match field {
            Some(field) => format!("field {field} {problem}").into(),
            None => problem,
        };
        let mut finding = Finding::corruption(structure, problem);
        finding.offset = offset;
        self.add(finding);
        Ok(())
    }

    /// The value, or none where the parser's error was [taken for a finding](Self::add_damage).
    ///
    /// # Errors
    /// As there.
    pub fn sound<T>(&mut self, parsed: Result<T>) -> Result<Option<T>> {
        match parsed {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.add_damage(error).map(|()| None),
        }
    }

    /// Notes something that is no damage.
    pub fn note(&mut self, structure: &'static str, problem: impl Into<Cow<'static, str>>) {
        self.add(Finding::new(FindingKind::Note, structure, problem));
    }

    /// Takes what kept a part from being looked at for a finding, and goes on.
    ///
    /// # Errors
    /// What is no matter of this part alone: what could not be read, or is over a limit.
    pub fn add_obstacle(&mut self, structure: &'static str, error: Error) -> Result<()> {
        match error {
            Error::Malformed { .. } => self.add_damage(error),
            Error::Io { .. } | Error::LimitExceeded { .. } | Error::Cancelled => Err(error),
            error => {
                let problem = error.chain();
                self.add(Finding::new(FindingKind::Error, structure, problem));
                Ok(())
            }
        }
    }

    /// These findings with the name of the file in which they are.
    #[must_use]
    pub fn of_file(mut self, name: &ImageName) -> Self {
        for finding in &mut self.told {
            finding.problem = format!("{} (in {})", finding.problem, name.quoted()).into();
        }
        self
    }

    /// Adds what was found in another file of the same image.
    pub fn merge(&mut self, other: Findings) {
        self.corruptions = self.corruptions.saturating_add(other.corruptions);
        self.leaks = self.leaks.saturating_add(other.leaks);
        self.errors = self.errors.saturating_add(other.errors);
        let room = Self::TOLD.saturating_sub(self.told.len());
        let over = other.told.len().saturating_sub(room) as u64;
        self.left_out = self.left_out.saturating_add(other.left_out + over);
        self.told.extend(other.told.into_iter().take(room));
    }
}

/// An image that was checked as a part of another.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CheckedWithin {
    /// Its format.
    pub format: FormatId,
    /// Its virtual size in bytes, if it can be opened.
    pub virtual_size: Option<u64>,
    /// What was found: nothing in a format that has nothing to check.
    pub findings: Findings,
}

impl CheckedWithin {
    /// What was found in an image of this format and size.
    pub fn new(format: FormatId, virtual_size: Option<u64>, findings: Findings) -> Self {
        CheckedWithin {
            format,
            virtual_size,
            findings,
        }
    }
}

/// How much a repair may change, from little to much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// Only what wastes space: leaked clusters are given back.
    Leaks,
    /// All that can be mended without a guess about the guest's data.
    All,
    /// Besides, what is empty in the table that counts and is there in its redundant copy, as grains of VMDK
    /// can be, is taken from the copy. The disk then holds what it did not before: bytes that were lost, or
    /// that were never its own.
    Redundant,
}

/// A repair of the image in a file, in place.
///
/// The guest's disk stays as it is, but for [`Scope::Redundant`]. A crash at any time leaves a file that is no
/// worse than before: new structures are written where nothing was, then put in force by one write, and only
/// then the old ones are given back.
///
/// # Errors
/// As [`Format::checker`](super::Format::checker), and errors of writing.
pub type RepairFn = fn(&Arc<dyn BlockTarget>, &Request<'_>) -> Result<Fixed>;

/// What a repair mended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fixed {
    /// Corruptions that are no more.
    pub corruptions: u64,
    /// Leaks that are no more.
    pub leaks: u64,
}
