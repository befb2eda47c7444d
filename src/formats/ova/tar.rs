//! The index of a tar archive.
//!
//! Only headers are read. A name in an archive is a key to look its bytes up by, and no path.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::ondisk::until_nul;
use crate::source::{BlockSource, BlockSourceExt};
use crate::storage::Slice;

use super::header::{
    BLOCK, BLOCK_LEN, Header, OldGnuHeader, SparseHeader, decimal, has_checksum, name_of, number,
    pax_records,
};
use super::malformed;
use super::sparse::{self, Piece, SparseMember};

/// The most bytes of one extended header or long name.
const MAX_EXTENDED: u64 = 1 << 20;

/// A member of an archive.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: ImageName,
    pub(super) kind: Kind,
    /// Offset of its header, in bytes.
    pub(super) header: u64,
    /// Offset of its bytes.
    data: u64,
    /// Number of bytes in the archive.
    stored: u64,
    /// Size of the file in bytes.
    pub(super) size: u64,
    /// Parts of the file that the archive has, where it does not have all.
    pieces: Option<Arc<[Piece]>>,
}

/// Kind of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file with bytes of its own.
    File,
    /// A symbolic or hard link, a folder, a device: nothing to read.
    Other,
}

impl Member {
    /// Fails if its holes make the file far larger than what the archive has of it.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`].
    pub(super) fn check_size(&self, limits: &Limits) -> Result<()> {
        limits.check_inflated("a sparse file in the archive", self.stored, self.size)
    }

    /// The bytes of the file.
    pub(super) fn open(&self, archive: &Arc<dyn BlockSource>) -> Result<Arc<dyn BlockSource>> {
        if self.kind != Kind::File {
            let name = self.name.quoted();
            return Err(malformed(
                "archive",
                self.header,
                format!("has {name}, which is a link, a folder or a device and no file"),
            ));
        }
        let stored = Slice::new(Arc::clone(archive), self.data, self.stored)?;
        Ok(match &self.pieces {
            None => Arc::new(stored),
            Some(pieces) => Arc::new(SparseMember::new(stored, Arc::clone(pieces), self.size)),
        })
    }
}

/// Members of an archive, as far as it can be read.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    pub(super) members: Vec<Member>,
    /// Offset and reason at which the archive cannot be read further, if it cannot.
    pub(super) damage: Option<(u64, String)>,
    pub(super) warnings: Vec<String>,
}

impl Index {
    /// Reads all headers of an archive.
    ///
    /// # Errors
    /// Errors of reading, and [`Error::LimitExceeded`]. Damage is not an error: what stands before it
    /// is in the index.
    pub(super) fn read(archive: &dyn BlockSource, limits: &Limits) -> Result<Self> {
        let mut reader = Reader {
            archive,
            limits,
            at: 0,
            metadata: 0,
            index: Index::default(),
        };
        match reader.members() {
            Err(Error::Malformed {
                structure,
                field,
                offset,
                problem,
                ..
            }) => {
                let problem = match field {
                    Some(field) => format!("has a {structure} whose field {field} {problem}"),
                    None => problem.into_owned(),
                };
                reader.index.damage = Some((offset.unwrap_or(reader.at), problem));
            }
            other => other?,
        }
        Ok(reader.index)
    }
}

struct Reader<'a> {
    archive: &'a dyn BlockSource,
    limits: &'a Limits,
    /// Offset of the next header.
    at: u64,
    /// Bytes of extended headers so far.
    metadata: u64,
    index: Index,
}

/// Fields of the extended headers before a member.
#[derive(Debug, Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: SparseKeys,
}

/// The keys `GNU.sparse.*`.
#[derive(Debug, Default)]
struct SparseKeys {
    used: bool,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    version: (Option<u64>, Option<u64>),
    /// Offsets and lengths in turn.
    map: Vec<u64>,
}

