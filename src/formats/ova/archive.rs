//! An archive: its members by name, and the descriptor among them.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::name::{ImageName, is_apple_double};
use crate::reference::{Reference, ReferenceKind};
use crate::resolver::{Resolved, Resolver};
use crate::source::{BlockSource, BlockSourceExt};

use super::tar::{Index, Kind, Member};
use super::{OVA, malformed};

/// An archive whose headers were read.
#[derive(Debug, Clone)]
pub(super) struct Archive {
    source: Arc<dyn BlockSource>,
    index: Arc<Index>,
    /// Index of each member that a name can mean, sorted by its name without `./`.
    names: Arc<[(Vec<u8>, usize)]>,
    /// The folder of the descriptor, with its separator: names in it mean files beside it.
    folder: Vec<u8>,
}

impl Archive {
    pub(super) fn read(source: Arc<dyn BlockSource>, limits: &Limits) -> Result<Self> {
        let index = Index::read(&source, limits)?;
        let members = index.members.iter().enumerate();
        let names = members.filter_map(|(at, m)| Some((settled(m.name.as_bytes())?, at)));
        let mut names: Vec<(Vec<u8>, usize)> = names.collect();
        names.sort_unstable();
        Ok(Archive {
            source,
            index: Arc::new(index),
            names: names.into(),
            folder: Vec::new(),
        })
    }

