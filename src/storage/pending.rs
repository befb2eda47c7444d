//! A file that is whole or absent.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::name::quoted_path;
use crate::storage::FileStorage;
use crate::storage::system::sync_folder;
use crate::target::BlockTarget;

/// A file on its way: written beside its name, and given the name once it is whole.
///
/// Until [`commit`](Self::commit) a file that had the name before stays as it was. Dropped without
/// it, the file is removed and nothing is left.
#[derive(Debug)]
pub struct PendingFile {
    storage: Arc<FileStorage>,
    temporary: PathBuf,
    destination: PathBuf,
    committed: bool,
    /// True if it stays where it is until it is committed.
    kept: bool,
}

impl PendingFile {
    /// Creates an empty file beside `destination`. A symbolic link is followed: the file that it
    /// points to is what will be replaced, and it has to exist.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written to, [`Error::InvalidInput`] if `destination` is
    /// something else than a regular file.
    pub fn create(destination: impl AsRef<Path>) -> Result<Self> {
        let destination = settle(destination.as_ref())?;
        let existing = there(fs::metadata(&destination), &destination)?;
        if existing.as_ref().is_some_and(|m| !m.is_file()) {
            let name = quoted_path(&destination);
            return Err(Error::invalid(format!(
                "{name} exists and is not a regular file"
            )));
        }
        let Some(name) = destination.file_name() else {
            return Err(Error::invalid(format!(
                "{} names no file",
                quoted_path(&destination)
            )));
        };
        let (storage, temporary) = create_beside(&destination, name)?;
        let pending = PendingFile {
            storage: Arc::new(storage),
            temporary,
            destination,
            committed: false,
            kept: false,
        };
        if let Some(existing) = existing {
            fs::set_permissions(&pending.temporary, existing.permissions())
                .map_err(|e| Error::io_path("set the permissions of", &pending.temporary, e))?;
        }
        Ok(pending)
    }

    /// Goes on with the unfinished file for `destination` that an earlier call left, or creates it
    /// empty unless `begun`. Dropped without [`commit`](Self::commit), it stays.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub(crate) fn go_on(destination: impl AsRef<Path>, begun: bool) -> Result<Self> {
        let temporary = Self::part_of(destination.as_ref())?;
        let destination = settle(destination.as_ref())?;
        let existing = there(fs::metadata(&destination), &destination)?;
        if existing.is_some_and(|m| !m.is_file()) {
            let name = quoted_path(&destination);
            return Err(Error::invalid(format!(
                "{name} exists and is not a regular file"
            )));
        }
        if !begun {
            match fs::remove_file(&temporary) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io_path("remove", &temporary, e));
                }
                _ => {}
            }
        }
        let storage = match begun {
            true => FileStorage::open_unfinished(&temporary)?,
            false => FileStorage::create_new(&temporary)?,
        };
        Ok(PendingFile {
            storage: Arc::new(storage),
            temporary,
            destination,
            committed: false,
            kept: true,
        })
    }

    /// The name of the unfinished file for `destination`.
    pub(crate) fn part_of(destination: &Path) -> Result<PathBuf> {
        beside(&settle(destination)?, ".part")
    }

    /// The file, to write to. It reads as zero.
    pub fn storage(&self) -> Arc<FileStorage> {
        Arc::clone(&self.storage)
    }

    /// The name that the file will have.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Gives the file its name, in one step, replacing what had it. With `sync` the file is on stable
    /// storage before, and its name after.
    ///
    /// # Errors
    /// [`Error::Io`]; the file is then removed, and what had the name before is as it was, unless it
    /// was only the last step, the sync of the folder, that failed.
    pub fn commit(mut self, sync: bool) -> Result<()> {
        if sync {
            self.storage.sync()?;
        }
        fs::rename(&self.temporary, &self.destination)
            .map_err(|e| Error::io_path("rename the finished file to", &self.destination, e))?;
        self.committed = true;
        if sync {
            sync_folder(&self.destination)
        } else {
            Ok(())
        }
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.committed && !self.kept {
            // An error here has no caller to go to.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A hidden name beside that of a file, with this ending.
pub(crate) fn beside(path: &Path, ending: &str) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::invalid(format!("{} names no file", quoted_path(path))))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(ending);
    Ok(path.with_file_name(hidden))
}

/// Metadata of a file, if it exists.
///
/// # Errors
/// [`Error::Io`] where the system does not say whether there is.
pub(crate) fn there(
    found: std::io::Result<fs::Metadata>,
    path: &Path,
) -> Result<Option<fs::Metadata>> {
    match found {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io_path("examine", path, e)),
    }
}

/// The file that a name means in the end.
pub(crate) fn settle(path: &Path) -> Result<PathBuf> {
    let link = there(fs::symlink_metadata(path), path)?;
    if link.is_some_and(|m| m.file_type().is_symlink()) {
        return fs::canonicalize(path).map_err(|e| Error::io_path("follow", path, e));
    }
    Ok(path.to_owned())
}

fn create_beside(destination: &Path, name: &std::ffi::OsStr) -> Result<(FileStorage, PathBuf)> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    let mut number = now ^ (u128::from(std::process::id()) << 64);
    loop {
        let mut part = std::ffi::OsString::from(".");
        // The name with its additions has to stay within what file systems take, 255 bytes.
        part.push(if name.len() <= 200 {
            name
        } else {
            "output".as_ref()
        });
        part.push(format!(".{number:x}.part"));
        let temporary = destination.with_file_name(part);
        match FileStorage::create_new(&temporary) {
            Ok(storage) => return Ok((storage, temporary)),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                number = number.wrapping_add(1);
            }
            Err(Error::Io { source, .. }) => {
                return Err(Error::io_path("create", destination, source));
            }
            Err(error) => return Err(error),
        }
    }
}
