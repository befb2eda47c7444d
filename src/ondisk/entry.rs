//! Table entries: numbers with a meaning, each in the order of its format.

use super::table::{FieldType, Order, values};

/// An entry of a table, declared with [`table_entry!`]. Each format adds the meaning of its bits.
pub(crate) trait TableEntry: Copy + 'static {
    /// The number that stands on disk.
    type Raw: FieldType;
    /// Order of its bytes.
    const ORDER: Order;
    /// Length on disk in bytes.
    const LEN: usize = <Self::Raw as FieldType>::LEN;

    /// The entry that is this number.
    fn from_raw(raw: Self::Raw) -> Self;

    /// The number that stands on disk.
    fn raw(self) -> Self::Raw;

    /// Reads the entry number `index` of a table; `None` past its end.
    fn decode(table: &[u8], index: u64) -> Option<Self> {
        let at = usize::try_from(index).ok()?.checked_mul(Self::LEN)?;
        Self::Raw::get(table, at, Self::ORDER).map(Self::from_raw)
    }

    /// Reads all entries of a table; a cut entry at the end is left out.
    fn all(table: &[u8]) -> impl Iterator<Item = Self> {
        values(table, Self::ORDER).map(Self::from_raw)
    }

    /// Returns the bytes of the entry.
    fn encode(self) -> <Self::Raw as FieldType>::Bytes {
        self.raw().bytes(Self::ORDER)
    }

    /// Writes the entry number `index` of a table, or nothing past its end.
    fn put(self, table: &mut [u8], index: u64) {
        let at = usize::try_from(index).ok();
        if let Some(at) = at.and_then(|index| index.checked_mul(Self::LEN)) {
            self.raw().put(table, at, Self::ORDER);
        }
    }
}

/// Declares a table entry: a number of a width and an order.
///
/// ```text
/// table_entry! {
///     /// An entry of the L1 table.
///     pub(super) struct L1Entry(u64), Big;
/// }
/// ```
macro_rules! table_entry {
    ($(#[$meta:meta])* $vis:vis struct $name:ident($raw:ty), $order:ident;) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
        $vis struct $name($raw);

        impl $crate::ondisk::TableEntry for $name {
            type Raw = $raw;
            const ORDER: $crate::ondisk::Order = $crate::ondisk::Order::$order;
            fn from_raw(raw: $raw) -> Self {
                $name(raw)
            }
            fn raw(self) -> $raw {
                self.0
            }
        }

        impl ::std::fmt::LowerHex for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                ::std::fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}
pub(crate) use table_entry;

#[cfg(test)]
mod tests {
    use super::*;

    table_entry! {
        /// A number of two bytes.
        struct Sample(u16), Little;
    }

    #[test]
    fn an_entry_is_read_and_written_by_its_number() {
        let mut table = [0; 5];
        Sample(0x0102).put(&mut table, 1);
        Sample(0xffff).put(&mut table, 2);
        Sample(0xffff).put(&mut table, u64::MAX);
        assert_eq!(table, [0, 0, 2, 1, 0]);
        assert_eq!(Sample::decode(&table, 1), Some(Sample(0x0102)));
        assert_eq!(Sample::decode(&table, 2), None);
        assert_eq!(Sample::decode(&table, u64::MAX), None);
        let all: Vec<Sample> = Sample::all(&table).collect();
        assert_eq!(all, [Sample(0), Sample(0x0102)]);
        assert_eq!(Sample(0x0102).encode(), [2, 1]);
    }
}
