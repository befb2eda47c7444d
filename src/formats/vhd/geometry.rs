//! Cylinders, heads and sectors: the specification's appendix "CHS Calculation", and what QEMU makes
//! of it.

use super::SECTOR;

/// The geometry of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors_per_track: u8,
}

impl Geometry {
    /// The largest that there is. A disk that has it may well be larger.
    pub(super) const MAX: Geometry = Geometry {
        cylinders: u16::MAX,
        heads: 16,
        sectors_per_track: 255,
    };

    /// Number of sectors.
    pub fn sectors(&self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors_per_track)
    }

    /// Number of bytes.
    pub fn bytes(&self) -> u64 {
        self.sectors() * SECTOR
    }

    /// The geometry that the specification gives a disk of so many sectors: it may be a little
    /// smaller than the disk.
    pub(super) fn of(sectors: u64) -> Self {
        let sectors = sectors.min(Self::MAX.sectors());
        let (heads, per_track, tracks);
        if sectors >= 65_535 * 16 * 63 {
            (heads, per_track) = (16, 255);
            tracks = sectors / 255;
        } else {
            let by_17 = sectors / 17;
            let want = by_17.div_ceil(1024).max(4);
            if want <= 16 && by_17 < want * 1024 {
                (heads, per_track, tracks) = (want, 17, by_17);
            } else if sectors / 31 < 16 * 1024 {
                (heads, per_track, tracks) = (16, 31, sectors / 31);
            } else {
                (heads, per_track, tracks) = (16, 63, sectors / 63);
            }
        }
        Geometry {
            cylinders: u16::try_from(tracks / heads).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(16),
            sectors_per_track: per_track,
        }
    }

    /// The smallest geometry of the specification with at least so many sectors, or the largest one:
    /// how QEMU rounds, so that readers that go by the geometry lose nothing.
    pub(super) fn holding(sectors: u64) -> Self {
        let wanted = sectors.min(Self::MAX.sectors());
        let mut try_for = wanted;
        loop {
            let geometry = Self::of(try_for);
            // Within a cylinder's length there is a next geometry.
            if geometry.sectors() >= wanted || try_for > wanted + 16 * 255 {
                return geometry;
            }
            try_for += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometries_are_those_of_qemu() {
        // Made with qemu-img 10.0.2 create -f vpc, read from the footer.
        const MIB: u64 = 1 << 20;
        for (bytes, cylinders, heads, sectors_per_track) in [
            (512, 1, 4, 17),
            (1_000_000, 29, 4, 17),
            (8 * MIB, 241, 4, 17),
            (33 * MIB, 994, 4, 17),
            (100 * MIB, 1004, 12, 17),
            (504 * MIB, 1024, 16, 63),
            (1024 * MIB, 2081, 16, 63),
            (31 * 1024 * MIB, 64_496, 16, 63),
            (33 * 1024 * MIB, 16_963, 16, 255),
            (127 * 1024 * MIB, 65_279, 16, 255),
            (128 * 1024 * MIB, 65_535, 16, 255),
        ] {
            let expected = Geometry {
                cylinders,
                heads,
                sectors_per_track,
            };
            let sectors = u64::div_ceil(bytes, SECTOR);
            assert_eq!(Geometry::holding(sectors), expected, "{bytes}");
        }
        assert_eq!(Geometry::holding(0).sectors(), 0);
    }

    #[test]
    fn a_geometry_holds_what_it_was_asked_for() {
        for sectors in (1..300_000_u64)
            .step_by(977)
            .chain((1..60).map(|n| 1 << (n % 29)))
        {
            let geometry = Geometry::holding(sectors);
            let enough = geometry.sectors() >= sectors || geometry == Geometry::MAX;
            assert!(enough, "{sectors}: {geometry:?}");
        }
    }
}
