//! Error type of the crate, sorted by the party that has to act.

use std::borrow::Cow;
use std::fmt;
use std::io;

use crate::format_id::FormatId;
use crate::hint::Hint;
use crate::name::quoted_path;
use crate::reference::Reference;

/// Result of an operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reason why an operation failed.
///
/// The variants are sorted by the party that has to act: the environment ([`Io`](Self::Io)), the author of the
/// image ([`Malformed`](Self::Malformed)), this crate ([`Unsupported`](Self::Unsupported)), the
/// choices of the caller ([`Unrecognized`](Self::Unrecognized), [`Ambiguous`](Self::Ambiguous),
/// [`DiskNotChosen`](Self::DiskNotChosen)), the policy of the caller ([`NotAllowed`](Self::NotAllowed),
/// [`Denied`](Self::Denied), [`Detached`](Self::Detached), [`LimitExceeded`](Self::LimitExceeded)), its
/// expectation ([`DigestMismatch`](Self::DigestMismatch)), the sender of a stream
/// ([`OutOfOrder`](Self::OutOfOrder)), the scheduler of the caller
/// ([`PartsMissing`](Self::PartsMissing)) or its code ([`OutOfRange`](Self::OutOfRange), [`InvalidInput`](Self::InvalidInput)).
///
/// A message states the problem and never repeats its [`source`](std::error::Error::source);
/// [`chain`](Self::chain) has both. [`hint`](Self::hint) is advice. Text from an image is escaped
/// in the message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused or failed an operation.
    #[error("cannot {operation}")]
    Io {
        /// Operation, with the file's name or the offset where there is one.
        operation: Cow<'static, str>,
        /// Error of the operating system.
        source: io::Error,
    },

    /// The image breaks its format's rules.
    #[error("{}", Located { format, structure, field, offset, problem })]
    Malformed {
        /// The format whose rules are broken.
        format: FormatId,
        /// The on-disk structure, in the words of the specification.
        structure: &'static str,
        /// The field within the structure, if it is one field.
        field: Option<&'static str>,
        /// Offset in the file in bytes, if it is known.
        offset: Option<u64>,
        /// Problem of the structure or field.
        problem: Cow<'static, str>,
    },

    /// The image is valid as far as it was read, and uses a feature that this build does not have.
    #[error("{format} image: {feature} is not supported")]
    Unsupported {
        /// The format.
        format: FormatId,
        /// Name of the missing feature, in the words of the format.
        feature: String,
        /// Advice for the caller.
        hint: Option<Hint>,
    },

    /// No format's signature was found.
    #[error("no known image format was found")]
    Unrecognized,

    /// Several formats' signatures were found, and they are not a pair that occurs in honest files.
    #[error("the file is {} at once", list(matches, evidence))]
    Ambiguous {
        /// All formats whose signatures were found.
        matches: Vec<FormatId>,
        /// Evidence for each of them, and its byte offset in the file.
        evidence: Vec<(&'static str, u64)>,
    },

    /// The image holds several disks, or none, and the caller did not choose one that is there.
    #[error(
        "the appliance has {}{} disks{}",
        wanted.as_ref().map_or(String::new(), |wanted| format!("no disk {wanted}; it has ")),
        if disks.is_empty() { "no".to_owned() } else { disks.len().to_string() },
        choice(disks)
    )]
    DiskNotChosen {
        /// The disk that was asked for, escaped.
        wanted: Option<String>,
        /// The names of the disks in their order, quoted and escaped.
        disks: Vec<String>,
    },

    /// The file is not of a format that the caller allows.
    #[error(
        "{}; only {} may be here",
        unexpected(found, *offset),
        allowed.join(", ")
    )]
    NotAllowed {
        /// Formats that were found. Empty where no known format was found, or where the file is
        /// only known to be of none of the allowed ones.
        found: Vec<FormatId>,
        /// Bytes of the file that were known when that was certain.
        offset: u64,
        /// Formats that the caller allows.
        allowed: Vec<String>,
    },

    /// The image refers to another file and the [`Resolver`](crate::Resolver) did not allow it.
    #[error("the image refers to {reference}, which is not allowed")]
    Denied {
        /// The reference that was denied.
        reference: Box<Reference>,
        /// Advice that would allow it.
        hint: Option<Hint>,
    },

    /// A range was read that lives in a file from which the image was detached.
    #[error("the data lies in {reference}, which was not opened")]
    Detached {
        /// The reference that was left closed.
        reference: Box<Reference>,
    },

    /// The image demands more than the [`Limits`](crate::Limits) grant.
    #[error("{what} is {value}, over the limit {limit} of {maximum}")]
    LimitExceeded {
        /// The field of [`Limits`](crate::Limits).
        limit: &'static str,
        /// Name of the value that is too large.
        what: &'static str,
        /// Value that the image demands, in the limit's unit.
        value: u64,
        /// Maximum, in the limit's unit.
        maximum: u64,
    },

    /// A part of a stream is not there when it is needed: it went by, or comes too late.
    #[error(
        "byte {offset} of the stream is needed {}: it cannot be converted while it arrives",
        if offset < position {
            format!("after byte {position} went by")
        } else {
            format!("where byte {position} is, before what stands between them")
        }
    )]
    OutOfOrder {
        /// Offset of that part in the stream, in bytes.
        offset: u64,
        /// Position of the stream at that time.
        position: u64,
    },

    /// A range reaches beyond the end of a source or target.
    #[error("bytes {offset} to {} are beyond the end at {size}", offset.saturating_add(*len))]
    OutOfRange {
        /// Start of the range, in bytes.
        offset: u64,
        /// Length of the range, in bytes.
        len: u64,
        /// Size of the source or target in bytes.
        size: u64,
    },

    /// The caller's request cannot be met.
    #[error("{0}")]
    InvalidInput(Cow<'static, str>),

    /// The bytes have another digest than the caller expects.
    #[error("the digest is {found}, and {expected} was expected")]
    DigestMismatch {
        /// The digest that was expected.
        expected: String,
        /// The digest of the bytes.
        found: String,
    },

    /// Parts of a conversion in parts are not done yet.
    #[error("{} of {total} parts are not done: {}", missing.len(), numbers(missing))]
    PartsMissing {
        /// Numbers of the parts, in order, counted from 0.
        missing: Vec<usize>,
        /// Count of all parts.
        total: usize,
    },

    /// The caller stopped the operation.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Makes an [`Error::Io`] of the failed operation.
    pub fn io(operation: impl Into<Cow<'static, str>>, source: io::Error) -> Self {
        Error::Io {
            operation: operation.into(),
            source,
        }
    }

    /// Makes an [`Error::Io`] of an operation on a file of the caller.
    pub(crate) fn io_path(verb: &str, path: &std::path::Path, source: io::Error) -> Self {
        Error::io(format!("{verb} {}", quoted_path(path)), source)
    }

    /// An [`Error::OutOfRange`] for `len` bytes at `offset` of `size` bytes.
    pub fn out_of_range(offset: u64, len: u64, size: u64) -> Self {
        Error::OutOfRange { offset, len, size }
    }

    /// Makes an [`Error::InvalidInput`] with this problem.
    pub fn invalid(problem: impl Into<Cow<'static, str>>) -> Self {
        Error::InvalidInput(problem.into())
    }

    /// An [`Error::Unsupported`] for a feature of a format, with advice.
    pub fn unsupported(
        format: FormatId,
        feature: impl Into<String>,
        hint: impl Into<Option<&'static str>>,
    ) -> Self {
        Error::Unsupported {
            format,
            feature: feature.into(),
            hint: hint.into().map(Hint::from),
        }
    }

    /// The [`Error::Unsupported`] of a format that is read and not written.
    pub(crate) fn not_written(format: FormatId) -> Self {
        let hint = "write another one, such as qcow2";
        Error::unsupported(format, "writing this format", hint)
    }

    /// Makes an [`Error::Malformed`] for a whole structure.
    pub fn malformed(
        format: FormatId,
        structure: &'static str,
        offset: impl Into<Option<u64>>,
        problem: impl Into<Cow<'static, str>>,
    ) -> Self {
        Error::Malformed {
            format,
            structure,
            field: None,
            offset: offset.into(),
            problem: problem.into(),
        }
    }

    /// The nearest [`io::ErrorKind`], for code that uses `io::Error`.
    pub fn io_kind(&self) -> io::ErrorKind {
        match self {
            Error::Io { source, .. } => source.kind(),
            Error::Malformed { .. }
            | Error::Unrecognized
            | Error::Ambiguous { .. }
            | Error::NotAllowed { .. } => io::ErrorKind::InvalidData,
            Error::Unsupported { .. } => io::ErrorKind::Unsupported,
            Error::Denied { .. } | Error::Detached { .. } => io::ErrorKind::PermissionDenied,
            Error::LimitExceeded { .. } | Error::DigestMismatch { .. } => {
                io::ErrorKind::InvalidData
            }
            Error::OutOfRange { .. } | Error::InvalidInput(_) | Error::DiskNotChosen { .. } => {
                io::ErrorKind::InvalidInput
            }
            Error::OutOfOrder { .. } => io::ErrorKind::NotSeekable,
            Error::PartsMissing { .. } => io::ErrorKind::NotFound,
            Error::Cancelled => io::ErrorKind::Interrupted,
        }
    }

    /// Advice for the caller, where there is any.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Error::Unsupported { hint, .. } | Error::Denied { hint, .. } => hint.clone(),
            Error::Unrecognized => Some(Hint::ReadAsRaw),
            Error::Ambiguous { .. } => Some(Hint::NameFormat),
            Error::DiskNotChosen { disks, .. } if !disks.is_empty() => Some(Hint::ChooseDisk),
            Error::LimitExceeded { limit, .. } => Some(Hint::RaiseLimit(limit)),
            Error::OutOfOrder { .. } => Some(Hint::AllowSpill),
            _ => None,
        }
    }

    /// The message and the messages of its sources on one line, without the [hint](Self::hint).
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io { source, .. } if source.raw_os_error().is_some() => source,
            // `Interrupted` would be retried for ever by the standard library.
            Error::Cancelled => io::Error::other(error),
            error => io::Error::new(error.io_kind(), error),
        }
    }
}

