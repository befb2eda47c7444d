//! The folder of a conversion in parts: its plan, its files until they have their names, and what has
//! been done.
//!
//! ```text
//!   .disk.raw.parts/
//!     plan.json        the plan, to the byte
//!     id               a number that no other folder has, and the target's name
//!     file-0, …        the files to be
//!     part-3.begun     something may have been written of this part
//!     part-3.done      all of it is on stable storage
//!     sealed           the files are whole, and get their names
//! ```
//!
//! Every step is one that a file system does whole or not at all. The folder is made under another name,
//! and a mark under another name, and renamed when it is on stable storage. A mark repeats the folder's
//! number: one that a process leaves which began in a folder of this name that is gone counts for nothing.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::name::{ImageName, quoted_path};
use crate::storage::{FileStorage, identity_of, settle, sync_folder};
use crate::target::BlockTarget;

const PLAN: &str = "plan.json";
const ID: &str = "id";
const SEALED: &str = "sealed";

/// The longest name that can be part of another one: file systems take 255 bytes.
const MAX_NAME: usize = 200;
/// More than any note of ours but the plan is long, a name of 255 bytes in escapes included.
const MAX_NOTE: usize = 4096;

/// The destination of a conversion.
#[derive(Debug)]
pub(super) struct Place {
    /// The names that the files get, or the device.
    pub(super) paths: Vec<PathBuf>,
    pub(super) is_device: bool,
    folder: PathBuf,
    /// Name of the image, in quotes.
    name: String,
}

impl Place {
    pub(super) fn new(
        path: &Path,
        paths: Vec<PathBuf>,
        is_device: bool,
        folder: Option<&Path>,
    ) -> Result<Self> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None if is_device => {
                return Err(Error::invalid(format!(
                    "{} is a block device: name a folder for what is noted of the conversion",
                    quoted_path(path)
                )));
            }
            None => {
                let path = settle(path)?;
                let name = path.file_name().filter(|name| name.len() <= MAX_NAME);
                let name = name.ok_or_else(|| {
                    Error::invalid(format!(
                        "no folder can be named after {}: name one",
                        quoted_path(&path)
                    ))
                })?;
                let mut folder = std::ffi::OsString::from(".");
                folder.push(name);
                folder.push(".parts");
                path.with_file_name(folder)
            }
        };
        // A device may have another name on every machine.
        let name = match path.file_name().filter(|_| !is_device) {
            Some(name) => ImageName::from(Path::new(name)).quoted().to_string(),
            None => String::new(),
        };
        Ok(Place {
            paths,
            is_device,
            folder,
            name,
        })
    }

    /// The error of a step that comes before the first or after the last.
    pub(super) fn unprepared(&self) -> Error {
        Error::invalid(format!(
            "there is no folder {}: the conversion is not prepared, or it is sealed already",
            quoted_path(&self.folder)
        ))
    }

    /// The files at their names, to be replaced; their folders are on the file system of ours.
    fn destinations(&self) -> Result<Vec<PathBuf>> {
        let ours = device_of(&self.folder)?;
        let mut destinations = Vec::new();
        for path in self.paths.iter().filter(|_| !self.is_device) {
            let path = settle(path)?;
            if fs::metadata(&path).is_ok_and(|m| !m.is_file()) {
                let name = quoted_path(&path);
                return Err(Error::invalid(format!(
                    "{name} exists and is not a regular file"
                )));
            }
            if device_of(&path)? != ours {
                return Err(Error::invalid(format!(
                    "{} has to be on the file system that {} is on",
                    quoted_path(&self.folder),
                    quoted_path(&path)
                )));
            }
            destinations.push(path);
        }
        Ok(destinations)
    }
}

/// The folder, as it was found.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    id: String,
}

impl Folder {
    /// The folder of the conversion that goes there by the plan with this text; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there is something else.
    pub(super) fn find(place: &Place, plan: &str) -> Result<Option<Folder>> {
        let path = &place.folder;
        let other = |what| Error::invalid(format!("{} {what}", quoted_path(path)));
        let Some(text) = read(&path.join(PLAN), plan.len())? else {
            let mut entries = match fs::read_dir(path) {
                Ok(entries) => entries,
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(Error::io_path("list", path, e)),
            };
            return match entries.next() {
                None => Ok(None),
                Some(_) => Err(other("is not empty, and no conversion's")),
            };
        };
        if text != plan.as_bytes() {
            return Err(other(
                "belongs to another plan: remove it if that is given up",
            ));
        }
        let id = read(&path.join(ID), MAX_NOTE)?.and_then(|id| String::from_utf8(id).ok());
        let id = id.ok_or_else(|| other("lacks its number: it was damaged"))?;
        let (id, name) = id.split_once('\n').unwrap_or((&id, ""));
        if name != place.name {
            return Err(other("belongs to a target of another name"));
        }
        Ok(Some(Folder {
            path: path.clone(),
            id: id.to_owned(),
        }))
    }

