//! Field tables: a structure's fields with their places, declared once for reading and writing.

use std::marker::PhantomData;

use uuid::Uuid;

use crate::error::Error;
use crate::format_id::FormatId;

/// Order of the bytes of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Most significant byte first.
    Big,
    /// Least significant byte first.
    Little,
}

/// A type that a field can have, and the one way between numbers and bytes.
pub(crate) trait FieldType: Sized {
    /// The value as bytes.
    type Bytes: AsRef<[u8]>;
    /// Length in bytes.
    const LEN: usize;
    /// Reads the value at `offset`; `None` if its bytes are not all there.
    fn get(bytes: &[u8], offset: usize, order: Order) -> Option<Self>;
    /// Returns the value as bytes.
    fn bytes(&self, order: Order) -> Self::Bytes;
    /// Writes the value at `offset`, or nothing if there is no room for it.
    fn put(&self, bytes: &mut [u8], offset: usize, order: Order) {
        let room = bytes
            .get_mut(offset..)
            .and_then(|rest| rest.get_mut(..Self::LEN));
        if let Some(to) = room {
            to.copy_from_slice(self.bytes(order).as_ref());
        }
    }
}

macro_rules! number_field {
    ($($ty:ty),*) => {$(
        impl FieldType for $ty {
            type Bytes = [u8; size_of::<$ty>()];
            const LEN: usize = size_of::<$ty>();
            fn get(bytes: &[u8], offset: usize, order: Order) -> Option<Self> {
                let raw = *bytes.get(offset..)?.first_chunk()?;
                Some(match order {
                    Order::Big => <$ty>::from_be_bytes(raw),
                    Order::Little => <$ty>::from_le_bytes(raw),
                })
            }
            fn bytes(&self, order: Order) -> Self::Bytes {
                match order {
                    Order::Big => self.to_be_bytes(),
                    Order::Little => self.to_le_bytes(),
                }
            }
        }
    )*};
}
number_field!(u8, u16, u32, u64);

impl<const N: usize> FieldType for [u8; N] {
    type Bytes = [u8; N];
    const LEN: usize = N;
    fn get(bytes: &[u8], offset: usize, _: Order) -> Option<Self> {
        bytes.get(offset..)?.first_chunk().copied()
    }
    fn bytes(&self, _: Order) -> Self::Bytes {
        *self
    }
}

/// In little-endian structures the first three parts of a UUID are numbers in that order, too.
impl FieldType for Uuid {
    type Bytes = [u8; 16];
    const LEN: usize = 16;
    fn get(bytes: &[u8], offset: usize, order: Order) -> Option<Self> {
        let raw = <[u8; 16]>::get(bytes, offset, order)?;
        Some(match order {
            Order::Big => Uuid::from_bytes(raw),
            Order::Little => Uuid::from_bytes_le(raw),
        })
    }
    fn bytes(&self, order: Order) -> Self::Bytes {
        match order {
            Order::Big => self.into_bytes(),
            Order::Little => self.to_bytes_le(),
        }
    }
}

/// Reads the big-endian value at `offset`; `None` if its bytes are not all there.
pub(crate) fn be<T: FieldType>(bytes: &[u8], offset: usize) -> Option<T> {
    T::get(bytes, offset, Order::Big)
}

/// Reads the little-endian value at `offset`; `None` if its bytes are not all there.
pub(crate) fn le<T: FieldType>(bytes: &[u8], offset: usize) -> Option<T> {
    T::get(bytes, offset, Order::Little)
}

/// Reads a table of values from front to back; a cut value at the end is left out.
pub(crate) fn values<T: FieldType>(table: &[u8], order: Order) -> impl Iterator<Item = T> {
    let entries = table.chunks_exact(T::LEN);
    entries.filter_map(move |raw| T::get(raw, 0, order))
}

/// The bytes before the first NUL.
pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Decodes UTF-16 up to the first NUL. Units that make no character become U+FFFD.
pub(crate) fn utf16(bytes: &[u8], order: Order) -> String {
    let units = values(bytes, order).take_while(|unit: &u16| *unit != 0);
    char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// One field of a structure: its place and its type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<T> {
    /// Bytes from the start of the structure.
    pub(crate) offset: usize,
    order: Order,
    of: PhantomData<T>,
}

