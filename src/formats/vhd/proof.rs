//! Proof of a damaged header by the blocks, if they lie in the file as only this header would have them.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::Request;
use crate::source::BlockSource;

use super::SECTOR;
use super::footer::Footers;
use super::header::{self, COOKIE, Header, LOCATORS_LEN, MAX_BLOCK, Tables, bitmap_len};

/// To what some writers align the data of a block, as the disk beneath has it.
const PAGE: u64 = 4096;

/// Host offsets and numbers of the stored blocks.
pub(super) fn stored(tables: &Tables) -> impl Iterator<Item = (u64, u64)> {
    let blocks = tables.bat.iter().zip(0_u64..);
    blocks.filter_map(|(entry, index)| Some((entry.start()?, index)))
}

/// Returns whether the blocks follow each other up to the footer, without gaps or with those of writers that
/// align data to pages: with another size of a block or place of the table they would not. If there are no
/// blocks, the table has to end at the footer.
pub(super) fn is_proven(tables: &Tables, footers: &Footers, size: u64) -> bool {
    let header = &tables.header;
    let entries = u64::from(header.max_table_entries);
    let constants = header.data_offset == u64::MAX && header.header_version == header::VERSION;
    if !constants || entries != size.div_ceil(tables.block_size) {
        return false;
    }
    let stride = bitmap_len(tables.block_size) + tables.block_size;
    let mut starts: Vec<u64> = stored(tables).map(|(start, _)| start).collect();
    starts.sort_unstable();
    let mut pairs = starts.iter().zip(starts.iter().skip(1));
    let end = match starts.last() {
        Some(last) => last + stride,
        None => (header.table_offset + entries * 4).next_multiple_of(SECTOR),
    };
    let map_len = bitmap_len(tables.block_size);
    let follows = |start: u64, next: u64| {
        let after = start + stride;
        let on_page = (after + map_len).next_multiple_of(PAGE) - map_len;
        next == after || next == on_page
    };
    pairs.all(|(start, next)| follows(*start, *next)) && end == footers.data_end
}

/// Reads the tables of a dynamic disk of which the header may be damaged, if the blocks prove what it has to
/// say. A word about that comes with them.
pub(super) fn read_or_find(
    source: &dyn BlockSource,
    footers: &Footers,
    size: u64,
    request: &Request<'_>,
) -> Result<(Tables, Option<&'static str>)> {
    const WORD: &str = "the dynamic disk header is damaged; the blocks tell what it said";
    let read = Tables::read(source, footers, size, request);
    let found = match &read {
        Ok(tables) if !tables.damaged => return read.map(|tables| (tables, None)),
        Ok(tables) if is_proven(tables, footers, size) => None,
        Ok(_) | Err(Error::Io { .. } | Error::Malformed { .. } | Error::Unsupported { .. }) => {
            match find(source, footers, size, request)? {
                None => return read.map(|tables| (tables, None)),
                found => found,
            }
        }
        Err(_) => return read.map(|tables| (tables, None)),
    };
    let mut tables = found.map_or(read, Ok)?;
    tables.damaged = false;
    Ok((tables, Some(WORD)))
}

/// The tables of a dynamic disk whose header is lost: those of the header that a writer would have put there,
/// for whichever size of blocks they prove.
///
/// # Errors
/// As reading.
pub(super) fn find(
    source: &dyn BlockSource,
    footers: &Footers,
    size: u64,
    request: &Request<'_>,
) -> Result<Option<Tables>> {
    // All writers put the table behind the header.
    let Some(table_offset) = footers.footer.data_offset.checked_add(Header::LEN as u64) else {
        return Ok(None);
    };
    // Those that tools write come first.
    let others = (9..=MAX_BLOCK.trailing_zeros()).map(|bits| 1 << bits);
    for block_size in [2 << 20, 512 << 10].into_iter().chain(others) {
        let (Ok(entries), Ok(in_header)) = (
            u32::try_from(size.div_ceil(block_size)),
            u32::try_from(block_size),
        ) else {
            continue;
        };
        let header = Header {
            cookie: COOKIE,
            data_offset: u64::MAX,
            table_offset,
            header_version: header::VERSION,
            max_table_entries: entries,
            block_size: in_header,
            checksum: 0,
            parent_unique_id: Uuid::nil(),
            parent_time_stamp: 0,
            parent_unicode_name: [0; 512],
            parent_locators: [0; LOCATORS_LEN],
        };
        let (mut tables, regions) = match Tables::of_header(source, footers, size, header, request)
        {
            Ok(found) => found,
            Err(error @ Error::Io { .. }) => return Err(error),
            // Such a table has no room, or may not be read.
            Err(_) => continue,
        };
        // Without a block any size would do.
        if stored(&tables).next().is_some() && is_proven(&tables, footers, size) {
            tables.check_blocks(&regions, size, request.salvages)?;
            return Ok(Some(tables));
        }
    }
    Ok(None)
}
