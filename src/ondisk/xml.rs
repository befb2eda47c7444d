//! An XML document as a tree of elements, with bounds on everything. Names are local: the prefix that a
//! producer chose for a namespace has no meaning.

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesStart, Event};

/// The most elements of a document, the deepest that one may stand, and the most attributes of one.
const MAX_ELEMENTS: usize = 100_000;
const MAX_DEPTH: usize = 64;
const MAX_ATTRIBUTES: usize = 256;
/// The most attributes of a document.
const MAX_ALL_ATTRIBUTES: usize = 200_000;

/// An element.
#[derive(Debug, Clone, Default)]
pub(crate) struct Element {
    /// Its local name.
    pub(crate) name: String,
    attributes: Vec<(String, String)>,
    text: String,
    pub(crate) children: Vec<Element>,
}

impl Element {
    /// The value of the attribute with this local name.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        let mut attributes = self.attributes.iter();
        attributes
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.trim())
    }

    /// The text directly within.
    pub(crate) fn text(&self) -> &str {
        self.text.trim()
    }

    /// The first child of one of these names.
    pub(crate) fn child(&self, names: &[&str]) -> Option<&Element> {
        self.children
            .iter()
            .find(|child| names.contains(&child.name.as_str()))
    }

    /// The text of the first child of one of these names, if there is some.
    pub(crate) fn child_text(&self, names: &[&str]) -> Option<&str> {
        let text = self.child(names)?.text();
        (!text.is_empty()).then_some(text)
    }

    /// All elements within, at any depth, each before its own children.
    pub(crate) fn descendants(&self) -> impl Iterator<Item = &Element> {
        let mut waiting: Vec<&Element> = self.children.iter().rev().collect();
        std::iter::from_fn(move || {
            let next = waiting.pop()?;
            waiting.extend(next.children.iter().rev());
            Some(next)
        })
    }
}

/// The text of a document, decoded by its byte order mark or by its declaration.
pub(crate) fn decoded(bytes: &[u8]) -> Result<String, String> {
    let encoding = match Encoding::for_bom(bytes) {
        Some((encoding, _)) => encoding,
        None if bytes.starts_with(b"<\0") => UTF_16LE,
        None if bytes.starts_with(b"\0<") => UTF_16BE,
        None => declared(bytes)?,
    };
    let text = encoding.decode_with_bom_removal(bytes);
    match text {
        (text, false) => Ok(text.into_owned()),
        (_, true) => Err(format!("is not text in {}", encoding.name())),
    }
}

/// The start of a document as text, in the encoding that its first bytes show; `None` if it does not begin
/// as a document does.
pub(crate) fn decoded_start(bytes: &[u8]) -> Option<String> {
    let encoding = match Encoding::for_bom(bytes) {
        Some((encoding, _)) => encoding,
        None if bytes.starts_with(b"<\0") => UTF_16LE,
        None if bytes.starts_with(b"\0<") => UTF_16BE,
        None if bytes.trim_ascii_start().starts_with(b"<") => UTF_8,
        None => return None,
    };
    Some(encoding.decode_with_bom_removal(bytes).0.into_owned())
}

/// The encoding that the declaration names.
fn declared(bytes: &[u8]) -> Result<&'static Encoding, String> {
    let head = bytes.get(..200).unwrap_or(bytes);
    let Some(declaration) = head.strip_prefix(b"<?xml") else {
        return Ok(UTF_8);
    };
    let end = declaration.iter().position(|byte| *byte == b'>');
    let declaration = declaration.get(..end.unwrap_or(0)).unwrap_or_default();
    let declaration = String::from_utf8_lossy(declaration);
    let Some((_, label)) = declaration.split_once("encoding") else {
        return Ok(UTF_8);
    };
    let label = label.trim_start_matches([' ', '=', '\t', '\r', '\n']);
    let label = label
        .split(['"', '\''])
        .nth(1)
        .map(|label| Encoding::for_label(label.as_bytes()));
    match label {
        Some(Some(encoding)) => Ok(encoding),
        _ => Err("is in an encoding that is not known".to_owned()),
    }
}

