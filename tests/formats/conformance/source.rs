//! The contract of `BlockSource`, as one suite over anything that is one.

use std::io::{Read, Seek, SeekFrom};

use blockform::storage::SourceReader;
use blockform::{BlockSource, BlockSourceExt, Error, Extent};

use crate::support::Rng;

/// Checks every promise of `BlockSource` for a source that has to hold `expected`.
pub(crate) fn check(name: &str, source: &dyn BlockSource, expected: &[u8]) {
    assert_eq!(source.size(), expected.len() as u64, "{name}: size");
    assert!(source.block_size() >= 1, "{name}: block size");
    reads_at_every_kind_of_offset(name, source, expected);
    nothing_past_the_end(name, source);
    extents_tile(name, source, expected);
    extents_from_anywhere(name, source);
    threads_see_the_same(name, source, expected);
    a_cursor_reads_the_same(name, source, expected);
}

fn read_is_right(name: &str, source: &dyn BlockSource, expected: &[u8], offset: u64, len: usize) {
    let mut buf = vec![0xee; len];
    let n = source.read_at(&mut buf, offset);
    let n = n.unwrap_or_else(|e| panic!("{name}: read {len} at {offset}: {}", e.chain()));
    let start = usize::try_from(offset).unwrap().min(expected.len());
    let want = &expected[start..expected.len().min(start + len)];
    assert_eq!(n, want.len(), "{name}: length of read {len} at {offset}");
    assert!(
        buf[..n] == *want,
        "{name}: content of read {len} at {offset}"
    );
}

fn reads_at_every_kind_of_offset(name: &str, source: &dyn BlockSource, expected: &[u8]) {
    let size = source.size();
    let block = source.block_size().min(1 << 21);
    let offsets = [
        0,
        1,
        511,
        512,
        513,
        4095,
        4096,
        65_535,
        65_536,
        size / 2,
        size,
    ];
    let near = [block, 2 * block, 3 * block].map(|b| [b.saturating_sub(1), b, b + 1]);
    let last = [1, 2, 511, 512, 513].map(|n| size.saturating_sub(n));
    let lens = [0, 1, 2, 511, 512, 513, 4096, 70_000];
    for offset in offsets
        .into_iter()
        .chain(near.into_iter().flatten())
        .chain(last)
    {
        for len in lens {
            if offset <= size {
                read_is_right(name, source, expected, offset, len);
            }
        }
    }
    read_is_right(name, source, expected, 0, expected.len());
    read_is_right(name, source, expected, 0, expected.len() + 1);
    let mut rng = Rng(size);
    for _ in 0..200 {
        let len = usize::try_from(rng.below(3 * block + 100)).unwrap();
        read_is_right(name, source, expected, rng.below(size + 1), len);
    }
}

fn nothing_past_the_end(name: &str, source: &dyn BlockSource) {
    let size = source.size();
    for offset in [
        size,
        size + 1,
        1 << 62,
        i64::MAX as u64,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ] {
        for len in [0, 1, 512, 5000] {
            let n = source.read_at(&mut vec![0; len], offset);
            assert_eq!(
                n.ok(),
                Some(0),
                "{name}: read {len} past the end, at {offset}"
            );
        }
        for limit in [1, 512, u64::MAX] {
            let extent = source.extent_at(offset, limit);
            let refused = matches!(extent, Err(Error::OutOfRange { .. }));
            assert!(
                refused,
                "{name}: extent past the end, at {offset}: {extent:?}"
            );
        }
        let exact = source.read_exact_at(&mut [0], offset);
        assert!(
            matches!(exact, Err(Error::OutOfRange { .. })),
            "{name}: {exact:?}"
        );
    }
    let none = source.extent_at(0, 0);
    assert!(
        matches!(none, Err(Error::OutOfRange { .. })),
        "{name}: an extent of 0 bytes: {none:?}"
    );
}

fn extent_is_lawful(name: &str, source: &dyn BlockSource, extent: Extent, offset: u64, limit: u64) {
    let about = format!("{name}: extent at {offset}, limit {limit}: {extent:?}");
    assert_eq!(extent.start, offset, "{about}");
    assert!(extent.len >= 1 && extent.len <= limit, "{about}");
    assert!(extent.len <= source.size() - offset, "{about}");
}

fn extents_tile(name: &str, source: &dyn BlockSource, expected: &[u8]) {
    let mut at = 0;
    for extent in source.extents() {
        let extent = extent.unwrap_or_else(|e| panic!("{name}: extent at {at}: {}", e.chain()));
        extent_is_lawful(name, source, extent, at, u64::MAX);
        if extent.kind.reads_as_zero() {
            let range = usize::try_from(at).unwrap()..usize::try_from(extent.end()).unwrap();
            let zero = expected[range].iter().all(|b| *b == 0);
            assert!(zero, "{name}: claims zeros: {extent:?}");
        }
        at = extent.end();
    }
    assert_eq!(
        at,
        source.size(),
        "{name}: the extents end where the source does"
    );
}

fn extents_from_anywhere(name: &str, source: &dyn BlockSource) {
    let size = source.size();
    let whole: Vec<Extent> = source.extents().map(Result::unwrap).collect();
    let mut rng = Rng(size ^ 1);
    for _ in 0..if size == 0 { 0 } else { 300 } {
        let offset = rng.below(size);
        let limit = [1, 7, 512, 4096, 100_000, u64::MAX][usize::try_from(rng.below(6)).unwrap()];
        let extent = source.extent_at(offset, limit).unwrap();
        extent_is_lawful(name, source, extent, offset, limit);
        let tile = whole
            .iter()
            .find(|e| (e.start..e.end()).contains(&offset))
            .unwrap();
        assert_eq!(
            (extent.kind, extent.depth),
            (tile.kind, tile.depth),
            "{name}: asked from {offset} and from the start"
        );
        // A host offset counts on from that of the run it is part of.
        let host = tile.host_offset.map(|host| host + offset - tile.start);
        assert_eq!(extent.host_offset, host, "{name}: host offset at {offset}");
    }
}

fn threads_see_the_same(name: &str, source: &dyn BlockSource, expected: &[u8]) {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut rng = Rng(seed);
                for _ in 0..100 {
                    let offset = rng.below(source.size() + 1);
                    let len = usize::try_from(rng.below(20_000)).unwrap();
                    read_is_right(name, source, expected, offset, len);
                }
            });
        }
    });
}

fn a_cursor_reads_the_same(name: &str, source: &dyn BlockSource, expected: &[u8]) {
    let mut reader = SourceReader::new(source);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert!(bytes == expected, "{name}: read through a cursor");
    assert_eq!(reader.seek(SeekFrom::End(0)).unwrap(), source.size());
    let to = source.size() / 3;
    assert_eq!(reader.seek(SeekFrom::Start(to)).unwrap(), to);
    bytes.clear();
    reader.read_to_end(&mut bytes).unwrap();
    let rest = &expected[usize::try_from(to).unwrap()..];
    assert!(bytes == rest, "{name}: read through a cursor from {to}");
    let before = reader.seek(SeekFrom::Current(i64::MIN)).unwrap_err();
    assert_eq!(before.kind(), std::io::ErrorKind::InvalidInput, "{name}");
}