impl Reader<'_> {
    fn members(&mut self) -> Result<()> {
        let size = self.archive.size();
        let mut extended = Extended::default();
        let mut waiting = false;
        loop {
            if self.at == size {
                if waiting {
                    return Err(self.cut("after an extended header"));
                }
                let warning = "the archive has no end marker: it may have been cut between files";
                self.index.warnings.push(warning.to_owned());
                return Ok(());
            }
            let block = self.block(self.at)?;
            if block.iter().all(|byte| *byte == 0) {
                return match waiting {
                    true => Err(self.cut("after an extended header")),
                    false => Ok(()),
                };
            }
            let header = Header::parse(&block, self.at)?;
            if !has_checksum(&block, &header) {
                return Err(Header::malformed(self.at, "chksum", "is not the sum"));
            }
            let own = number(&header.size)
                .ok_or_else(|| Header::malformed(self.at, "size", "is not a number"))?;
            waiting = match header.typeflag {
                b'x' | b'g' => {
                    let text = self.extended_bytes(own)?;
                    self.pax(header.typeflag, &text, &mut extended)?;
                    true
                }
                b'L' => {
                    let text = self.extended_bytes(own)?;
                    extended.name = Some(until_nul(&text).to_vec());
                    true
                }
                b'K' => {
                    self.extended_bytes(own)?;
                    true
                }
                _ => {
                    let extended = std::mem::take(&mut extended);
                    self.member(&block, &header, own, extended)?;
                    false
                }
            };
            // A global header is about no single member.
            waiting &= header.typeflag != b'g';
        }
    }

    /// Takes a member in, and goes on behind it.
    fn member(
        &mut self,
        block: &[u8],
        header: &Header,
        own: u64,
        extended: Extended,
    ) -> Result<()> {
        self.limits
            .check_archive_files(self.index.members.len() as u64 + 1)?;
        let at = self.at;
        let sparse = extended.sparse;
        let name = sparse.name.clone().or(extended.name);
        let name = name.unwrap_or_else(|| name_of(header));
        self.metadata += name.len() as u64;
        self.limits
            .check_metadata("the headers of the archive", self.metadata)?;
        let folder = name.last() == Some(&b'/');
        let kind = match header.typeflag {
            b'0' | 0 | b'7' | b'S' if !folder => Kind::File,
            b'M' => return Err(malformed("archive", at, "is one of several volumes")),
            _ => Kind::Other,
        };
        let mut stored = extended.size.unwrap_or(own);
        // Some archivers give a link the size of its target; others store the bytes with the link.
        if matches!(header.typeflag, b'1'..=b'6') && stored != 0 {
            return Err(Header::malformed(
                at,
                "size",
                "is that of a link, a folder or a device, which has no bytes",
            ));
        }
        let mut data = at + BLOCK;
        let mut size = stored;
        let mut pieces = None;
        if header.typeflag == b'S' {
            let (map, real, next) = self.old_gnu_map(block)?;
            data = next;
            (pieces, size) = (Some(map), real);
        } else if sparse.used {
            let real = sparse.size.ok_or_else(|| {
                malformed("archive", at, "has a sparse file without its real size")
            })?;
            let map = match sparse.version {
                (Some(1), Some(0)) => {
                    let (map, len) = self.map_in_data(data, stored)?;
                    (data, stored) = (data + len, stored - len);
                    map
                }
                (None | Some(0), None | Some(0 | 1)) => sparse.map,
                _ => {
                    return Err(malformed(
                        "archive",
                        at,
                        "has an unknown kind of sparse file",
                    ));
                }
            };
            (pieces, size) = (Some(map), real);
        }
        let next = stored
            .checked_next_multiple_of(BLOCK)
            .and_then(|len| data.checked_add(len))
            .ok_or_else(|| Header::malformed(at, "size", "is larger than any file"))?;
        // The last file's padding may be missing, its bytes may not.
        if data + stored > self.archive.size() {
            let name = ImageName::new(name);
            return Err(malformed(
                "archive",
                at,
                format!("is cut short within {}", name.quoted()),
            ));
        }
        let pieces = match pieces {
            None => None,
            Some(map) => Some(
                sparse::pieces(&map, stored, size)
                    .ok_or_else(|| malformed("archive", at, "has a sparse file without sense"))?,
            ),
        };
        let in_memory = pieces.as_ref().map_or(0, |p| size_of_val::<[Piece]>(p));
        self.metadata += in_memory as u64;
        self.limits
            .check_metadata("the headers of the archive", self.metadata)?;
        self.index.members.push(Member {
            name: ImageName::new(name),
            kind,
            header: at,
            data,
            stored,
            size,
            pieces,
        });
        self.at = next.min(self.archive.size());
        Ok(())
    }

    fn block(&self, at: u64) -> Result<[u8; BLOCK_LEN]> {
        let mut block = [0; BLOCK_LEN];
        match self.archive.read_at(&mut block, at)? {
            BLOCK_LEN => Ok(block),
            _ => Err(malformed("archive", at, "is cut short within a header")),
        }
    }

    fn cut(&self, place: &str) -> Error {
        malformed("archive", self.at, format!("is cut short {place}"))
    }

    /// The bytes of an extended header, and goes on behind it.
    fn extended_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        let end = (self.at + BLOCK).checked_add(len);
        if len > MAX_EXTENDED || end.is_none_or(|end| end > self.archive.size()) {
            return Err(Header::malformed(
                self.at,
                "size",
                "is that of an extended header that is too long, or cut short",
            ));
        }
        self.metadata += len + BLOCK;
        self.limits
            .check_metadata("the headers of the archive", self.metadata)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.archive.read_exact_at(&mut bytes, self.at + BLOCK)?;
        let next = self.at + BLOCK + len.next_multiple_of(BLOCK);
        self.at = next.min(self.archive.size());
        Ok(bytes)
    }

    fn pax(&self, kind: u8, text: &[u8], extended: &mut Extended) -> Result<()> {
        let bad = |what: &str| malformed("pax header", self.at, what.to_owned());
        let records = pax_records(text).ok_or_else(|| bad("has a record that is not whole"))?;
        let counted = |value| decimal(value).ok_or_else(|| bad("has a size that is not a number"));
        for (key, value) in records {
            let decides = matches!(key, b"path" | b"size") || key.starts_with(b"GNU.sparse.");
            if kind == b'g' {
                if decides {
                    return Err(bad("gives all files one name or size"));
                }
                continue;
            }
            let sparse = &mut extended.sparse;
            sparse.used |= key.starts_with(b"GNU.sparse.");
            match key {
                b"path" => extended.name = Some(value.to_vec()),
                b"size" => extended.size = Some(counted(value)?),
                b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.size = Some(counted(value)?),
                b"GNU.sparse.major" => sparse.version.0 = Some(counted(value)?),
                b"GNU.sparse.minor" => sparse.version.1 = Some(counted(value)?),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    // They come in pairs, the offset first.
                    if (sparse.map.len() % 2 == 1) != key.ends_with(b"numbytes") {
                        return Err(bad("has a sparse map without order"));
                    }
                    sparse.map.push(counted(value)?);
                }
                b"GNU.sparse.map" => {
                    let numbers = value.split(|byte| *byte == b',');
                    sparse.map = numbers.map(counted).collect::<Result<_>>()?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The map of a sparse file in its header and those that go on after it, the file's size, and where
    /// its bytes begin.
    fn old_gnu_map(&mut self, block: &[u8]) -> Result<(Vec<u64>, u64, u64)> {
        let header = OldGnuHeader::parse(block, self.at)?;
        let real = number(&header.real_size)
            .ok_or_else(|| OldGnuHeader::malformed(self.at, "real_size", "is not a number"))?;
        let mut map = Vec::new();
        let mut take = |entries: &[u8], at: u64| -> Result<()> {
            for entry in entries.chunks_exact(12) {
                if entry.first() == Some(&0) {
                    break;
                }
                let value = number(entry)
                    .ok_or_else(|| OldGnuHeader::malformed(at, "sparse", "has no number"))?;
                map.push(value);
            }
            Ok(())
        };
        take(&header.sparse, self.at)?;
        let mut at = self.at + BLOCK;
        let mut more = header.is_extended != 0;
        let mut entries = 8;
        while more {
            self.metadata += BLOCK;
            self.limits
                .check_metadata("the headers of the archive", self.metadata)?;
            let header = SparseHeader::parse(&self.block(at)?, at)?;
            entries += 42;
            check_map(entries, self.limits)?;
            take(&header.sparse, at)?;
            more = header.is_extended != 0;
            at += BLOCK;
        }
        Ok((map, real, at))
    }

    /// The map that stands before the bytes of a sparse file: a count, then offsets and lengths, each a
    /// decimal number on a line of its own, and how many bytes of the file it takes.
    fn map_in_data(&mut self, data: u64, stored: u64) -> Result<(Vec<u64>, u64)> {
        let bad = || malformed("archive", data, "has a sparse file without a map");
        let mut map = Vec::new();
        let mut wanted: Option<u64> = None;
        let mut digits: Vec<u8> = Vec::new();
        let mut len = 0;
        while wanted.is_none_or(|wanted| (map.len() as u64) < wanted) {
            if len + BLOCK > stored {
                return Err(bad());
            }
            self.metadata += BLOCK;
            self.limits
                .check_metadata("the headers of the archive", self.metadata)?;
            for byte in self.block(data + len)? {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(bad());
                    }
                    continue;
                }
                let value = decimal(&digits).ok_or_else(bad)?;
                digits.clear();
                match wanted {
                    None => {
                        let numbers = value.checked_mul(2).ok_or_else(bad)?;
                        check_map(numbers, self.limits)?;
                        wanted = Some(numbers);
                    }
                    Some(_) => map.push(value),
                }
                if wanted == Some(map.len() as u64) {
                    break;
                }
            }
            len += BLOCK;
        }
        Ok((map, len))
    }
}

fn check_map(numbers: u64, limits: &Limits) -> Result<()> {
    let what = "the map of a sparse file in the archive";
    limits.check_metadata(what, numbers.saturating_mul(8))
}
