//! Policies over directories on the names that an image at a path may open.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::hint::Hint;
use crate::reference::Reference;
use crate::resolver::{Resolved, Resolver};
use crate::storage::FileStorage;

/// Policy on the files that an image refers to.
///
/// A name in an image is only ever a path: there are no URLs and no pseudo-protocols.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathPolicy {
    /// None. Opening an image that refers to another file fails.
    Deny,
    /// None, but the image itself opens; reading data of the other file fails.
    Detach,
    /// Those in the directory of the image that refers to them, or below it. Links that lead out of
    /// it are not followed.
    SameDirectory,
    /// Those in this directory, or below it. Links that lead out of it are not followed.
    Within(PathBuf),
    /// Any that this process can open. The author of the image chooses the files that are read.
    DangerousAnywhere,
}

impl PathPolicy {
    /// The policy of this name: `none`, `detach`, `same-dir`, `anywhere`, or the path of a
    /// directory.
    pub fn from_text(text: &str) -> PathPolicy {
        match text {
            "none" => PathPolicy::Deny,
            "detach" => PathPolicy::Detach,
            "same-dir" => PathPolicy::SameDirectory,
            "anywhere" => PathPolicy::DangerousAnywhere,
            directory => PathPolicy::Within(PathBuf::from(directory)),
        }
    }
}

/// Resolves the references of an image that lies at a path, by a [`PathPolicy`].
///
/// Relative names are relative to the directory of the image that refers to them.
#[derive(Debug, Clone)]
pub struct PathResolver {
    /// Directory of the referring image: absolute, without links.
    base: PathBuf,
    /// Directory that no reference may leave, where there is one: absolute, without links.
    root: Option<PathBuf>,
    policy: PathPolicy,
}

impl PathResolver {
    /// A resolver for the references of the image at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory of the image, or the one of the policy, cannot be found.
    pub fn new(path: &Path, policy: PathPolicy) -> Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let canonical = |folder: &Path| {
            fs::canonicalize(folder).map_err(|e| Error::io_path("find the directory", folder, e))
        };
        // A policy that opens nothing needs the directory only for the text of its refusal.
        let base = match policy {
            PathPolicy::Deny | PathPolicy::Detach => folder.to_owned(),
            _ => canonical(folder)?,
        };
        let root = match &policy {
            PathPolicy::SameDirectory => Some(base.clone()),
            PathPolicy::Within(directory) => Some(canonical(directory)?),
            _ => None,
        };
        Ok(PathResolver { base, root, policy })
    }

    fn denied(&self, reference: &Reference) -> Error {
        let path = reference.name.to_path();
        let wanted = path.map(|path| normalized(&self.base.join(path)));
        let hint = match wanted.as_deref().and_then(Path::parent) {
            None => "no file can have that name".into(),
            Some(folder) if folder.starts_with(normalized(&self.base)) => Hint::AllowSameDirectory,
            Some(folder) => Hint::AllowWithin(folder.to_owned()),
        };
        Error::Denied {
            reference: Box::new(reference.clone()),
            hint: Some(hint),
        }
    }

    fn opened(
        &self,
        reference: &Reference,
        opened: io::Result<(File, PathBuf)>,
    ) -> Result<Resolved> {
        let about = |e| Error::io(format!("open {reference}"), e);
        let (file, folder) = opened.map_err(about)?;
        let source = FileStorage::from_file_to_read(file).map_err(|_| {
            Error::invalid(format!(
                "{reference} is neither a regular file nor a block device"
            ))
        })?;
        let within = PathResolver {
            base: folder,
            ..self.clone()
        };
        Ok(Resolved::Open {
            source: Arc::new(source),
            format: None,
            within: Arc::new(within),
        })
    }
}

impl Resolver for PathResolver {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        if self.policy == PathPolicy::Detach {
            return Ok(Resolved::Detached);
        }
        let (false, Some(name)) = (reference.name.is_empty(), reference.name.to_path()) else {
            return Err(self.denied(reference));
        };
        let path = self.base.join(name);
        match (&self.policy, &self.root) {
            (PathPolicy::DangerousAnywhere, _) => {
                let folder = path.parent().map(Path::to_owned).unwrap_or_default();
                self.opened(
                    reference,
                    beneath::open_anywhere(&path).map(|file| (file, folder)),
                )
            }
            (_, Some(root)) => {
                // A name that goes up inside the directory is resolved here, as text: the base has
                // no links in it. The rest is resolved by the system, beneath the directory.
                let Ok(relative) = normalized(&path).strip_prefix(root).map(Path::to_owned) else {
                    return Err(self.denied(reference));
                };
                let folder = root.join(relative.parent().unwrap_or(Path::new("")));
                match beneath::open(root, &relative) {
                    Err(e) if beneath::is_escape(&e) => Err(self.denied(reference)),
                    opened => self.opened(reference, opened.map(|file| (file, folder))),
                }
            }
            _ => Err(self.denied(reference)),
        }
    }
}