    /// The archive whose descriptor is called `name`.
    pub(super) fn described_by(self, name: &[u8]) -> Self {
        Archive {
            folder: folder_of(&settled(name).unwrap_or_default()).to_vec(),
            ..self
        }
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// The members of a settled name.
    fn called(&self, name: &[u8]) -> &[(Vec<u8>, usize)] {
        let start = self
            .names
            .partition_point(|(known, _)| known.as_slice() < name);
        let end = self
            .names
            .partition_point(|(known, _)| known.as_slice() <= name);
        self.names.get(start..end).unwrap_or_default()
    }

    /// The member that `name` means, if there is one.
    ///
    /// # Errors
    /// [`Error::Malformed`] if there are two: archivers do not agree on which of them counts.
    pub(super) fn member(&self, name: &[u8]) -> Result<Option<&Member>> {
        let Some(name) = settled(name) else {
            return Ok(None);
        };
        let decoded = percent_decoded(&name).and_then(|name| settled(&name));
        let names = std::iter::once(name.clone()).chain(decoded);
        // Beside the descriptor, or in the archive, as some have it.
        let mut names = names.flat_map(|name| [[self.folder.as_slice(), &name].concat(), name]);
        let called = names.find_map(|name| {
            let called = self.called(&name);
            (!called.is_empty()).then_some(called)
        });
        match called.unwrap_or_default() {
            [] => Ok(None),
            [(_, at)] => Ok(self.index.members.get(*at)),
            [_, (_, second), ..] => {
                let second = self.index.members.get(*second);
                let name = ImageName::new(name);
                Err(malformed(
                    "archive",
                    second.map(|member| member.header),
                    format!("has two files called {}", name.quoted()),
                ))
            }
        }
    }

    /// The bytes of the file that `name` means.
    ///
    /// # Errors
    /// [`Error::Denied`] if it means none of the archive's.
    pub(super) fn open(&self, name: &ImageName) -> Result<Arc<dyn BlockSource>> {
        match self.member(name.as_bytes())? {
            Some(member) => member.open(&self.source),
            None => Err(denied(&Reference::new(
                ReferenceKind::PackageFile,
                name.clone(),
            ))),
        }
    }

    /// The descriptor: the first file, or else the only one, whose name ends in `.ovf`.
    pub(super) fn descriptor(&self) -> Result<&Member> {
        let mut members = self.index.members.iter();
        let named = |member: &&Member| {
            let name = member.name.as_bytes();
            member.kind == Kind::File && has_extension(name, b"ovf") && !is_apple_double(name)
        };
        let found = members.find(named);
        let found = found.ok_or_else(|| match &self.index.damage {
            Some((at, problem)) => malformed("archive", *at, problem.clone()),
            None => malformed("archive", None, "has no file whose name ends in .ovf"),
        })?;
        if members.any(|member| named(&member)) {
            return Err(malformed("archive", None, "has two descriptors"));
        }
        Ok(found)
    }

    /// The manifest: the file that is called as the descriptor is, with `.mf` at its end.
    pub(super) fn manifest(&self, descriptor: &Member) -> Result<Option<&Member>> {
        let name = descriptor.name.as_bytes();
        let stem = name.get(..name.len().saturating_sub(4)).unwrap_or_default();
        if let Some(member) = self.member(&[stem, b".mf"].concat())? {
            return Ok(Some(member));
        }
        let mut others = self.index.members.iter();
        Ok(others.find(|m| {
            let name = m.name.as_bytes();
            m.kind == Kind::File && has_extension(name, b"mf") && !is_apple_double(name)
        }))
    }

    /// The bytes of a small file.
    pub(super) fn text(
        &self,
        member: &Member,
        what: &'static str,
        limits: &Limits,
    ) -> Result<Vec<u8>> {
        let file = member.open(&self.source)?;
        read_all(&file, what, limits)
    }

    pub(super) fn open_member(&self, member: &Member) -> Result<Arc<dyn BlockSource>> {
        member.open(&self.source)
    }

    /// Resolver of the names in a disk called `disk`: they mean files beside it.
    pub(super) fn resolver(&self, disk: &ImageName) -> Arc<dyn Resolver> {
        Arc::new(WithinArchive::beside(self.clone(), disk.as_bytes()))
    }
}

fn denied(reference: &Reference) -> Error {
    Error::Denied {
        reference: Box::new(reference.clone()),
        hint: Some("only files of the archive can be meant, and it has none of that name".into()),
    }
}

/// All bytes of a file that is a descriptor.
pub(super) fn read_all(
    file: &dyn BlockSource,
    what: &'static str,
    limits: &Limits,
) -> Result<Vec<u8>> {
    limits.check_descriptor(what, file.size())?;
    let mut bytes = vec![0; usize::try_from(file.size()).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn has_extension(name: &[u8], extension: &[u8]) -> bool {
    let mut parts = name.rsplitn(2, |byte| *byte == b'.');
    let last = parts.next().unwrap_or_default();
    last.eq_ignore_ascii_case(extension) && parts.next().is_some()
}

/// The folder of a file, with its separator.
fn folder_of(name: &[u8]) -> &[u8] {
    let slash = name.iter().rposition(|byte| *byte == b'/');
    name.get(..slash.map_or(0, |at| at + 1)).unwrap_or_default()
}

/// Returns whether a name leads outside of any archive: a URL, an absolute path, a way up.
pub(super) fn leads_outside(name: &[u8]) -> bool {
    settled(name).is_none()
}

/// A name without `.` and empty parts; `None` for one that leads outside, or nowhere.
fn settled(name: &[u8]) -> Option<Vec<u8>> {
    // `C:\`, `http://`: what stands before a colon would have to be a folder otherwise.
    let scheme = name.split(|byte| matches!(byte, b'/' | b'\\')).next();
    let has_scheme = scheme.is_some_and(|first| first.len() < name.len() && first.ends_with(b":"));
    let absolute = matches!(name.first(), None | Some(b'/' | b'\\'));
    if absolute || has_scheme || name.contains(&0) {
        return None;
    }
    let parts = name.split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
    let up = parts
        .iter()
        .any(|part| part.split(|byte| *byte == b'\\').any(|part| part == b".."));
    (!up && !parts.is_empty()).then(|| parts.join(&b'/'))
}

/// A name with `%20` and the like resolved, as far as that changes it.
fn percent_decoded(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts = name.split(|byte| *byte == b'%');
    let mut decoded = parts.next()?.to_vec();
    let mut changed = false;
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        decoded.push(u8::from_str_radix(digits, 16).ok().filter(|_| plain)?);
        decoded.extend_from_slice(rest);
        changed = true;
    }
    changed.then_some(decoded)
}

/// Names in a disk of an archive mean other files of the same archive, and nothing else.
#[derive(Debug, Clone)]
struct WithinArchive {
    archive: Archive,
    /// The folder of the disk, with its separator.
    folder: Vec<u8>,
}

impl WithinArchive {
    /// For the names in the file called `name`.
    fn beside(archive: Archive, name: &[u8]) -> Self {
        WithinArchive {
            archive,
            folder: folder_of(name).to_vec(),
        }
    }
}

impl Resolver for WithinArchive {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let name = reference.name.as_bytes();
        let outside = || denied(reference);
        if leads_outside(name) {
            return Err(outside());
        }
        let beside = [self.folder.as_slice(), name].concat();
        let member = self.archive.member(&beside)?.ok_or_else(outside)?;
        Ok(Resolved::Open {
            source: self.archive.open_member(member)?,
            format: None,
            within: Arc::new(WithinArchive::beside(self.archive.clone(), &beside)),
        })
    }
}

/// That no file of a package can be meant by this name.
pub(super) fn refused(name: &ImageName) -> Error {
    Error::unsupported(
        OVA,
        format!("a file outside of the package ({})", name.quoted()),
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_outside_mean_nothing() {
        for (name, want) in [
            ("disk.vmdk", Some("disk.vmdk")),
            ("./a//disk.vmdk", Some("a/disk.vmdk")),
            ("a:b.vmdk", Some("a:b.vmdk")),
            ("../disk.vmdk", None),
            ("a/../disk.vmdk", None),
            ("a\\..\\disk.vmdk", None),
            ("/etc/passwd", None),
            ("\\\\host\\share", None),
            ("C:\\disk.vmdk", None),
            ("c:/disk.vmdk", None),
            ("http://host/disk.vmdk", None),
            ("file:///etc/passwd", None),
            ("a\0b", None),
            ("", None),
            (".", None),
        ] {
            let settled = settled(name.as_bytes());
            assert_eq!(settled.as_deref(), want.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn escapes_are_resolved() {
        assert_eq!(percent_decoded(b"a%20b").as_deref(), Some(&b"a b"[..]));
        assert_eq!(percent_decoded(b"%2e%2E/x").as_deref(), Some(&b"../x"[..]));
        for plain in [&b"a b"[..], b"a%2", b"100%", b"%+1", b"%zz"] {
            assert_eq!(percent_decoded(plain), None);
        }
    }
}
