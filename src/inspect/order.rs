//! The order in which QEMU prints named values.
//!
//! QEMU keeps them in a hash table of 512 buckets and prints bucket after bucket. To sort by the same
//! hash is what makes our output equal to the letter, so that `diff` shows only what differs.

use crate::image::Value;

/// The value with the entries of every map in it in QEMU's order.
pub(super) fn as_qemu(value: Value) -> Value {
    match value {
        Value::Map(entries) => {
            let mut entries: Vec<_> = entries
                .into_iter()
                .map(|(name, value)| (name, as_qemu(value)))
                .collect();
            entries.sort_by_key(|(name, _)| bucket(name));
            Value::Map(entries)
        }
        Value::List(values) => Value::List(values.into_iter().map(as_qemu).collect()),
        plain => plain,
    }
}

/// `tdb_hash` of QEMU's `qobject/qdict.c`, and the bucket that it leads to.
fn bucket(name: &str) -> u32 {
    let mut hash = u32::try_from(name.len())
        .unwrap_or(u32::MAX)
        .wrapping_mul(0x238f_13af);
    for (byte, place) in name.bytes().zip(0_u32..) {
        hash = hash.wrapping_add(u32::from(byte) << (place * 5 % 24));
    }
    hash.wrapping_mul(1_103_515_243).wrapping_add(12_345) % 512
}
