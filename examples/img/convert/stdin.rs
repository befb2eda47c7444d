//! Standard input as the source.

use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use blockform::convert::Cancel;
use blockform::{Error, OpenOptions, Result, StreamImage, StreamSource};

use super::arguments::Arguments;

/// Bytes that are read at once.
const CHUNK: usize = 256 << 10;
/// How many chunks are read ahead.
const AHEAD: usize = 4;
/// How soon a conversion that was stopped stops waiting for input.
const PATIENCE: Duration = Duration::from_millis(100);

/// Opens the image that comes in on standard input.
pub(crate) fn open(
    options: &OpenOptions,
    arguments: &Arguments,
    destination: &Path,
    cancel: &Cancel,
) -> Result<StreamImage> {
    if io::stdin().is_terminal() {
        return Err(Error::invalid(
            "standard input is a terminal: send a file or the output of a program",
        ));
    }
    let input = unbuffered().map_err(|e| Error::io("open standard input", e))?;
    let mut stream = StreamSource::new(Pump::start(input, cancel.clone())?).cancel(cancel.clone());
    if let Some(file) = identity().map_err(|e| Error::io("examine standard input", e))? {
        stream = stream.file(file);
    }
    if let Some(bytes) = arguments.source_size {
        stream = stream.size(bytes);
    }
    if let Some(path) = &arguments.source_path {
        stream = stream.path(path);
    }
    if let Some(bytes) = arguments.spill {
        let beside = destination
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = match (super::stdout::is_standard(destination), beside) {
            (true, _) => std::env::temp_dir(),
            (false, Some(folder)) => folder.to_owned(),
            (false, None) => ".".into(),
        };
        stream = stream.spill(folder, bytes);
    }
    for digest in &arguments.expect_source {
        stream = stream.expect(digest.clone());
    }
    for algorithm in &arguments.source_digest {
        stream = stream.digest(*algorithm);
    }
    options.open_stream(stream)
}

/// Standard input read ahead by a thread of its own, so that a conversion can be stopped while nothing
/// comes.
struct Pump {
    full: Receiver<io::Result<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    taken: usize,
    cancel: Cancel,
}

impl Pump {
    fn start(mut input: impl Read + Send + 'static, cancel: Cancel) -> Result<Self> {
        let (send_full, full) = sync_channel(AHEAD);
        let (empty, spare) = sync_channel::<Vec<u8>>(AHEAD + 2);
        let pump = move || {
            loop {
                let mut chunk = spare.try_recv().unwrap_or_default();
                chunk.resize(CHUNK, 0);
                let read = loop {
                    match input.read(&mut chunk) {
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        read => break read,
                    }
                };
                let over = !matches!(read, Ok(1..));
                let sent = send_full.send(read.map(|n| {
                    chunk.truncate(n);
                    chunk
                }));
                if over || sent.is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("standard input".to_owned());
        thread
            .spawn(pump)
            .map_err(|e| Error::io("start a thread", e))?;
        Ok(Pump {
            full,
            empty,
            chunk: Vec::new(),
            taken: 0,
            cancel,
        })
    }
}

impl Read for Pump {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.chunk.len() {
            match self.full.recv_timeout(PATIENCE) {
                Ok(chunk) => {
                    let chunk = chunk?;
                    if chunk.is_empty() {
                        return Ok(0);
                    }
                    let old = std::mem::replace(&mut self.chunk, chunk);
                    drop(self.empty.try_send(old));
                    self.taken = 0;
                }
                Err(RecvTimeoutError::Timeout) if self.cancel.is_cancelled() => {
                    return Err(Error::Cancelled.into());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
        let left = self.chunk.get(self.taken..).unwrap_or_default();
        let n = left.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..n), left.get(..n)) {
            to.copy_from_slice(from);
        }
        self.taken += n;
        Ok(n)
    }
}

/// Standard input without a buffer.
#[cfg(unix)]
fn unbuffered() -> io::Result<impl Read + Send + 'static> {
    use std::os::fd::AsFd;
    let owned = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(std::fs::File::from(owned))
}

#[cfg(windows)]
fn unbuffered() -> io::Result<impl Read + Send + 'static> {
    use std::os::windows::io::AsHandle;
    let owned = io::stdin().as_handle().try_clone_to_owned()?;
    Ok(std::fs::File::from(owned))
}

/// Which file standard input is.
#[cfg(unix)]
fn identity() -> io::Result<Option<blockform::FileIdentity>> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let owned = io::stdin().as_fd().try_clone_to_owned()?;
    let metadata = std::fs::File::from(owned).metadata()?;
    Ok(Some(blockform::FileIdentity {
        device: metadata.dev(),
        file: metadata.ino(),
    }))
}

#[cfg(windows)]
fn identity() -> io::Result<Option<blockform::FileIdentity>> {
    Ok(None)
}
