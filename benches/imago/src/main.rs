//! Copies the disk of a qcow2 image into a raw file with the imago crate, as a program built on it would:
//! holes are skipped, and every core reads and writes pieces of a mebibyte.
//!
//! `imago-copy SOURCE.qcow2 TARGET.raw`

use std::fs::File;
use std::io::{Error, Result};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};

const PIECE: u64 = 1 << 20;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(source), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err(Error::other("usage: imago-copy SOURCE.qcow2 TARGET.raw"));
    };
    let file = imago::file::File::try_from(File::open(source)?)?;
    let image: Qcow2<_> = Qcow2::builder(file).open(DenyImplicitOpenGate::default())?;
    let image = FormatAccess::new(image);
    let size = image.size();
    let target = File::create(target)?;
    target.set_len(size)?;
    let position = Mutex::new(0);
    let work = || -> Result<()> {
        let mut buffer = vec![0; PIECE as usize];
        while let Some((at, len)) = next_piece(&image, &position, size)? {
            let piece = &mut buffer[..len as usize];
            image.read(&mut *piece, at)?;
            target.write_all_at(piece, at)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .map_err(|_| Error::other("a worker panicked"))?
        })
    })
}

/// Claims the next piece that holds data.
fn next_piece<S: imago::Storage + 'static>(
    image: &FormatAccess<S>,
    position: &Mutex<u64>,
    size: u64,
) -> Result<Option<(u64, u64)>> {
    let mut position = position
        .lock()
        .map_err(|_| Error::other("a worker panicked"))?;
    while *position < size {
        let at = *position;
        let (mapping, len) = image.get_mapping(at, size - at)?;
        let data = !matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. });
        let len = len.max(1);
        if data {
            let len = len.min(PIECE);
            *position = at + len;
            return Ok(Some((at, len)));
        }
        *position = at + len;
    }
    Ok(None)
}
