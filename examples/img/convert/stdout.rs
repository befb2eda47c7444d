//! Standard output as the destination.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use blockform::convert::{ConvertOptions, Input, Summary};
use blockform::{Error, Result};

/// Whether a destination means standard output. A file of that name is `./-`.
pub(crate) fn is_standard(destination: &Path) -> bool {
    destination == Path::new("-")
}

/// Writes the image to standard output.
pub(crate) fn convert(options: &ConvertOptions, source: Input<'_>) -> Result<Summary> {
    if io::stdout().is_terminal() {
        return Err(Error::invalid(
            "standard output is a terminal: send it to a file or a program",
        ));
    }
    let cannot_open = |error| Error::io("open standard output", error);
    if leads_to(source).map_err(cannot_open)? {
        return Err(Error::invalid(
            "standard output is a file that the conversion reads: it cannot be its target",
        ));
    }
    options.convert_to_writer(source, unbuffered().map_err(cannot_open)?)
}

/// Standard output without the buffer that looks for ends of lines.
#[cfg(unix)]
fn unbuffered() -> io::Result<impl Write + Send> {
    use std::os::fd::AsFd;
    let owned = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(std::fs::File::from(owned))
}

#[cfg(windows)]
fn unbuffered() -> io::Result<impl Write + Send> {
    use std::os::windows::io::AsHandle;
    let owned = io::stdout().as_handle().try_clone_to_owned()?;
    Ok(std::fs::File::from(owned))
}

/// Whether standard output is a file that reading `source` reads.
#[cfg(unix)]
fn leads_to(source: Input<'_>) -> io::Result<bool> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let owned = io::stdout().as_fd().try_clone_to_owned()?;
    let metadata = std::fs::File::from(owned).metadata()?;
    Ok(source.uses_file(blockform::FileIdentity {
        device: metadata.dev(),
        file: metadata.ino(),
    }))
}

#[cfg(windows)]
fn leads_to(_: Input<'_>) -> io::Result<bool> {
    Ok(false)
}
