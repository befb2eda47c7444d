//! An appliance: a descriptor, and the files that belong to it.

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{DiskSelector, Probe};
use crate::limits::Limits;
use crate::name::{ImageName, is_apple_double};
use crate::source::BlockSource;
use crate::storage::Concat;

use super::archive::{Archive, leads_outside, read_all};
use super::manifest::{self, Entry};
use super::ovf::{self, Package, PackageDisk, PackageFile};
use super::tar::{Kind, Member};
use super::{OVA, malformed};

/// An appliance: what its descriptor lists, and the way to it.
///
/// ```
/// use std::sync::Arc;
/// use blockform::{Limits, formats::ova::Appliance, storage::FileStorage};
///
/// let file = FileStorage::open("testdata/ova/good/two-disks.ova")?;
/// let appliance = Appliance::open(Arc::new(file), &Limits::default())?;
/// for disk in &appliance.package().disks {
///     println!("{}: {:?} bytes", disk.id.escaped(), disk.capacity);
/// }
/// # Ok::<(), blockform::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Appliance {
    archive: Option<Archive>,
    descriptor: ImageName,
    package: Package,
    limits: Limits,
}

/// Result of comparing an archive with its manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// The files whose digests are right.
    pub checked: Vec<ImageName>,
    /// The files of the archive that the manifest does not speak of, other than itself and a
    /// certificate.
    pub unlisted: Vec<ImageName>,
}

impl Appliance {
    /// Reads the archive, or the descriptor that stands alone, in `source`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is none, or its descriptor is damaged, and
    /// [`Error::LimitExceeded`].
    pub fn open(source: Arc<dyn BlockSource>, limits: &Limits) -> Result<Self> {
        let mut head = vec![0; Probe::HEAD];
        let n = source.read_at(&mut head, 0)?;
        head.truncate(n);
        const WHAT: &str = "the OVF descriptor";
        let (archive, descriptor, text, offset) = if ovf::recognize(&head) {
            let text = read_all(&source, WHAT, limits)?;
            (None, ImageName::default(), text, 0)
        } else {
            let archive = Archive::read(source, limits)?;
            let member = archive.descriptor()?;
            let text = archive.text(member, WHAT, limits)?;
            let (name, offset) = (member.name.clone(), member.header);
            let archive = archive.described_by(name.as_bytes());
            (Some(archive), name, text, offset)
        };
        let mut package = Package::parse(&text)
            .map_err(|problem| malformed("OVF descriptor", offset, problem))?;
        if let Some(archive) = &archive {
            let warnings = archive.index().warnings.iter().cloned();
            package.warnings.extend(warnings);
            let members = archive.index().members.iter();
            let mut files = members.filter(|member| {
                member.kind == Kind::File && !is_apple_double(member.name.as_bytes())
            });
            let first = files.next();
            if first.is_some_and(|first| first.name != descriptor) {
                package
                    .warnings
                    .push("the descriptor is not the first file of the archive".to_owned());
            }
        }
        Ok(Appliance {
            archive,
            descriptor,
            package,
            limits: limits.clone(),
        })
    }

    /// Content of the descriptor.
    pub fn package(&self) -> &Package {
        &self.package
    }

    /// The name of the descriptor in the archive; empty if there is no archive.
    pub fn descriptor(&self) -> &ImageName {
        &self.descriptor
    }

    pub(super) fn archive(&self) -> Option<&Archive> {
        self.archive.as_ref()
    }

    /// Fails if the archive cannot be read to its end.
    pub(super) fn check_whole(&self) -> Result<()> {
        let damage = self
            .archive
            .as_ref()
            .and_then(|a| a.index().damage.as_ref());
        match damage {
            None => Ok(()),
            Some((at, problem)) => Err(malformed("archive", *at, problem.clone())),
        }
    }

