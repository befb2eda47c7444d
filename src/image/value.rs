//! Tree of named values, for facts of one format alone.

use crate::name::ImageName;

/// A value in the description of an image, in the shape of JSON.
///
/// Formats describe facts of their own by it, under the names of QEMU's QAPI schema
/// (`BlockdevImageInfo`), so that the inspector need not know any format.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Number(u64),
    /// Text of this crate.
    Text(String),
    /// Text that came from the image.
    Name(ImageName),
    /// The name of a file: of one that the image refers to, as it stands in the image, or of the
    /// image's own file where there is none. The inspector knows where the image lies.
    File(Option<ImageName>),
    /// Values in order.
    List(Vec<Value>),
    /// Named values in order.
    Map(Vec<(&'static str, Value)>),
}

impl Value {
    /// A map without entries.
    pub fn map() -> Self {
        Value::Map(Vec::new())
    }

    /// Appends an entry, if this is a map.
    pub fn insert(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Value::Map(entries) = self {
            entries.push((name, value.into()));
        }
    }

    /// The entry called `name`, if this is a map that has it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Map(entries) => entries.iter().find(|(n, _)| *n == name).map(|(_, v)| v),
            _ => None,
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Value::Number(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Value::Number(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Value::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Value::Text(value)
    }
}

impl From<ImageName> for Value {
    fn from(value: ImageName) -> Self {
        Value::Name(value)
    }
}

impl From<Vec<Value>> for Value {
    fn from(values: Vec<Value>) -> Self {
        Value::List(values)
    }
}