/// Reads a document.
///
/// # Errors
/// The fault, in words that continue a sentence after the document's name.
pub(crate) fn parse(text: &str) -> Result<Element, String> {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut elements = 0;
    let mut attributes = 0;
    loop {
        let event = reader
            .read_event()
            .map_err(|error| format!("is not well-formed XML: {}", plain(&error.to_string())))?;
        match event {
            Event::Start(start) => {
                count(&mut elements, open.len())?;
                if root.is_some() {
                    return Err("has two documents in it".to_owned());
                }
                open.push(element(&start, &mut attributes)?);
            }
            Event::Empty(start) => {
                count(&mut elements, open.len())?;
                let element = element(&start, &mut attributes)?;
                close(element, &mut open, &mut root)?;
            }
            Event::End(_) => {
                let element = open.pop().ok_or("closes what is not open")?;
                close(element, &mut open, &mut root)?;
            }
            Event::Text(text) => {
                let text = text.decode().map_err(|error| error.to_string())?;
                append(&mut open, &text)?;
            }
            Event::CData(text) => {
                let text = text.decode().map_err(|error| error.to_string())?;
                append(&mut open, &text)?;
            }
            Event::GeneralRef(name) => {
                let character = name.resolve_char_ref().map_err(|error| error.to_string())?;
                if let Some(character) = character {
                    append(&mut open, character.encode_utf8(&mut [0; 4]))?;
                } else {
                    let name = name.decode().map_err(|error| error.to_string())?;
                    let text = resolve_predefined_entity(&name)
                        .ok_or("has an entity of its own, and those are not resolved")?;
                    append(&mut open, text)?;
                }
            }
            Event::DocType(_) => return Err("has a document type definition".to_owned()),
            Event::Comment(_) | Event::PI(_) | Event::Decl(_) => {}
            Event::Eof => break,
        }
    }
    match (root, open.is_empty()) {
        (Some(root), true) => Ok(root),
        _ => Err("is not well-formed XML: it ends too early".to_owned()),
    }
}

fn count(elements: &mut usize, depth: usize) -> Result<(), String> {
    *elements += 1;
    if *elements > MAX_ELEMENTS || depth >= MAX_DEPTH {
        return Err(format!(
            "has more than {MAX_ELEMENTS} elements, or more than {MAX_DEPTH} within each other"
        ));
    }
    Ok(())
}

fn element(start: &BytesStart<'_>, all: &mut usize) -> Result<Element, String> {
    let mut attributes: Vec<(String, String)> = Vec::new();
    for attribute in start.attributes().with_checks(false) {
        let attribute = attribute.map_err(|error| format!("is not well-formed XML: {error}"))?;
        let key = attribute.key.as_ref();
        // Declarations of namespaces are not needed.
        if key == b"xmlns" || key.starts_with(b"xmlns:") {
            continue;
        }
        *all += 1;
        if attributes.len() >= MAX_ATTRIBUTES || *all > MAX_ALL_ATTRIBUTES {
            return Err(format!(
                "has more than {MAX_ALL_ATTRIBUTES} attributes, or more than {MAX_ATTRIBUTES} in one \
                 element"
            ));
        }
        let name = String::from_utf8_lossy(attribute.key.local_name().as_ref()).into_owned();
        let value = String::from_utf8_lossy(&attribute.value);
        let value = quick_xml::escape::unescape(&value)
            .map_err(|error| format!("is not well-formed XML: {}", plain(&error.to_string())))?;
        attributes.push((name, value.into_owned()));
    }
    Ok(Element {
        name: String::from_utf8_lossy(start.local_name().as_ref()).into_owned(),
        attributes,
        ..Element::default()
    })
}

fn close(element: Element, open: &mut [Element], root: &mut Option<Element>) -> Result<(), String> {
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        None if root.is_none() => *root = Some(element),
        None => return Err("has two documents in it".to_owned()),
    }
    Ok(())
}

fn append(open: &mut [Element], text: &str) -> Result<(), String> {
    match open.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.trim().is_empty() => {}
        None => return Err("has text outside of its elements".to_owned()),
    }
    Ok(())
}

/// A message of the parser. It may quote the document, and so is escaped.
fn plain(text: &str) -> String {
    crate::name::ImageName::from(text).escaped().to_string()
}

/// Text escaped for an element or an attribute.
pub(crate) fn escaped(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_entities_and_encodings() {
        let text = "<?xml version='1.0'?><!-- a --><o:A xmlns:o='u' o:b='1 &lt; 2'>\n x&amp;&#65;<![CDATA[<]]>\n\
                    <C>deep</C></o:A>\n";
        let root = parse(text).unwrap();
        assert_eq!(root.name, "A");
        assert_eq!(root.attribute("b"), Some("1 < 2"));
        assert_eq!(root.text(), "x&A<");
        assert_eq!(root.child_text(&["C"]), Some("deep"));
        let latin = b"<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><A>\xe9</A>";
        assert_eq!(parse(&decoded(latin).unwrap()).unwrap().text(), "é");
        let wide: Vec<u8> = "\u{feff}<A>é</A>"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(parse(&decoded(&wide).unwrap()).unwrap().text(), "é");
        assert!(decoded(b"<A>\xff</A>").is_err());
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "<a>".repeat(1000);
        let wide = format!("<a {}/>", "b='' ".repeat(1000));
        let many = format!("<a>{}</a>", "<b/>".repeat(MAX_ELEMENTS));
        for (text, words) in [
            ("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "document type"),
            ("<a>&b;</a>", "entity"),
            ("<a b='&c;'/>", "not well-formed XML"),
            ("<a><b></a>", "not well-formed XML"),
            ("<a/><b/>", "two documents"),
            ("<a>", "too early"),
            ("", "too early"),
            ("x<a/>", "text outside"),
            (deep.as_str(), "within each other"),
            (wide.as_str(), "attributes"),
            (many.as_str(), "elements"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text:.40}: {error}");
        }
    }
}