    /// The disk or the file that a selector means; without one, the only disk.
    ///
    /// # Errors
    /// [`Error::DiskNotChosen`] if it means none, or there are several.
    pub(super) fn choose(&self, wanted: Option<&DiskSelector>) -> Result<Chosen<'_>> {
        let disks = &self.package.disks;
        let found = match wanted {
            Some(DiskSelector::Index(index)) => disks.get(*index).map(Chosen::Disk),
            Some(DiskSelector::Name(name)) => {
                let name = ImageName::from(name.as_str());
                let is_file =
                    |disk: &&PackageDisk| disk.file.as_ref().is_some_and(|file| file.href == name);
                let disk = disks.iter().find(is_file);
                let disk = disk.or_else(|| disks.iter().find(|disk| disk.id == name));
                let file = || self.package.files.iter().find(|file| file.href == name);
                disk.map(Chosen::Disk).or_else(|| file().map(Chosen::File))
            }
            None => {
                // Parents are read through their children, and an empty disk has no file.
                let tops =
                    |disk: &&PackageDisk| disk.file.is_some() && !self.package.is_parent(disk);
                let mut tops = disks.iter().filter(tops);
                match (tops.next(), tops.next()) {
                    (Some(only), None) => Some(Chosen::Disk(only)),
                    _ => None,
                }
            }
        };
        found.ok_or_else(|| self.ask_for_disk(wanted))
    }

    fn ask_for_disk(&self, wanted: Option<&DiskSelector>) -> Error {
        let name = |disk: &PackageDisk| {
            let name = disk.file.as_ref().map_or(&disk.id, |file| &file.href);
            name.quoted().to_string()
        };
        Error::DiskNotChosen {
            wanted: wanted.map(|wanted| match wanted {
                DiskSelector::Index(index) => index.to_string(),
                DiskSelector::Name(name) => ImageName::from(name.as_str()).quoted().to_string(),
            }),
            disks: self.package.disks.iter().map(name).collect(),
        }
    }

    /// The bytes of a file of the archive, whole and unpacked.
    ///
    /// # Errors
    /// [`Error::Denied`] if the archive has no such file, [`Error::Malformed`] if the file is not as
    /// the descriptor says, [`Error::Unsupported`] for a way of packing that is not known, and
    /// [`Error::LimitExceeded`] if it unpacks to too much.
    pub fn file_bytes(&self, file: &PackageFile) -> Result<Arc<dyn BlockSource>> {
        let Some(archive) = &self.archive else {
            return Err(Error::invalid(
                "a descriptor that stands alone has its files outside: open its disks by OpenOptions",
            ));
        };
        unpacked(file, whole_within(archive, file)?, &self.limits)
    }

    /// Compares every file that the manifest names with its digest, in one pass over the archive.
    ///
    /// # Errors
    /// [`Error::Malformed`] if a digest is another, a file is not there, or the manifest does not
    /// speak of the descriptor; [`Error::InvalidInput`] if there is no manifest.
    pub fn verify(&self) -> Result<Verification> {
        self.check_whole()?;
        let none = || Error::invalid("the appliance has no manifest to be compared with");
        let archive = self.archive.as_ref().ok_or_else(none)?;
        let own = archive.descriptor()?;
        let member = archive.manifest(own)?.ok_or_else(none)?;
        let text = archive.text(member, "the manifest", &self.limits)?;
        let entries: Vec<Entry> = manifest::parse(&text).collect::<Result<_>>()?;
        let mut found = Verification::default();
        let mut seen = HashSet::new();
        for entry in &entries {
            let file = self.compare_entry(archive, member, entry, &mut seen)?;
            found.checked.push(file.name.clone());
        }
        speaks_of(own, member, &seen)?;
        let others = unlisted(archive, member, &seen);
        found.unlisted = others.map(|other| other.name.clone()).collect();
        Ok(found)
    }

    /// Compares the file that a line of the manifest speaks of, and returns it. `seen` are the headers of
    /// those that earlier lines have spoken of.
    pub(super) fn compare_entry<'a>(
        &self,
        archive: &'a Archive,
        manifest: &Member,
        entry: &Entry,
        seen: &mut HashSet<u64>,
    ) -> Result<&'a Member> {
        let Some(file) = archive.member(entry.name.as_bytes())? else {
            let name = entry.name.quoted();
            let problem = format!("names {name}, which the archive does not have");
            return Err(malformed("manifest", manifest.header, problem));
        };
        // A short line must not have a disk read again and again.
        if !seen.insert(file.header) {
            let problem = format!("names {} more than once", entry.name.quoted());
            return Err(malformed("manifest", manifest.header, problem));
        }
        file.check_size(&self.limits)?;
        entry.check(&archive.open_member(file)?)?;
        Ok(file)
    }

    /// Limits of what the appliance may demand.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// Fails if no line of the manifest has spoken of the descriptor.
pub(super) fn speaks_of(own: &Member, manifest: &Member, seen: &HashSet<u64>) -> Result<()> {
    if seen.contains(&own.header) {
        return Ok(());
    }
    let problem = "does not speak of the descriptor";
    Err(malformed("manifest", manifest.header, problem))
}

/// The files of which no line of the manifest has spoken, other than itself and a certificate.
pub(super) fn unlisted<'a>(
    archive: &'a Archive,
    manifest: &Member,
    seen: &HashSet<u64>,
) -> impl Iterator<Item = &'a Member> {
    archive.index().members.iter().filter(|other| {
        let spoken = seen.contains(&other.header) || other.header == manifest.header;
        other.kind == Kind::File && !spoken && !is_certificate(&other.name)
    })
}

/// Returns whether a file is the one with the signature of the manifest.
pub(super) fn is_certificate(name: &ImageName) -> bool {
    name.as_bytes().ends_with(b".cert")
}