impl<T: FieldType> Field<T> {
    pub(crate) const fn new(offset: usize, order: Order) -> Self {
        Field {
            offset,
            order,
            of: PhantomData,
        }
    }

    /// Reads the field of `structure`; `None` if its bytes are not all there.
    pub(crate) fn get(self, structure: &[u8]) -> Option<T> {
        T::get(structure, self.offset, self.order)
    }

    /// Writes the field of `structure`, or nothing if there is no room for it.
    pub(crate) fn put(self, structure: &mut [u8], value: T) {
        value.put(structure, self.offset, self.order);
    }

    /// Returns `value` as the bytes that the field has on disk.
    pub(crate) fn bytes(self, value: T) -> T::Bytes {
        value.bytes(self.order)
    }

    /// Returns the place of the field in a structure that starts at byte `at`.
    pub(crate) fn at(self, at: u64) -> u64 {
        at.saturating_add(self.offset as u64)
    }
}

/// Returns the error for a structure that is cut short.
pub(crate) fn cut_short(
    format: FormatId,
    structure: &'static str,
    have: usize,
    need: usize,
    at: u64,
) -> Error {
    Error::malformed(
        format,
        structure,
        at,
        format!("needs {need} bytes and only {have} are there"),
    )
}

/// Declares an on-disk structure.
///
/// ```text
/// on_disk! {
///     /// The header; qcow2 specification, "Header".
///     pub(crate) struct Header in QCOW2, "header", Big, 72 bytes {
///         /// `QFI\xfb`.
///         magic: u32 = 0,
///         …
///     }
/// }
/// ```
///
/// Makes the struct, `LEN`, `parse` (bytes → struct, a typed error where they are too few), `encode`
/// (struct → bytes), `malformed` (an error about one field, with its offset), and for each field a
/// constant of its name, a [`Field`], which reads or writes that field alone. Fields that overlap or lie
/// outside do not compile.
macro_rules! on_disk {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident in $format:expr, $what:literal, $order:ident, $len:literal bytes {
            $( $(#[$fmeta:meta])* $field:ident : $ty:ty = $offset:literal ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis struct $name {
            $( $(#[$fmeta])* $vis $field: $ty, )*
        }

        #[allow(dead_code, reason = "not every structure is both read and written")]
        #[allow(non_upper_case_globals, reason = "a field and its place have one name")]
        impl $name {
            /// Length in bytes.
            $vis const LEN: usize = $len;
            $( $vis const $field: $crate::ondisk::Field<$ty> = $crate::ondisk::Field::new(
                $offset, $crate::ondisk::Order::$order,
            ); )*
            /// Names and places of the fields, in order.
            const FIELDS: &'static [(&'static str, usize, usize)] = &[
                $( (
                    stringify!($field), $offset, <$ty as $crate::ondisk::FieldType>::LEN,
                ), )*
            ];

            /// Reads the structure from its bytes, which start at byte `at` of the file.
            $vis fn parse(bytes: &[u8], at: u64) -> $crate::Result<Self> {
                let read = || {
                    let bytes = bytes.get(..Self::LEN)?;
                    Some($name { $( $field: Self::$field.get(bytes)?, )* })
                };
                let short = || $crate::ondisk::cut_short($format, $what, bytes.len(), Self::LEN, at);
                read().ok_or_else(short)
            }

            /// Returns the structure as bytes; those that no field covers are zero.
            $vis fn encode(&self) -> [u8; $len] {
                let mut bytes = [0; $len];
                $( Self::$field.put(&mut bytes, self.$field); )*
                bytes
            }

            /// Returns an error about one field of the structure that starts at byte `at` of the file.
            $vis fn malformed(
                at: u64,
                field: &'static str,
                problem: impl Into<::std::borrow::Cow<'static, str>>,
            ) -> $crate::Error {
                let place = Self::FIELDS.iter().find(|(name, ..)| *name == field);
                $crate::Error::Malformed {
                    format: $format,
                    structure: $what,
                    field: Some(field),
                    offset: place.map(|(_, offset, _)| at.saturating_add(*offset as u64)),
                    problem: problem.into(),
                }
            }
        }

        const _: () = $crate::ondisk::check_fields($name::FIELDS, $len);
    };
}
pub(crate) use on_disk;

/// Fails to compile if fields overlap, are out of order, or lie outside of their structure.
pub(crate) const fn check_fields(mut fields: &[(&str, usize, usize)], len: usize) {
    let mut end = 0;
    while let [(_, offset, field_len), rest @ ..] = fields {
        assert!(*offset >= end, "fields overlap or are out of order");
        end = *offset + *field_len;
        fields = rest;
    }
    assert!(end <= len, "a field lies outside of its structure");
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: FormatId = FormatId::new("test");

    on_disk! {
        /// A structure with a gap.
        struct Sample in TEST, "sample", Little, 12 bytes {
            magic: [u8; 2] = 0,
            count: u16 = 2,
            offset: u32 = 8,
        }
    }

    #[test]
    fn a_table_reads_what_it_writes_at_the_declared_places() {
        let sample = Sample {
            magic: *b"ab",
            count: 0x0102,
            offset: 0x0304_0506,
        };
        let bytes = sample.encode();
        assert_eq!(&bytes, b"ab\x02\x01\0\0\0\0\x06\x05\x04\x03");
        assert_eq!(Sample::parse(&bytes, 0).unwrap(), sample);
    }

    #[test]
    fn a_field_is_read_and_written_alone() {
        let mut bytes = [0; Sample::LEN];
        Sample::offset.put(&mut bytes, 0x0102);
        assert_eq!(bytes, *b"\0\0\0\0\0\0\0\0\x02\x01\0\0");
        assert_eq!(Sample::offset.get(&bytes), Some(0x0102));
        assert_eq!(Sample::offset.get(&bytes[..11]), None);
        assert_eq!(Sample::offset.bytes(0x0102), [2, 1, 0, 0]);
        assert_eq!(Sample::offset.at(512), 520);
        Sample::offset.put(&mut bytes[..11], 0xffff_ffff);
        assert_eq!(Sample::offset.get(&bytes), Some(0x0102));
    }

    #[test]
    fn a_uuid_stands_in_the_order_of_its_structure() {
        let uuid = Uuid::from_u128(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
        assert_eq!(
            uuid.bytes(Order::Big)[..8],
            [0x2d, 0xc2, 0x77, 0x66, 0xf6, 0x23, 0x42, 0]
        );
        assert_eq!(
            uuid.bytes(Order::Little)[..8],
            [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0, 0x42]
        );
        for order in [Order::Big, Order::Little] {
            let bytes = uuid.bytes(order);
            assert_eq!(Uuid::get(&bytes, 0, order), Some(uuid));
            assert_eq!(Uuid::get(&bytes, 1, order), None);
        }
    }

    #[test]
    fn a_table_ends_with_its_last_whole_value() {
        let table: Vec<u16> = values(&[1, 0, 2, 0, 3], Order::Little).collect();
        assert_eq!(table, [1, 2]);
        assert_eq!(be::<u32>(&[0, 0, 1, 2, 3], 1), Some(0x0001_0203));
        assert_eq!(le::<u32>(&[0, 0, 1, 2, 3], 2), None);
        assert_eq!(le::<u32>(&[0], usize::MAX), None);
    }

    #[test]
    fn too_few_bytes_say_where_and_how_many() {
        let error = Sample::parse(&[0; 11], 512).unwrap_err();
        let text =
            "test image is damaged: sample at byte 512: needs 12 bytes and only 11 are there";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn an_error_about_a_field_gives_its_offset() {
        let error = Sample::malformed(512, "count", "is 0");
        let text = "test image is damaged: sample, field count at byte 514: is 0";
        assert_eq!(error.to_string(), text);
    }
}
