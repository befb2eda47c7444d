//! Standard input and output as files, without a buffer.

use std::fs::File;
use std::io;
#[cfg(unix)]
use std::os::fd::AsFd as AsFile;
#[cfg(windows)]
use std::os::windows::io::AsHandle as AsFile;
use std::path::Path;

use blockform::FileIdentity;

/// Returns true for the name of standard input and output. A file of that name is `./-`.
pub(crate) fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// The file of a standard stream.
pub(crate) fn file(stream: &impl AsFile) -> io::Result<File> {
    #[cfg(unix)]
    let owned = stream.as_fd().try_clone_to_owned()?;
    #[cfg(windows)]
    let owned = stream.as_handle().try_clone_to_owned()?;
    Ok(File::from(owned))
}

/// The identity of a file, where the system has one.
#[cfg(unix)]
pub(crate) fn identity(file: &File) -> io::Result<Option<FileIdentity>> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata()?;
    Ok(Some(FileIdentity {
        device: metadata.dev(),
        file: metadata.ino(),
    }))
}

#[cfg(windows)]
pub(crate) fn identity(_: &File) -> io::Result<Option<FileIdentity>> {
    Ok(None)
}
