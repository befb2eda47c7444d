//! Check of an appliance: its archive, the digests and sizes of its files, and its disks.

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format_id::FormatId;
use crate::image::{CheckedWithin, Finding, Findings, Request};
use crate::resolver::{DenyReferences, Resolver};
use crate::source::BlockSource;

use super::appliance::{Appliance, is_certificate, speaks_of, unlisted, unpacked, whole_within};
use super::archive::Archive;
use super::open::{about_disk, as_it_is, other_format, other_size, whole_outside};
use super::ovf::{PackageDisk, PackageFile};
use super::tar::{Kind, Member};
use super::{malformed, manifest};

/// Checks the appliance in `source`.
pub(super) fn check(source: &Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Findings> {
    let appliance = Appliance::open(Arc::clone(source), request.limits)?;
    let mut findings = Findings::default();
    for warning in &appliance.package().warnings {
        findings.note("package", warning.clone());
    }
    findings.sound(appliance.check_whole())?;
    match appliance.archive() {
        Some(archive) => check_manifest(&appliance, archive, &mut findings)?,
        None => findings.note(
            "package",
            "the descriptor stands alone, and a manifest beside it is not looked for",
        ),
    }
    check_files(&appliance, request, &mut findings)?;
    Ok(findings)
}

/// Compares the files of an archive with their digests.
fn check_manifest(appliance: &Appliance, archive: &Archive, findings: &mut Findings) -> Result<()> {
    let own = archive.descriptor()?;
    for member in &archive.index().members {
        if member.kind == Kind::File && is_certificate(&member.name) {
            let name = member.name.quoted();
            findings.note(
                "certificate",
                format!("the signature in {name} is not verified"),
            );
        }
    }
    let Some(found) = findings.sound(archive.manifest(own))? else {
        return Ok(());
    };
    let Some(member) = found else {
        let problem = "there is none: nothing tells whether the files are what they were";
        findings.note("manifest", problem);
        return Ok(());
    };
    let text = archive.text(member, "the manifest", appliance.limits())?;
    let mut seen = HashSet::new();
    for entry in manifest::parse(&text) {
        let compared =
            entry.and_then(|entry| appliance.compare_entry(archive, member, &entry, &mut seen));
        if let Err(error) = compared {
            findings.add_obstacle("manifest", error)?;
        }
    }
    findings.sound(speaks_of(own, member, &seen))?;
    let belong = belonging(appliance, archive);
    let others = unlisted(archive, member, &seen);
    for other in others.filter(|other| other.header != own.header) {
        let name = other.name.quoted();
        // Only what belongs to the package has to be there.
        if belong.contains(&other.header) || is_chunk(appliance, other) {
            let problem = format!("does not speak of {name}");
            findings.add_damage(malformed("manifest", member.header, problem))?;
        } else {
            let problem = format!("does not speak of {name}, nor does the descriptor");
            findings.note("manifest", problem);
        }
    }
    Ok(())
}

/// Offsets of the headers of the files that the descriptor lists.
fn belonging(appliance: &Appliance, archive: &Archive) -> HashSet<u64> {
    let files = appliance.package().files.iter();
    let members = files.filter_map(|file| stored_member(archive, file));
    members.map(|member| member.header).collect()
}

/// Returns whether a member is a chunk of a file that the descriptor lists.
fn is_chunk(appliance: &Appliance, member: &Member) -> bool {
    let name = member.name.as_bytes();
    let mut split = appliance.package().files.iter();
    split.any(|file| {
        let number = name.strip_prefix(file.href.as_bytes());
        file.chunk_size.is_some() && number.is_some_and(|number| number.starts_with(b"."))
    })
}

/// The member that has a file, or the first chunk of it.
fn stored_member<'a>(archive: &'a Archive, file: &PackageFile) -> Option<&'a Member> {
    let whole = || archive.member(file.href.as_bytes()).ok().flatten();
    let first = || {
        file.chunk_size?;
        let name = [file.href.as_bytes(), b".000000000"].concat();
        archive.member(&name).ok().flatten()
    };
    whole().or_else(first)
}