/// Disk or file that is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chosen<'a> {
    Disk(&'a PackageDisk),
    /// A file that no disk is in: an ISO image, say.
    File(&'a PackageFile),
}

impl<'a> Chosen<'a> {
    pub(super) fn file(self) -> Result<&'a PackageFile> {
        match self {
            Chosen::File(file) => Ok(file),
            Chosen::Disk(disk) => disk.file.as_ref().ok_or_else(|| {
                Error::unsupported(
                    OVA,
                    format!(
                        "the disk {}, which is empty and has no file",
                        disk.id.quoted()
                    ),
                    None,
                )
            }),
        }
    }

    pub(super) fn disk(self) -> Option<&'a PackageDisk> {
        match self {
            Chosen::File(_) => None,
            Chosen::Disk(disk) => Some(disk),
        }
    }
}

/// The bytes of a file of an archive as they are stored.
pub(super) fn whole_within(archive: &Archive, file: &PackageFile) -> Result<Arc<dyn BlockSource>> {
    whole_file(file, &|name| archive.open(name), &|name| {
        Ok(archive.member(name.as_bytes())?.is_some())
    })
}

/// The bytes of a file as they are stored, its chunks one behind the other. Their size has to be what
/// the descriptor says, where it says one.
pub(super) fn whole_file(
    file: &PackageFile,
    open: &dyn Fn(&ImageName) -> Result<Arc<dyn BlockSource>>,
    has: &dyn Fn(&ImageName) -> Result<bool>,
) -> Result<Arc<dyn BlockSource>> {
    if leads_outside(file.href.as_bytes()) {
        return Err(super::archive::refused(&file.href));
    }
    let bad = |problem: String| {
        let name = file.href.quoted();
        malformed(
            "OVF descriptor",
            None,
            format!("says that {name} {problem}"),
        )
    };
    let whole = match file.chunk_size {
        // A file of one chunk may be there under its own name.
        Some(_) if has(&file.href)? => open(&file.href)?,
        None => open(&file.href)?,
        Some(chunk_size) => {
            const MOST: u64 = 16_384;
            let count = file.size.map(|size| size.div_ceil(chunk_size).max(1));
            if count.is_some_and(|count| count > MOST) {
                return Err(bad(format!("has more than {MOST} chunks")));
            }
            let mut chunks = Vec::new();
            for number in 0..count.unwrap_or(MOST) {
                let suffix = format!(".{number:09}");
                let name = [file.href.as_bytes(), suffix.as_bytes()].concat();
                let name = ImageName::new(name);
                // Without a size the first chunk that is missing is the end.
                if count.is_none() && number > 0 && !has(&name)? {
                    break;
                }
                chunks.push(open(&name)?);
            }
            let full = chunks.split_last().map_or(&[][..], |(_, full)| full);
            if full.iter().any(|chunk| chunk.size() != chunk_size) {
                return Err(bad(format!(
                    "has chunks of {chunk_size} bytes, and they differ"
                )));
            }
            Arc::new(Concat::new(chunks)?)
        }
    };
    match file.size {
        Some(size) if size > whole.size() && file.compression.is_none() => Err(bad(format!(
            "has {size} bytes, and there are {}",
            whole.size()
        ))),
        _ => Ok(whole),
    }
}

/// A file with its packing undone.
pub(super) fn unpacked(
    file: &PackageFile,
    stored: Arc<dyn BlockSource>,
    limits: &Limits,
) -> Result<Arc<dyn BlockSource>> {
    let by = file.compression.as_ref().map(ImageName::as_bytes);
    // Some writers compress a file and show that only in its name.
    let named = file.href.as_bytes().to_ascii_lowercase().ends_with(b".gz");
    match by {
        None if !(named && is_gzip(&stored)?) => Ok(stored),
        None | Some(b"gzip") => inflated(stored, limits),
        Some(other) => Err(Error::unsupported(
            OVA,
            format!("a file compressed by {}", ImageName::from(other).quoted()),
            None,
        )),
    }
}

fn is_gzip(file: &dyn BlockSource) -> Result<bool> {
    let mut magic = [0; 3];
    Ok(file.read_at(&mut magic, 0)? == 3 && magic == [0x1f, 0x8b, 8])
}

#[cfg(feature = "zlib")]
fn inflated(stored: Arc<dyn BlockSource>, limits: &Limits) -> Result<Arc<dyn BlockSource>> {
    Ok(Arc::new(super::gzip::Inflated::new(stored, limits)?))
}

#[cfg(not(feature = "zlib"))]
fn inflated(_: Arc<dyn BlockSource>, _: &Limits) -> Result<Arc<dyn BlockSource>> {
    Err(Error::unsupported(
        OVA,
        "a file compressed by gzip",
        "build with the feature zlib",
    ))
}
