//! Findings of a check, and scopes of a repair.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::name::ImageName;
use crate::target::BlockTarget;

use super::Request;

/// Findings of a check: all of them counted, and the first of them kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Findings {
    /// Broken rules of the format: data is lost, or may be by the next write.
    pub corruptions: u64,
    /// Clusters of the file that nothing uses: space is wasted, and no data is at risk.
    pub leaks: u64,
    /// Parts that could not be checked: their findings are not counted.
    pub errors: u64,
    /// Counts of the disk's clusters, for formats for which QEMU reports them.
    pub clusters: Option<Clusters>,
    /// End of the last cluster in use, in bytes of the file, for formats for which QEMU reports it.
    pub image_end: Option<u64>,
    told: Vec<Finding>,
    left_out: u64,
}

/// Counts of the clusters of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Clusters {
    /// Clusters that the disk has.
    pub total: u64,
    /// Allocated clusters.
    pub allocated: u64,
    /// Compressed clusters among them.
    pub compressed: u64,
    /// Clusters among them that do not follow the one before in the file.
    pub fragmented: u64,
}

/// One finding of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Severity of the finding.
    pub kind: FindingKind,
    /// The on-disk structure, in the words of the specification.
    pub structure: &'static str,
    /// Offset in the file in bytes, if it is one place.
    pub offset: Option<u64>,
    /// Guest offset in bytes, if it is one place.
    pub guest: Option<u64>,
    /// Count of findings that it stands for: a table that several others refer to is damaged for
    /// each of them.
    pub count: u64,
    /// Problem that was found.
    pub problem: Cow<'static, str>,
}

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// A rule of the format is broken.
    Corruption,
    /// A cluster that nothing uses counts as used.
    Leak,
    /// A part could not be checked.
    Error,
    /// A remark, not damage.
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
    /// Makes a finding of a broken rule.
    pub fn corruption(structure: &'static str, problem: impl Into<Cow<'static, str>>) -> Self {
        Self::new(FindingKind::Corruption, structure, problem)
    }

    /// Makes a finding of this kind.
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

    /// This finding, counted so many times.
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
    /// Maximum of findings that are kept. The rest is counted.
    pub const TOLD: usize = 1000;

    /// The findings in the order in which they were made, the first [`TOLD`](Self::TOLD) of them.
    pub fn told(&self) -> &[Finding] {
        &self.told
    }

    /// Count of findings that are not kept.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Returns true if nothing is wrong, and everything was checked.
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

    /// Adds the error of a parser about a damaged structure as a finding.
    ///
    /// # Errors
    /// Any other error, such as one of reading or a limit.
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

    /// The value, or `None` where the parser's error was [added as a finding](Self::add_damage).
    ///
    /// # Errors
    /// As [`add_damage`](Self::add_damage).
    pub fn sound<T>(&mut self, parsed: Result<T>) -> Result<Option<T>> {
        match parsed {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.add_damage(error).map(|()| None),
        }
    }

    /// Adds a note, which is not damage.
    pub fn note(&mut self, structure: &'static str, problem: impl Into<Cow<'static, str>>) {
        self.add(Finding::new(FindingKind::Note, structure, problem));
    }

    /// Adds the error that kept a part from being checked as a finding.
    ///
    /// # Errors
    /// Errors that concern more than this part, such as one of reading or a limit.
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

    /// Adds the findings of another file of the same image.
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
    /// Findings: none in a format that has nothing to check.
    pub findings: Findings,
}

impl CheckedWithin {
    /// Findings of an image of this format and size.
    pub fn new(format: FormatId, virtual_size: Option<u64>, findings: Findings) -> Self {
        CheckedWithin {
            format,
            virtual_size,
            findings,
        }
    }
}

/// Extent of the changes of a repair, from small to large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// Only wasted space: leaked clusters are freed.
    Leaks,
    /// All that can be repaired without a guess about the guest's data.
    All,
    /// Besides, entries that are empty in the table in force and set in its redundant copy, as in
    /// VMDK, are taken from the copy. The disk then holds bytes that were lost, or that were never
    /// its own.
    Redundant,
}

/// A repair of the image in a file, in place.
///
/// The guest's disk stays as it is, but for [`Scope::Redundant`]. A crash at any time leaves a file
/// that is not worse than before: new structures are written to free space, then put in force by
/// one write, and only then the old ones are freed.
///
/// # Errors
/// As [`CheckFn`](super::CheckFn), and errors of writing.
pub type RepairFn = fn(&Arc<dyn BlockTarget>, &Request<'_>) -> Result<Fixed>;

/// Count of the findings that a repair removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fixed {
    /// Corruptions that were repaired.
    pub corruptions: u64,
    /// Leaks that were repaired.
    pub leaks: u64,
}
