//! Shares of data, zeros and holes of a disk, and a drawing of them: a screen for people.

use std::fmt;

use crate::extent::{Extent, ExtentKind};
use crate::inspect::human;
use crate::source::{BlockSource, BlockSourceExt};

/// Totals of the kinds of extents of a disk, and a drawing of their places.
///
/// It is made from the runs that the disk reports, and reads none of their bytes. At most
/// [`Self::MOST_EXTENTS`] runs are looked at, so that no image can make it go on for ever; what comes
/// after them is left out and said to be.
///
/// ```
/// use blockform::OpenOptions;
/// use blockform::inspect::ExtentMap;
///
/// let image = OpenOptions::new().open_path("testdata/qcow2/good/plain.qcow2")?;
/// print!("{}", ExtentMap::of(&image));
/// # Ok::<(), blockform::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentMap {
    /// Size of the disk in bytes.
    size: u64,
    /// Number of bytes from the start that were looked at.
    seen: u64,
    /// Runs and bytes of each of [`KINDS`].
    totals: [Total; KINDS.len()],
    /// Bytes of each of [`KINDS`] in each part of the drawing.
    cells: Vec<[u64; KINDS.len()]>,
    /// Why the rest was not looked at.
    stopped: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Total {
    extents: u64,
    bytes: u64,
}

const KINDS: [(ExtentKind, &str); 4] = [
    (ExtentKind::Data, "data"),
    (ExtentKind::Compressed, "compressed"),
    (ExtentKind::Zero, "zero"),
    (ExtentKind::Hole, "hole"),
];

/// Characters of the drawing.
const CELLS: u64 = 64;

impl ExtentMap {
    /// Runs that are looked at, at most.
    pub const MOST_EXTENTS: usize = 100_000;

    /// The map of a source. One that cannot be read to its end is told as far as it could be.
    pub fn of(source: &dyn BlockSource) -> Self {
        let size = source.size();
        let mut map = ExtentMap {
            size,
            seen: 0,
            totals: Default::default(),
            cells: vec![Default::default(); usize::try_from(size.min(CELLS)).unwrap_or(0)],
            stopped: None,
        };
        let mut last = None;
        for (number, extent) in source.extents().enumerate() {
            if number >= Self::MOST_EXTENTS {
                let text = format!("only the first {number} extents were looked at");
                map.stopped = Some(text);
                break;
            }
            match extent {
                Ok(extent) => {
                    map.add(&extent, last == Some(extent.kind));
                    last = Some(extent.kind);
                }
                Err(error) => {
                    map.stopped = Some(error.chain());
                    break;
                }
            }
        }
        map
    }

    /// Bytes of this kind that were seen.
    pub fn bytes(&self, kind: ExtentKind) -> u64 {
        self.total(kind).bytes
    }

    /// Runs of this kind that were seen; neighbours are one.
    pub fn extents(&self, kind: ExtentKind) -> u64 {
        self.total(kind).extents
    }

    /// Number of bytes from the start of the disk that were looked at.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    fn total(&self, kind: ExtentKind) -> Total {
        let mut totals = self.totals.iter().zip(KINDS);
        let found = totals.find(|(_, (known, _))| *known == kind);
        found.map(|(total, _)| *total).unwrap_or_default()
    }

    /// Bytes that one character stands for.
    fn cell_size(&self) -> u64 {
        self.size.div_ceil(CELLS).max(1)
    }

    /// Adds a run, which may go on with the one before.
    fn add(&mut self, extent: &Extent, goes_on: bool) {
        let Some(kind) = KINDS.iter().position(|(kind, _)| *kind == extent.kind) else {
            return;
        };
        if let Some(total) = self.totals.get_mut(kind) {
            total.bytes = total.bytes.saturating_add(extent.len);
            total.extents += u64::from(!goes_on);
        }
        self.seen = extent.end();
        let cell_size = self.cell_size();
        let mut at = extent.start;
        while at < extent.end() {
            let cell = at / cell_size;
            let end = (cell + 1).saturating_mul(cell_size).min(extent.end());
            let cell = usize::try_from(cell).ok();
            let cell = cell.and_then(|cell| self.cells.get_mut(cell));
            if let Some(bytes) = cell.and_then(|cell| cell.get_mut(kind)) {
                *bytes += end - at;
            }
            at = end;
        }
    }

    fn write_bar(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell_size = self.cell_size();
        write!(f, "    [")?;
        for ([data, compressed, zero, hole], start) in self.cells.iter().zip(0_u64..) {
            let start = start.saturating_mul(cell_size);
            if start >= self.size {
                break;
            }
            let (stored, zeros) = (data + compressed, zero + hole);
            let symbol = match (stored, zeros) {
                (0, 0) => "?",
                (0, _) if zero >= hole => "0",
                (0, _) => ".",
                (_, 0) => "#",
                _ => "+",
            };
            f.write_str(symbol)?;
        }
        writeln!(f, "] {} each", human::size(cell_size))?;
        writeln!(
            f,
            "    # stored, + stored in part, 0 zero, . hole, ? not looked at"
        )
    }
}

