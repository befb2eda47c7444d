//! The verb *check*, which compares the structures of an image with each other; and repair.
//!
//! ```
//! use blockform::OpenOptions;
//! use blockform::check::Checked;
//!
//! let checked = Checked::of_path("testdata/qcow2/good/plain.qcow2", &OpenOptions::new())?;
//! match &checked.findings {
//!     Some(findings) if findings.is_clean() => println!("sound"),
//!     Some(findings) => findings.told().iter().for_each(|finding| println!("{finding}")),
//!     None => println!("a {} image has nothing to check", checked.format),
//! }
//! # Ok::<(), blockform::Error>(())
//! ```
//!
//! A check reads all structures that say where the disk's bytes are: reference counts, tables, headers with
//! their copies and checksums, bitmaps and snapshots. It does not read the disk's bytes, with two exceptions: the
//! files of an appliance whose manifest has their digests, and the sectors of a VHD that its bitmaps call
//! unwritten. Backing files are not followed; files that an image consists of are opened as far as the
//! reference policy allows. Memory is bounded by [`Limits::check_bytes`](crate::Limits::check_bytes).
//!
//! A [`Repair`] repairs what it can in a new file, or on request in place.

mod repair;

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::format_id::FormatId;
use crate::formats::Formats;
use crate::image::{Format, Value};
use crate::inspect;
use crate::name::ImageName;
use crate::open::OpenOptions;
use crate::resolver::{DenyReferences, Resolver};
use crate::source::{BlockSource, BlockSourceExt};
use crate::storage::FileStorage;

pub use crate::image::{Clusters, Finding, FindingKind, Findings, Fixed, Scope};
pub use repair::{Repair, Repaired};

/// An image that was checked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Checked {
    /// Its format.
    pub format: FormatId,
    /// Findings; `None` for a format that has nothing to check.
    pub findings: Option<Findings>,
}

impl Checked {
    /// Checks the image in the file at `path`, of the format that `options` name or detection finds.
    ///
    /// # Errors
    /// Errors of opening the file, of [`Format::checker`], and those of [`OpenOptions::open`] about a format that
    /// is not recognized.
    pub fn of_path(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let source: Arc<dyn BlockSource> = Arc::new(FileStorage::open(path)?);
        Self::with(&source, options, options.resolver_at(path)?)
    }

    /// The same for the image in `source`. References are denied unless the options have a
    /// [`resolver`](OpenOptions::resolver).
    ///
    /// # Errors
    /// As [`of_path`](Self::of_path).
    pub fn of_source(source: &Arc<dyn BlockSource>, options: &OpenOptions) -> Result<Self> {
        let resolver = options.resolver_or(|| Arc::new(DenyReferences));
        Self::with(source, options, resolver)
    }

    fn with(
        source: &Arc<dyn BlockSource>,
        options: &OpenOptions,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self> {
        let format = options.format_among(&options.detect(source)?)?;
        Self::as_format(format, source, options, resolver)
    }

    fn as_format(
        format: &dyn Format,
        source: &Arc<dyn BlockSource>,
        options: &OpenOptions,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self> {
        let chain = options.own_files(resolver, source.identity());
        chain.check_request(format)?;
        Ok(Checked {
            format: format.id(),
            findings: format
                .checker()
                .map(|check| check(source, &chain.request()))
                .transpose()?,
        })
    }

    /// The result under the names of QEMU's `ImageCheck`, and, as `blockform`, the findings one by one.
    /// `fixed` has the numbers of a repair before.
    pub fn to_value(&self, filename: ImageName, fixed: Fixed) -> Value {
        let empty = Findings::default();
        let findings = self.findings.as_ref().unwrap_or(&empty);
        let clusters = findings.clusters.unwrap_or_default();
        let mut map = Value::map();
        let mut insert_some = |name, value: u64| {
            if value > 0 {
                map.insert(name, value);
            }
        };
        insert_some("image-end-offset", findings.image_end.unwrap_or(0));
        insert_some("total-clusters", clusters.total);
        insert_some("corruptions", findings.corruptions);
        insert_some("leaks", findings.leaks);
        insert_some("corruptions-fixed", fixed.corruptions);
        insert_some("leaks-fixed", fixed.leaks);
        insert_some("allocated-clusters", clusters.allocated);
        insert_some("fragmented-clusters", clusters.fragmented);
        insert_some("compressed-clusters", clusters.compressed);
        map.insert("check-errors", findings.errors);
        map.insert("filename", filename);
        let format = Formats::all().by_name(self.format.as_str());
        map.insert(
            "format",
            format.map_or(self.format.as_str(), |f| f.qemu_name()),
        );
        if !findings.told().is_empty() {
            let told = findings.told().iter().map(finding_value);
            let mut own = Value::map();
            own.insert("findings", told.collect::<Vec<_>>());
            own.insert("findings-left-out", findings.left_out());
            map.insert("blockform", own);
        }
        map
    }

    /// [`to_value`](Self::to_value) as text, in the layout of `qemu-img check --output json`, without a
    /// line break at the end.
    pub fn to_json(&self, filename: ImageName, fixed: Fixed) -> String {
        inspect::to_json(&self.to_value(filename, fixed))
    }
}

fn finding_value(finding: &Finding) -> Value {
    let mut map = Value::map();
    map.insert("kind", finding.kind.name());
    map.insert("structure", finding.structure);
    if let Some(offset) = finding.offset {
        map.insert("offset", offset);
    }
    if let Some(guest) = finding.guest {
        map.insert("guest-offset", guest);
    }
    map.insert("count", finding.count);
    map.insert("problem", finding.problem.as_ref());
    map
}
