//! JSON, in QEMU's layout: four spaces, one entry a line, and ASCII only.

use std::fmt::{self, Write};

use crate::image::Value;

/// The JSON text of a value. Everything that is not printable ASCII is escaped, so that a parser gets
/// the text as it was and a terminal gets nothing that it would obey. Bytes that are not UTF-8 have no
/// place in JSON: they become the text `\xNN`.
pub(crate) fn to_text(value: &Value) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_value(&mut out, value, 0);
    out
}

fn write_value(out: &mut String, value: &Value, depth: usize) -> fmt::Result {
    match value {
        Value::Bool(value) => write!(out, "{value}"),
        Value::Number(value) => write!(out, "{value}"),
        Value::Text(text) => write_string(out, text.as_bytes()),
        Value::Name(name) | Value::File(Some(name)) => write_string(out, name.as_bytes()),
        Value::File(None) => write_string(out, b""),
        Value::List(values) => {
            out.push('[');
            for (i, value) in values.iter().enumerate() {
                next_line(out, i > 0, depth + 1);
                write_value(out, value, depth + 1)?;
            }
            next_line(out, false, depth);
            out.write_char(']')
        }
        Value::Map(entries) => {
            out.push('{');
            for (i, (name, value)) in entries.iter().enumerate() {
                next_line(out, i > 0, depth + 1);
                write_string(out, name.as_bytes())?;
                out.push_str(": ");
                write_value(out, value, depth + 1)?;
            }
            next_line(out, false, depth);
            out.write_char('}')
        }
    }
}

fn next_line(out: &mut String, comma: bool, depth: usize) {
    if comma {
        out.push(',');
    }
    out.push('\n');
    out.extend(std::iter::repeat_n("    ", depth));
}

fn write_string(out: &mut String, bytes: &[u8]) -> fmt::Result {
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                ' '..='~' => out.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04X}")?;
                    }
                }
            }
        }
        for byte in chunk.invalid() {
            write!(out, "\\\\x{byte:02x}")?;
        }
    }
    out.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ImageName;

    #[test]
    fn a_parser_gets_the_text_and_a_terminal_gets_ascii() {
        let text = "a\u{1b}]0;\u{7}\n\"\\\u{7f}\u{9b}\u{202e}é\u{1f600}";
        let json = to_text(&Value::from(text));
        assert!(json.bytes().all(|b| (b' '..=b'~').contains(&b)), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        let name = ImageName::new(&b"a\xffb"[..]);
        assert_eq!(to_text(&Value::from(name)), r#""a\\xffb""#);
    }

    #[test]
    fn the_layout_is_qemus() {
        let mut map = Value::map();
        map.insert("empty", Vec::new());
        map.insert("map", Value::map());
        map.insert("list", vec![Value::from(1_u64), Value::from(true)]);
        assert_eq!(
            to_text(&map),
            "{\n    \"empty\": [\n    ],\n    \"map\": {\n    },\n    \"list\": [\n        1,\n        \
             true\n    ]\n}"
        );
    }
}