impl fmt::Display for ExtentMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Extents:")?;
        for (total, (_, name)) in self.totals.iter().zip(KINDS) {
            // In thousandths, so that no float rounds what is all to more or less than that.
            let share = u128::from(total.bytes) * 1000 / u128::from(self.size.max(1));
            let extents = match total.extents {
                1 => "1 extent".to_owned(),
                n => format!("{n} extents"),
            };
            let size = human::size(total.bytes);
            let (whole, tenth) = (share / 10, share % 10);
            writeln!(
                f,
                "    {name:<10} {size:>10} {whole:>4}.{tenth} %  {extents}"
            )?;
        }
        if self.size > 0 {
            self.write_bar(f)?;
        }
        match &self.stopped {
            Some(why) => writeln!(f, "    … after {}: {why}", human::size(self.seen)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Result};
    use crate::source::check_extent;

    /// A disk of runs of two bytes each, data and holes in turn, that fails at some offset.
    #[derive(Debug)]
    struct Stripes {
        size: u64,
        fails_at: u64,
    }

    impl BlockSource for Stripes {
        fn size(&self) -> u64 {
            self.size
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
            Err(Error::Cancelled)
        }

        fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
            if offset >= self.fails_at {
                return Err(Error::Cancelled);
            }
            let kind = match offset / 2 % 2 {
                0 => ExtentKind::Data,
                _ => ExtentKind::Hole,
            };
            Ok(Extent::new(
                offset,
                check_extent(offset, limit, self.size)?.min(2 - offset % 2),
                kind,
            ))
        }
    }

    #[test]
    fn the_totals_are_those_of_the_runs() {
        let map = ExtentMap::of(&Stripes {
            size: 101,
            fails_at: 101,
        });
        assert_eq!(
            (map.bytes(ExtentKind::Data), map.extents(ExtentKind::Data)),
            (51, 26)
        );
        assert_eq!(
            (map.bytes(ExtentKind::Hole), map.extents(ExtentKind::Hole)),
            (50, 25)
        );
        assert_eq!(map.seen(), 101);
        let text = map.to_string();
        assert!(
            text.contains("    data             51 B   50.4 %  26 extents\n"),
            "{text}"
        );
        // Characters of two bytes, the last one of one.
        assert!(
            text.contains(&format!("    [{}#] 2 B each\n", "#.".repeat(25))),
            "{text}"
        );
        assert!(!text.contains('…'), "{text}");
    }

    #[test]
    fn a_map_without_end_has_one() {
        let map = ExtentMap::of(&Stripes {
            size: 1 << 62,
            fails_at: u64::MAX,
        });
        assert_eq!(map.seen(), 2 * ExtentMap::MOST_EXTENTS as u64);
        let text = map.to_string();
        assert!(
            text.contains("… after 195 KiB: only the first 100000"),
            "{text}"
        );
        assert!(text.contains(&format!("[+{}]", "?".repeat(63))), "{text}");
    }

    #[test]
    fn what_cannot_be_looked_at_is_said() {
        let map = ExtentMap::of(&Stripes {
            size: 8,
            fails_at: 4,
        });
        let text = map.to_string();
        assert!(text.contains("[##..????]"), "{text}");
        assert!(text.contains("… after 4 B: cancelled"), "{text}");
        let nothing = ExtentMap::of(&Stripes {
            size: 0,
            fails_at: 0,
        });
        assert!(!nothing.to_string().contains('['));
    }
}
