//! Field tables: a structure's fields with their places, declared once for reading and writing.

use crate::error::{Error, Result};
use crate::format_id::FormatId;

/// In which order the bytes of a number stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Most significant byte first.
    Big,
    /// Least significant byte first.
    Little,
}

/// One field of a structure: its name in the specification and where it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// A type that a field can have.
pub(crate) trait FieldType: Sized {
    const LEN: usize;
    /// The value of the `LEN` bytes at `offset`; `None` if they are not all there.
    fn get(bytes: &[u8], offset: usize, order: Order) -> Option<Self>;
    /// Writes the value at `offset`, as far as there is room.
    fn put(&self, bytes: &mut [u8], offset: usize, order: Order);
}

macro_rules! number_field {
    ($($ty:ty),*) => {$(
        impl FieldType for $ty {
            const LEN: usize = size_of::<$ty>();
            fn get(bytes: &[u8], offset: usize, order: Order) -> Option<Self> {
                let raw = *bytes.get(offset..)?.first_chunk()?;
                Some(match order {
                    Order::Big => <$ty>::from_be_bytes(raw),
                    Order::Little => <$ty>::from_le_bytes(raw),
                })
            }
            fn put(&self, bytes: &mut [u8], offset: usize, order: Order) {
                let raw = match order {
                    Order::Big => self.to_be_bytes(),
                    Order::Little => self.to_le_bytes(),
                };
                if let Some(to) = bytes.get_mut(offset..).and_then(|b| b.first_chunk_mut()) {
                    *to = raw;
                }
            }
        }
    )*};
}
number_field!(u8, u16, u32, u64);

impl<const N: usize> FieldType for [u8; N] {
    const LEN: usize = N;
    fn get(bytes: &[u8], offset: usize, _: Order) -> Option<Self> {
        bytes.get(offset..)?.first_chunk().copied()
    }
    fn put(&self, bytes: &mut [u8], offset: usize, _: Order) {
        if let Some(to) = bytes.get_mut(offset..).and_then(|b| b.first_chunk_mut()) {
            *to = *self;
        }
    }
}

/// The error for a structure that is cut short.
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

/// Reads a field that the length of `bytes` was checked for.
pub(crate) fn field<T: FieldType>(
    bytes: &[u8],
    field: &Field,
    order: Order,
    format: FormatId,
    structure: &'static str,
    at: u64,
) -> Result<T> {
    T::get(bytes, field.offset, order)
        .ok_or_else(|| cut_short(format, structure, bytes.len(), field.offset + field.len, at))
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
/// It makes the struct, `LEN`, `FIELDS`, `parse` (bytes → struct, a typed error where they are too
/// few), `encode` (struct → bytes) and `malformed` (an error about one field, with its offset). That
/// the fields lie inside and do not overlap is checked when it is compiled.
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
        impl $name {
            /// Length in bytes.
            $vis const LEN: usize = $len;
            const WHAT: &'static str = $what;
            const FIELDS: &'static [$crate::ondisk::Field] = &[
                $( $crate::ondisk::Field {
                    name: stringify!($field),
                    offset: $offset,
                    len: <$ty as $crate::ondisk::FieldType>::LEN,
                }, )*
            ];

            /// Reads the structure from its bytes, which start at byte `at` of the file.
            $vis fn parse(bytes: &[u8], at: u64) -> $crate::Result<Self> {
                if bytes.len() < Self::LEN {
                    let have = bytes.len();
                    return Err($crate::ondisk::cut_short($format, $what, have, Self::LEN, at));
                }
                let mut fields = Self::FIELDS.iter();
                Ok($name {
                    $( $field: {
                        let field = fields.next().unwrap_or(&$crate::ondisk::Field::NONE);
                        let order = $crate::ondisk::Order::$order;
                        $crate::ondisk::field(bytes, field, order, $format, $what, at)?
                    }, )*
                })
            }

            /// The structure as bytes; what no field covers is zero.
            $vis fn encode(&self) -> [u8; $len] {
                let mut bytes = [0; $len];
                $( $crate::ondisk::FieldType::put(
                    &self.$field, &mut bytes, $offset, $crate::ondisk::Order::$order,
                ); )*
                bytes
            }

            /// Where a field stands in the structure, in bytes.
            $vis fn place_of(field: &'static str) -> Option<usize> {
                let mut fields = Self::FIELDS.iter();
                fields.find(|f| f.name == field).map(|f| f.offset)
            }

            /// An error about one field of the structure that starts at byte `at` of the file.
            $vis fn malformed(
                at: u64,
                field: &'static str,
                problem: impl Into<::std::borrow::Cow<'static, str>>,
            ) -> $crate::Error {
                let place = Self::FIELDS.iter().find(|f| f.name == field);
                $crate::Error::Malformed {
                    format: $format,
                    structure: $what,
                    field: Some(field),
                    offset: place.map(|f| at.saturating_add(f.offset as u64)),
                    problem: problem.into(),
                }
            }
        }

        const _: () = $crate::ondisk::check_fields($name::FIELDS, $len);
    };
}
pub(crate) use on_disk;

impl Field {
    /// A field that is nowhere.
    pub(crate) const NONE: Field = Field {
        name: "",
        offset: usize::MAX,
        len: 0,
    };
}

/// Fails to compile if fields overlap, are out of order, or lie outside of their structure.
pub(crate) const fn check_fields(mut fields: &[Field], len: usize) {
    let mut end = 0;
    while let [first, rest @ ..] = fields {
        assert!(first.offset >= end, "fields overlap or are out of order");
        end = first.offset + first.len;
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
