//! Standard input as the source.

use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use blockform::convert::Cancel;
use blockform::{Error, OpenOptions, Result, StreamImage, StreamSource};

use super::arguments::Arguments;
use super::standard;

/// Bytes of a read.
const CHUNK: usize = 256 << 10;
/// Number of chunks that are read ahead.
const AHEAD: usize = 4;
/// Interval at which a wait for input looks for a stop.
const PATIENCE: Duration = Duration::from_millis(100);

/// Opens the image on standard input.
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
    let input = standard::file(&io::stdin()).map_err(|e| Error::io("open standard input", e))?;
    let file = standard::identity(&input);
    let mut stream = StreamSource::new(Pump::start(input, cancel.clone())?).cancel(cancel.clone());
    if let Some(file) = file.map_err(|e| Error::io("examine standard input", e))? {
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
        let folder = match (standard::is_standard(destination), beside) {
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

/// Standard input, read ahead by a thread of its own: a conversion can be stopped while no input comes.
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