/// Looks at the files that the descriptor lists, and checks the disks in them.
fn check_files(
    appliance: &Appliance,
    request: &Request<'_>,
    findings: &mut Findings,
) -> Result<()> {
    let package = appliance.package();
    // Two names can mean one file, which is checked once.
    let mut seen = HashSet::new();
    for file in &package.files {
        let member = appliance
            .archive()
            .and_then(|archive| stored_member(archive, file));
        if member.is_some_and(|member| !seen.insert(member.header)) {
            let problem = format!("lists {} more than once", file.href.quoted());
            findings.add_damage(malformed("OVF descriptor", None, problem))?;
            continue;
        }
        let Some(stored) = stored_bytes(appliance, file, request, findings)? else {
            continue;
        };
        compare_size(file, stored.size(), findings)?;
        let mut disks = package.disks.iter();
        let Some(disk) = disks.find(|disk| disk.file.as_ref() == Some(file)) else {
            continue;
        };
        let checked = check_disk(appliance, file, disk.format, stored, request);
        match checked {
            Ok(Some(checked)) => compare_disk(file, disk, checked, findings),
            Ok(None) => {}
            Err(error @ (Error::Unrecognized | Error::Ambiguous { .. })) => {
                findings.add_obstacle("disk", about_disk(&file.href, error))?;
            }
            Err(error) => {
                let mut found = Findings::default();
                add_missing(appliance, error, &mut found)?;
                findings.merge(found.of_file(&file.href));
            }
        }
    }
    Ok(())
}

/// The bytes of a file as they are stored; `None` if it lies outside, and was left closed.
fn stored_bytes(
    appliance: &Appliance,
    file: &PackageFile,
    request: &Request<'_>,
    findings: &mut Findings,
) -> Result<Option<Arc<dyn BlockSource>>> {
    let Some(archive) = appliance.archive() else {
        let stored = whole_outside(file, request)?;
        if stored.is_none() {
            let problem = format!("{} was left closed", file.href.quoted());
            findings.note("package", problem);
        }
        return Ok(stored);
    };
    match whole_within(archive, file) {
        Ok(stored) => Ok(Some(stored)),
        Err(error) => add_missing(appliance, error, findings).map(|()| None),
    }
}

/// Takes for a finding what kept a file or a disk from being looked at. Within an archive, a name is refused
/// only where no file is called so; outside of one, that is the caller's word.
fn add_missing(appliance: &Appliance, error: Error, findings: &mut Findings) -> Result<()> {
    match error {
        Error::Denied { reference, .. } if appliance.archive().is_some() => {
            let problem = format!("refers to {reference}, which the archive does not have");
            findings.add_damage(malformed("package", None, problem))
        }
        error @ Error::Denied { .. } => Err(error),
        error => findings.add_obstacle("package", error),
    }
}

/// Compares the size of a file with the descriptor.
fn compare_size(file: &PackageFile, stored: u64, findings: &mut Findings) -> Result<()> {
    let Some(size) = file.size.filter(|size| *size != stored) else {
        return Ok(());
    };
    let name = file.href.quoted();
    let problem = format!("says that {name} has {size} bytes, and there are {stored}");
    match file.compression {
        None => findings.add_damage(malformed("OVF descriptor", None, problem)),
        // Some writers give the inflated size. Readers do not use it.
        Some(_) => {
            findings.note("OVF descriptor", problem);
            Ok(())
        }
    }
}

/// Checks a disk by the rules of its own format; `None` if it lies outside, and was left closed.
fn check_disk(
    appliance: &Appliance,
    file: &PackageFile,
    declared: Option<FormatId>,
    stored: Arc<dyn BlockSource>,
    request: &Request<'_>,
) -> Result<Option<CheckedWithin>> {
    let resolver: Arc<dyn Resolver> = match appliance.archive() {
        Some(archive) => archive.resolver(&file.href),
        None => match as_it_is(file, declared)? {
            Some(reference) => return request.opener.check_image(&reference),
            None => Arc::new(DenyReferences),
        },
    };
    let bytes = unpacked(file, stored, request.limits)?;
    request
        .opener
        .check_within(bytes, declared, resolver)
        .map(Some)
}

/// Takes over what was found in a disk, and compares it with what the descriptor says.
fn compare_disk(
    file: &PackageFile,
    disk: &PackageDisk,
    checked: CheckedWithin,
    findings: &mut Findings,
) {
    let size = checked.virtual_size.and_then(|size| other_size(disk, size));
    if let Some(problem) = size {
        findings.add(Finding::corruption("OVF descriptor", problem));
    }
    if let Some(problem) = other_format(disk, checked.format) {
        findings.note("OVF descriptor", problem);
    }
    findings.merge(checked.findings.of_file(&file.href));
}
