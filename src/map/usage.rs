//! The use of the bytes of a file, noted while the tables of an image are checked.

use crate::error::Result;
use crate::image::{Finding, Findings};
use crate::limits::Limits;

use super::Regions;

/// The ranges of a file that hold structures, and the units that hold the disk's data. A unit past the
/// end, in a structure or in another unit is a finding.
#[derive(Debug)]
pub(crate) struct Usage {
    file_size: u64,
    /// Bytes of a unit.
    unit: u64,
    /// The structures until they are settled: start, end and name.
    noted: Vec<(u64, u64, &'static str)>,
    structures: Regions,
    /// Starts of the units.
    units: Vec<u64>,
    limits: Limits,
}

impl Usage {
    /// For a file of `file_size` bytes that stores data in units of `unit` bytes.
    pub(crate) fn new(file_size: u64, unit: u64, limits: &Limits) -> Self {
        Usage {
            file_size,
            unit,
            noted: Vec::new(),
            structures: Regions::default(),
            units: Vec::new(),
            limits: limits.clone(),
        }
    }

    fn check_kept(&self) -> Result<()> {
        let structures = (self.noted.len() + self.structures.len()) as u64 * 48;
        self.limits
            .check_kept(structures + self.units.len() as u64 * 8)
    }

    /// Notes a structure, and returns whether it is in the file.
    pub(crate) fn structure(
        &mut self,
        name: &'static str,
        start: u64,
        len: u64,
        findings: &mut Findings,
    ) -> Result<bool> {
        let end = start.checked_add(len);
        let Some(end) = end.filter(|end| *end <= self.file_size) else {
            let problem = format!(
                "{len} bytes long, reaches past the end of the file at {}",
                self.file_size
            );
            findings.add(Finding::corruption(name, problem).at(start));
            return Ok(false);
        };
        if len > 0 {
            self.noted.push((start, end, name));
            self.check_kept()?;
        }
        Ok(true)
    }

    /// Finds structures that share bytes. All of them have to be noted before the first unit is.
    pub(crate) fn settle(&mut self, findings: &mut Findings) {
        self.structures = Regions::merged(std::mem::take(&mut self.noted), |start, name, other| {
            let problem = format!("overlaps the {other}");
            findings.add(Finding::corruption(name, problem).at(start));
        });
    }

    /// Returns `true` if a range shares bytes with a structure.
    pub(crate) fn is_in_structure(&self, start: u64, len: u64) -> bool {
        self.structures.overlapping(start, len).is_some()
    }

    /// Notes a unit, of which the disk needs `needed` bytes, and returns whether it is in the file and
    /// in no structure. `place` is where its entry is in the file and which guest bytes it is about.
    pub(crate) fn unit(
        &mut self,
        name: &'static str,
        start: u64,
        needed: u64,
        place: (u64, u64),
        findings: &mut Findings,
    ) -> Result<bool> {
        let end = start.checked_add(needed);
        let (at, guest) = place;
        let problem = match end.filter(|end| *end <= self.file_size) {
            None => format!(
                "the entry refers to byte {start}, and {needed} bytes from there reach past the end of \
                 the data at {}",
                self.file_size
            ),
            Some(_) => match self.structures.overlapping(start, needed) {
                Some(other) => format!("the entry refers to byte {start}, in the {other}"),
                None => {
                    self.units.push(start);
                    self.check_kept()?;
                    return Ok(true);
                }
            },
        };
        findings.add(Finding::corruption(name, problem).at(at).guest(guest));
        Ok(false)
    }

    /// Finds units that share bytes.
    pub(crate) fn finish(mut self, name: &'static str, findings: &mut Findings) {
        self.units.sort_unstable();
        let pairs = self.units.iter().zip(self.units.iter().skip(1));
        for (first, second) in pairs.filter(|(first, second)| *second - *first < self.unit) {
            let problem = if first == second {
                "two entries refer to it".to_owned()
            } else {
                format!("overlaps the one at byte {first}")
            };
            findings.add(Finding::corruption(name, problem).at(*second));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shares_bytes_is_found() {
        let mut findings = Findings::default();
        let mut usage = Usage::new(100, 10, &Limits::default());
        let mut structure = |start, len| usage.structure("x", start, len, &mut findings).unwrap();
        assert!(structure(0, 30) && structure(5, 5) && structure(95, 5));
        assert!(!structure(95, 6));
        usage.settle(&mut findings);
        assert_eq!(findings.corruptions, 2, "past the end, and one in another");
        for (start, needed, sound) in [
            (30, 10, true),
            (29, 10, false),
            (12, 3, false),
            (86, 10, false),
            (86, 9, true),
            (39, 10, true),
            (60, 10, true),
            (60, 10, true),
            (101, 1, false),
        ] {
            let noted = usage
                .unit("u", start, needed, (0, 0), &mut findings)
                .unwrap();
            assert_eq!(noted, sound, "{start}");
        }
        assert_eq!(findings.corruptions, 6);
        usage.finish("u", &mut findings);
        assert_eq!(
            findings.corruptions, 8,
            "30 and 39 overlap, 60 is there twice"
        );
    }

    #[test]
    fn what_is_noted_has_a_limit() {
        let limits = Limits {
            check_bytes: 16,
            ..Limits::default()
        };
        let mut findings = Findings::default();
        let mut usage = Usage::new(100, 10, &limits);
        let mut unit = |start| usage.unit("u", start, 10, (0, 0), &mut findings);
        assert!(unit(0).is_ok() && unit(10).is_ok() && unit(20).is_err());
    }
}
