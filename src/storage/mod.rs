//! Bytes beneath the formats: files, memory, parts of others. No format is known here.

mod concat;
mod file;
mod forward;
mod incoming;
mod memory;
mod pending;
mod seek;
mod slice;
mod spill;
mod system;
mod window;

pub use concat::Concat;
pub use file::FileStorage;
pub use forward::ForwardTarget;
pub(crate) use incoming::{Incoming, Room};
pub use memory::Memory;
pub use pending::PendingFile;
#[cfg(feature = "plan")]
pub(crate) use pending::settle;
pub(crate) use pending::{beside, there};
pub use seek::{SeekSource, SeekTarget, SourceReader};
pub use slice::Slice;
pub(crate) use spill::Spill;
#[cfg(feature = "plan")]
pub(crate) use system::sync_folder;
pub(crate) use system::{
    identity_of, is_block_device, try_lock, without_blocking, without_following,
};
pub(crate) use window::{Miss, Window};

/// Zeros to write from, where nothing cheaper makes a range read as zero.
pub(crate) static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Flushes a writer, again where a signal interrupts it.
pub(crate) fn flush(writer: &mut impl std::io::Write) -> std::io::Result<()> {
    loop {
        match writer.flush() {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            flushed => return flushed,
        }
    }
}

/// Calls `write` with slices of zeros until `len` bytes from `offset` on are covered.
pub(crate) fn write_zeroes_by(
    mut offset: u64,
    mut len: u64,
    mut write: impl FnMut(&[u8], u64) -> crate::Result<()>,
) -> crate::Result<()> {
    while len > 0 {
        let n = usize::try_from(len).map_or(ZEROES.len(), |len| len.min(ZEROES.len()));
        write(ZEROES.get(..n).unwrap_or(&ZEROES), offset)?;
        offset += n as u64;
        len -= n as u64;
    }
    Ok(())
}
