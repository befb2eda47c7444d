//! Finding zeros.

/// Returns true if all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Most blocks that are not zero show it in their first bytes.
    if bytes.iter().take(16).any(|byte| *byte != 0) {
        return false;
    }
    // Lanes of 64 bytes, or-ed without a branch, become vector instructions; a branch every 1 KiB
    // ends the search early.
    bytes.chunks(1024).all(|block| {
        let lanes = block.chunks_exact(64);
        let rest = lanes.remainder();
        let mut or = [0_u8; 64];
        for lane in lanes {
            or.iter_mut().zip(lane).for_each(|(or, byte)| *or |= byte);
        }
        or.iter().chain(rest).all(|byte| *byte == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn one_bit_anywhere_is_seen() {
        for len in [0, 1, 63, 64, 65, 1023, 1024, 1025, 4096, 5000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len}");
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