struct Located<'a> {
    format: &'a FormatId,
    structure: &'a &'static str,
    field: &'a Option<&'static str>,
    offset: &'a Option<u64>,
    problem: &'a Cow<'static, str>,
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} image is damaged: {}", self.format, self.structure)?;
        if let Some(field) = self.field {
            write!(f, ", field {field}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// Disks by number and name, at most 20.
fn choice(disks: &[String]) -> String {
    const MOST: usize = 20;
    let disks = disks.iter().take(MOST).enumerate();
    let list: Vec<String> = disks.map(|(n, name)| format!("{n} is {name}")).collect();
    match list.is_empty() {
        true => String::new(),
        false => format!(" ({})", list.join(", ")),
    }
}

fn list(formats: &[FormatId], evidence: &[(&'static str, u64)]) -> String {
    let told = formats.iter().zip(evidence);
    let told = told.map(|(format, (what, at))| format!("{format} ({what} at byte {at})"));
    told.collect::<Vec<_>>().join(" and ")
}

fn unexpected(found: &[FormatId], offset: u64) -> String {
    match found {
        [] => format!("the first {offset} bytes are of no format that is allowed"),
        found => format!("the first {offset} bytes are of {}", names(found)),
    }
}

fn names(formats: &[FormatId]) -> String {
    let names: Vec<&str> = formats.iter().map(|f| f.as_str()).collect();
    names.join(" and ")
}

/// Numbers in order, runs of them as `3-7`, at most 20 runs.
fn numbers(numbers: &[usize]) -> String {
    const MOST: usize = 20;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let mut told: Vec<String> = runs
        .iter()
        .take(MOST)
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    if runs.len() > MOST {
        told.push("…".to_owned());
    }
    told.join(", ")
}