/// The path with `.` and `..` resolved as text.
fn normalized(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                let can_go_up =
                    matches!(clean.components().next_back(), Some(Component::Normal(_)));
                if can_go_up {
                    clean.pop();
                } else if !clean.has_root() {
                    clean.push("..");
                }
            }
            other => clean.push(other),
        }
    }
    clean
}

/// Opening a file below a directory, whatever links there are.
mod beneath {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    /// Opens any file, without blocking on a FIFO.
    pub(super) fn open_anywhere(path: &Path) -> io::Result<File> {
        let mut options = std::fs::OpenOptions::new();
        crate::storage::without_blocking(options.read(true)).open(path)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn open(root: &Path, relative: &Path) -> io::Result<File> {
        use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
        let at = openat(
            CWD,
            root,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        match openat2(&at, relative, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(File::from(fd)),
            // Kernels before 5.6, and sandboxes that do not know the call.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => open_checked(root, relative),
            Err(e) => Err(e.into()),
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(super) fn open(root: &Path, relative: &Path) -> io::Result<File> {
        open_checked(root, relative)
    }

    /// Opens the file and then checks that the open file is inside of the directory.
    fn open_checked(root: &Path, relative: &Path) -> io::Result<File> {
        let path = root.join(relative);
        let file = open_anywhere(&path)?;
        let real = std::fs::canonicalize(&path)?;
        let same = crate::storage::identity_of(&file.metadata()?)
            == crate::storage::identity_of(&std::fs::metadata(&real)?);
        if real.starts_with(root) && same {
            Ok(file)
        } else {
            Err(escape())
        }
    }

    fn escape() -> io::Error {
        io::Error::from(io::ErrorKind::CrossesDevices)
    }

    /// Returns true if the name led out of the directory.
    pub(super) fn is_escape(error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::CrossesDevices
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ImageName;
    use crate::reference::ReferenceKind;

    fn resolve(image: &Path, policy: PathPolicy, name: &str) -> Result<Resolved> {
        let reference = Reference::new(ReferenceKind::BackingFile, ImageName::from(name));
        PathResolver::new(image, policy)?.resolve(&reference)
    }

    #[test]
    fn paths_are_resolved_as_text() {
        for (path, clean) in [
            ("/a/./b/../c", "/a/c"),
            ("/../a", "/a"),
            ("a/../../b", "../b"),
        ] {
            assert_eq!(normalized(Path::new(path)), Path::new(clean), "{path}");
        }
    }

    #[test]
    fn the_refusal_says_what_would_allow_it() {
        let image = Path::new("/images/top.qcow2");
        let hint = |name| {
            let error = resolve(image, PathPolicy::Deny, name).unwrap_err();
            error.hint().unwrap()
        };
        assert_eq!(hint("base.raw"), Hint::AllowSameDirectory);
        assert_eq!(hint("sub/base.raw"), Hint::AllowSameDirectory);
        assert_eq!(hint("/etc/passwd"), Hint::AllowWithin("/etc".into()));
        assert_eq!(hint("../x"), Hint::AllowWithin("/".into()));
        assert_eq!(hint("a\0b"), "no file can have that name".into());
    }

    #[cfg(unix)]
    #[test]
    fn nothing_leads_out_of_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let inside = root.path().join("inside");
        fs::create_dir_all(inside.join("sub")).unwrap();
        fs::write(root.path().join("secret"), "secret").unwrap();
        fs::write(inside.join("base"), "base").unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        std::os::unix::fs::symlink("base", inside.join("good-link")).unwrap();
        let image = inside.join("top.qcow2");
        let same = |name: &str| resolve(&image, PathPolicy::SameDirectory, name);
        let secret = root.path().join("secret");
        for name in [
            "../secret",
            "link",
            "sub/../../secret",
            secret.to_str().unwrap(),
        ] {
            assert!(matches!(same(name), Err(Error::Denied { .. })), "{name}");
        }
        let absolute = fs::canonicalize(&inside).unwrap().join("base");
        for name in [
            "base",
            "./base",
            "sub/../base",
            "good-link",
            absolute.to_str().unwrap(),
        ] {
            assert!(matches!(same(name), Ok(Resolved::Open { .. })), "{name}");
        }
        let wider = PathPolicy::Within(root.path().to_owned());
        assert!(matches!(
            resolve(&image, wider, "../secret"),
            Ok(Resolved::Open { .. })
        ));
        let any = PathPolicy::DangerousAnywhere;
        assert!(matches!(
            resolve(&image, any, "../secret"),
            Ok(Resolved::Open { .. })
        ));
    }
}
