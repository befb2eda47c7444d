//! The ranges of a file that hold metadata.

/// Ranges with names, in order and apart from each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Regions(Vec<(u64, u64, &'static str)>);

impl Regions {
    /// The ranges, each a start, an end and a name. One that overlaps another becomes a part of it, and its
    /// start, its name and that of the other are told to `overlap`.
    pub(crate) fn merged(
        mut ranges: Vec<(u64, u64, &'static str)>,
        mut overlap: impl FnMut(u64, &'static str, &'static str),
    ) -> Self {
        ranges.retain(|(start, end, _)| start < end);
        ranges.sort_unstable();
        let mut apart: Vec<(u64, u64, &'static str)> = Vec::new();
        for (start, end, name) in ranges {
            match apart.last_mut() {
                Some((_, reach, other)) if start < *reach => {
                    overlap(start, name, other);
                    *reach = end.max(*reach);
                }
                Some((_, reach, other)) if start == *reach && name == *other => *reach = end,
                _ => apart.push((start, end, name)),
            }
        }
        apart.shrink_to_fit();
        Regions(apart)
    }

    /// Adds the `len` bytes at `start`.
    ///
    /// # Errors
    /// The name of a range that shares bytes with them, and nothing is added.
    pub(crate) fn add(
        &mut self,
        start: u64,
        len: u64,
        name: &'static str,
    ) -> Result<(), &'static str> {
        if let Some(other) = self.overlapping(start, len) {
            return Err(other);
        }
        if len > 0 {
            let place = self.0.partition_point(|(other, ..)| *other < start);
            self.0
                .insert(place, (start, start.saturating_add(len), name));
        }
        Ok(())
    }

    /// The name of a range that shares bytes with the `len` bytes at `start`.
    pub(crate) fn overlapping(&self, start: u64, len: u64) -> Option<&'static str> {
        let end = start.saturating_add(len);
        let after = self.0.partition_point(|(other, ..)| *other < end);
        let (_, other_end, name) = self.0.get(after.checked_sub(1)?)?;
        (*other_end > start).then_some(*name)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The ranges, each a start, a length and a name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, &'static str)> {
        let ranges = self.0.iter();
        ranges.map(|(start, end, name)| (*start, end - start, *name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_do_not_overlap() {
        let mut regions = Regions::default();
        assert_eq!(regions.add(10, 10, "a"), Ok(()));
        assert_eq!(regions.add(0, 10, "b"), Ok(()));
        assert_eq!(regions.add(20, 5, "c"), Ok(()));
        for (start, len, name) in [
            (0, 1, Some("b")),
            (9, 2, Some("a")),
            (0, 100, Some("c")),
            (25, 5, None),
            (24, u64::MAX, Some("c")),
        ] {
            assert_eq!(regions.overlapping(start, len), name, "{start} {len}");
        }
        assert_eq!(regions.add(19, 1, "d"), Err("a"));
    }

    #[test]
    fn ranges_that_overlap_are_told_and_merged() {
        let mut told = Vec::new();
        let ranges = vec![
            (10, 20, "a"),
            (0, 5, "b"),
            (20, 30, "a"),
            (7, 7, "c"),
            (12, 40, "d"),
        ];
        let regions = Regions::merged(ranges, |start, name, other| told.push((start, name, other)));
        assert_eq!(regions.0, [(0, 5, "b"), (10, 40, "a")]);
        assert_eq!(told, [(12, "d", "a"), (20, "a", "a")]);
    }
}
