//! Tables that are kept until they can be written.

use crate::error::{Error, Result};
use crate::image::{Payload, Write};
use crate::zero::is_zero;

/// The most bytes of tables that are kept: with grains of 64 KiB, the tables of 2 TiB of data.
const MOST_KEPT: usize = 256 << 20;
/// Bytes that are written at once of what repeats.
const CHUNK: u64 = 64 << 10;

/// Tables, as they are kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) tables: Vec<Table>,
    /// Bytes of memory that they take.
    memory: usize,
}

impl Kept {
    pub(super) fn keep(&mut self, write: Write) -> Result<()> {
        if matches!(write.payload, Payload::Digest { .. }) {
            return Err(of_what_was_written());
        }
        let Payload::Bytes(bytes) = write.payload else {
            return Ok(());
        };
        if is_zero(&bytes) {
            return Ok(());
        }
        let table = Table {
            offset: write.offset,
            content: Content::new(bytes),
        };
        self.memory += table.memory();
        if self.memory > MOST_KEPT {
            return Err(Error::invalid(format!(
                "the tables that a stream of this image begins with take more than {MOST_KEPT} bytes; \
                 write it to a file, or take larger blocks"
            )));
        }
        self.tables.push(table);
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) offset: u64,
    content: Content,
}

/// Most tables that are kept say the same over and over: that every cluster has one reference, that
/// every sector is present.
#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    Repeated { word: [u8; 8], times: u64 },
}

impl Content {
    fn new(mut bytes: Vec<u8>) -> Self {
        let words = bytes.chunks_exact(8);
        if let (Some(first), true) = (bytes.first_chunk(), words.remainder().is_empty()) {
            if words.clone().all(|word| word == first) {
                let times = words.len() as u64;
                return Content::Repeated {
                    word: *first,
                    times,
                };
            }
        }
        bytes.shrink_to_fit();
        Content::Bytes(bytes)
    }
}

impl Table {
    pub(super) fn end(&self) -> u64 {
        let len = match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Repeated { times, .. } => times * 8,
        };
        self.offset.saturating_add(len)
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory(&self) -> usize {
        size_of::<Table>()
            + match &self.content {
                Content::Bytes(bytes) => bytes.capacity(),
                Content::Repeated { .. } => 0,
            }
    }

    pub(super) fn write(self, tables: &mut Vec<Write>) {
        let mut push = |offset, bytes| {
            tables.push(Write::new(0, offset, bytes));
        };
        let mut at = self.offset;
        let end = self.end();
        match self.content {
            Content::Bytes(bytes) => push(at, bytes),
            Content::Repeated { word, .. } => {
                while at < end {
                    let len = (end - at).min(CHUNK);
                    push(at, word.repeat(usize::try_from(len / 8).unwrap_or(0)));
                    at += len;
                }
            }
        }
    }
}

/// A stream cannot be read again.
pub(super) fn of_what_was_written() -> Error {
    Error::invalid(
        "an image that holds a digest of its own bytes cannot be written to a stream; write it to a \
         file, or without the digest",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, bytes: Vec<u8>) -> Write {
        Write::new(0, offset, bytes)
    }

    #[test]
    fn what_is_kept_comes_back_as_it_was() {
        let page: Vec<u8> = [0, 1].repeat(100_004);
        let text = b"no word of this comes twice, and it ends somewhere".to_vec();
        for bytes in [page, text, vec![7], vec![1; 8], vec![2; 12]] {
            let mut kept = Kept::default();
            kept.keep(write(5, bytes.clone())).unwrap();
            let mut tables = Vec::new();
            for table in kept.tables {
                assert_eq!(table.end(), 5 + bytes.len() as u64);
                table.write(&mut tables);
            }
            let mut back = Vec::new();
            for table in tables {
                assert_eq!(table.offset, 5 + back.len() as u64);
                match table.payload {
                    Payload::Bytes(bytes) => back.extend(bytes),
                    other => panic!("{other:?}"),
                }
            }
            assert!(back == bytes);
        }
    }

    #[test]
    fn what_repeats_takes_no_memory_and_the_rest_has_a_limit() {
        let mut kept = Kept::default();
        for at in 0..10_000_u64 {
            kept.keep(write(at << 20, [0, 1].repeat(32 << 10))).unwrap();
        }
        assert!(kept.memory < 1 << 20, "{}", kept.memory);
        kept.keep(write(0, vec![0; 8 << 20])).unwrap();
        assert!(kept.memory < 1 << 20, "zeros are not kept");
        kept.memory = MOST_KEPT - 100;
        let error = kept.keep(write(0, (0..200).collect())).unwrap_err();
        assert!(error.to_string().contains("larger blocks"), "{error}");
    }
}
