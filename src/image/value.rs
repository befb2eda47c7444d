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

    /// This map with one more entry.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.insert(name, value);
        self
    }

    /// This map with one more entry, if there is a value for it.
    #[must_use]
    pub fn with_some(self, name: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// This map with a list.
    #[must_use]
    pub fn with_list<V: Into<Value>>(
        self,
        name: &'static str,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        self.with(name, values.into_iter().map(V::into).collect::<Vec<_>>())
    }

    /// The entry called `name`, if this is a map that has it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Map(entries) => entries.iter().find(|(n, _)| *n == name).map(|(_, v)| v),
            _ => None,
        }
    }
}

macro_rules! value_from {
    ($($ty:ty: $value:ident => $made:expr),* $(,)?) => {$(
        impl From<$ty> for Value {
            fn from($value: $ty) -> Self {
                $made
            }
        }
    )*};
}

value_from! {
    bool: value => Value::Bool(value),
    u64: value => Value::Number(value),
    u32: value => Value::Number(value.into()),
    &str: value => Value::Text(value.to_owned()),
    String: value => Value::Text(value),
    ImageName: value => Value::Name(value),
    Vec<Value>: values => Value::List(values),
}
