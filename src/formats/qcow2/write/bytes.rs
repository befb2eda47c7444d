//! Buffers of tables.

/// A buffer of this many zero bytes. No table that a writer makes is larger than memory can address:
/// the checks of the options come first.
pub(super) fn zeroed(len: u64) -> Vec<u8> {
    vec![0; usize::try_from(len).unwrap_or(usize::MAX)]
}
