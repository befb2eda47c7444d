//! On-disk structures: field tables and a bounds-checked reader. Pure functions of bytes.
//!
//! Each structure of a format is declared once, with [`on_disk!`](crate::ondisk::on_disk), under the
//! field names and at the offsets of its specification; readers and writers share the declaration.

mod entry;
pub(crate) mod luks;
pub(crate) mod pe;
mod reader;
mod table;
#[cfg(any(feature = "ova", feature = "parallels"))]
pub(crate) mod xml;

pub(crate) use entry::{TableEntry, table_entry};
pub(crate) use reader::Reader;
pub(crate) use table::{
    Field, FieldType, Order, be, check_fields, cut_short, le, on_disk, until_nul, utf16, values,
};