    /// Makes the folder, with files that `fill` makes what they have to be before anything is written.
    /// If another process was faster, that is as well.
    pub(super) fn create(
        place: &Place,
        plan: &str,
        fill: impl FnOnce(&[Arc<dyn BlockTarget>]) -> Result<()>,
    ) -> Result<()> {
        let destinations = place.destinations()?;
        let id = number();
        let new = Removed(with_suffix(&place.folder, &format!(".{id}.new")));
        fs::create_dir(&new.0).map_err(|e| Error::io_path("create", &new.0, e))?;
        let folder = Folder {
            path: new.0.clone(),
            id,
        };
        let mut files: Vec<Arc<dyn BlockTarget>> = Vec::new();
        for (index, destination) in destinations.iter().enumerate() {
            let path = folder.file(index);
            files.push(Arc::new(FileStorage::create_new(&path)?));
            if let Ok(existing) = fs::metadata(destination) {
                fs::set_permissions(&path, existing.permissions())
                    .map_err(|e| Error::io_path("set the permissions of", &path, e))?;
            }
        }
        fill(&files)?;
        files.iter().try_for_each(|file| file.sync())?;
        write(&folder.path.join(PLAN), plan)?;
        let note = format!("{}\n{}", folder.id, place.name);
        write(&folder.path.join(ID), &note)?;
        sync_folder(&folder.path.join(ID))?;
        match fs::rename(&new.0, &place.folder) {
            Ok(()) => sync_folder(&place.folder),
            Err(_) if Folder::find(place, plan)?.is_some() => Ok(()),
            Err(e) => Err(Error::io_path("create", &place.folder, e)),
        }
    }

    /// One of the files to be.
    pub(super) fn file(&self, index: usize) -> PathBuf {
        self.path.join(format!("file-{index}"))
    }

    /// Notes that a part is begun; `false` if it was before.
    pub(super) fn begin(&self, part: usize) -> Result<bool> {
        let path = self.path.join(format!("part-{part}.begun"));
        let created = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path);
        match created {
            Ok(_) => sync_folder(&path).map(|()| true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(Error::io_path("create", &path, e)),
        }
    }

    /// Notes that a part is done.
    pub(super) fn finish(&self, part: usize) -> Result<()> {
        self.mark(&format!("part-{part}.done"))
    }

    pub(super) fn is_done(&self, part: usize) -> Result<bool> {
        self.is_marked(&format!("part-{part}.done"))
    }

    /// Notes that the files are whole.
    pub(super) fn seal(&self) -> Result<()> {
        self.mark(SEALED)
    }

    pub(super) fn is_sealed(&self) -> Result<bool> {
        self.is_marked(SEALED)
    }

    /// Gives the files their names, unless they have them.
    pub(super) fn name_files(&self, place: &Place) -> Result<()> {
        let destinations = place.destinations()?;
        // The image comes last: where it is, what it refers to is there.
        for (index, to) in destinations.iter().enumerate().rev() {
            let renamed = fs::rename(self.file(index), to);
            match renamed {
                Ok(()) => {}
                // Renamed by a process that was stopped behind that.
                Err(e) if e.kind() == ErrorKind::NotFound && to.is_file() => {}
                Err(e) => return Err(Error::io_path("rename the finished file to", to, e)),
            }
            sync_folder(to)?;
        }
        Ok(())
    }

    /// Removes the folder.
    pub(super) fn remove(self) -> Result<()> {
        let old = Removed(with_suffix(&self.path, &format!(".{}.old", self.id)));
        match fs::rename(&self.path, &old.0) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::io_path("remove", &self.path, e))
            }
            _ => Ok(()),
        }
    }

    fn mark(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        let new = with_suffix(&path, &format!(".{}", number()));
        write(&new, &self.note(name))?;
        fs::rename(&new, &path).map_err(|e| Error::io_path("create", &path, e))?;
        sync_folder(&path)
    }

    /// Returns false for a mark that another process left.
    fn is_marked(&self, name: &str) -> Result<bool> {
        let found = read(&self.path.join(name), MAX_NOTE)?;
        Ok(found.is_some_and(|found| found == self.note(name).as_bytes()))
    }

    fn note(&self, name: &str) -> String {
        format!("{} {name}\n", self.id)
    }
}

/// A folder that goes away with this.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // A failure here has no receiver.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A unique number.
fn number() -> String {
    // The standard library seeds each of these from the system's random numbers.
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The device that the folder of `path` is on, where the system has one.
fn device_of(path: &Path) -> Result<Option<u64>> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let metadata = fs::metadata(folder).map_err(|e| Error::io_path("examine", folder, e))?;
    Ok(identity_of(&metadata).map(|identity| identity.device))
}

/// The first bytes of a file, one more than `most` if it is longer; `None` if it is not there.
fn read(path: &Path, most: usize) -> Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io_path("open", path, e)),
    };
    let mut bytes = Vec::new();
    let most = (most as u64).saturating_add(1);
    #[expect(clippy::disallowed_methods, reason = "the reader has an end")]
    let done = file.take(most).read_to_end(&mut bytes);
    done.map_err(|e| Error::io_path("read", path, e))?;
    Ok(Some(bytes))
}

/// Writes a new file and brings it to stable storage; its name is not.
fn write(path: &Path, text: &str) -> Result<()> {
    let written = fs::File::create_new(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|e| Error::io_path("write", path, e))
}
