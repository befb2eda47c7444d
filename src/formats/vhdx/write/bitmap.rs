//! The sector bitmap of the chunk that is being written.

use crate::formats::vhdx::bat::BITMAP_BLOCK;

/// Bitmap of the sectors of a chunk that are in the image, the lowest bit of a byte first.
#[derive(Debug, Default)]
pub(super) struct Bitmap(Vec<u8>);

impl Bitmap {
    /// Marks `count` sectors of the chunk from the `first` on.
    pub(super) fn set(&mut self, first: u64, count: u64) {
        self.0.resize(usize::try_from(BITMAP_BLOCK).unwrap_or(0), 0);
        let (mut at, end) = (first, first + count);
        while at < end {
            let bit = at % 8;
            let len = (8 - bit).min(end - at);
            let byte = usize::try_from(at / 8).unwrap_or(usize::MAX);
            if len == 8 {
                let whole = usize::try_from((end - at) / 8).unwrap_or(usize::MAX);
                let range = byte..byte.saturating_add(whole);
                self.0.get_mut(range).unwrap_or_default().fill(0xff);
                at += whole as u64 * 8;
                continue;
            }
            let mask = (0xff_u8 >> (8 - len)) << bit;
            if let Some(byte) = self.0.get_mut(byte) {
                *byte |= mask;
            }
            at += len;
        }
    }

    /// The bitmap, which is empty after that.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_bits(ranges in prop::collection::vec((0_u64..300, 1_u64..60), 0..6)) {
            let mut bitmap = Bitmap::default();
            let mut oracle = [false; 400];
            for (first, count) in ranges {
                bitmap.set(first, count);
                for i in first..first + count {
                    oracle[usize::try_from(i).unwrap()] = true;
                }
            }
            let bytes = bitmap.take();
            for (i, set) in oracle.into_iter().enumerate() {
                let byte = bytes.get(i / 8).copied().unwrap_or(0);
                prop_assert_eq!(byte >> (i % 8) & 1 == 1, set);
            }
        }
    }
}
