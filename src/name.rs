//! Text from an image.

use std::fmt;
use std::path::{Path, PathBuf};

/// Name or other text from an image, as bytes.
///
/// It has no [`Display`](fmt::Display), so that no control character, terminal escape or
/// right-to-left override reaches a terminal, a log or an error by accident. Print it through
/// [`escaped`](Self::escaped) or [`quoted`](Self::quoted).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ImageName(Box<[u8]>);

impl ImageName {
    /// A name of these bytes.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        ImageName(bytes.into())
    }

    /// The bytes as they stand in the image.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, if it is UTF-8. It is not escaped.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Returns true if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The path that these bytes name: only ever a path, never a URL or a pseudo-protocol.
    ///
    /// `None` where the system's paths cannot hold the bytes, and for a name with a NUL byte.
    pub fn to_path(&self) -> Option<PathBuf> {
        if self.0.contains(&0) {
            return None;
        }
        #[cfg(unix)]
        {
            use std::os::unix::ffi::OsStrExt;
            Some(PathBuf::from(std::ffi::OsStr::from_bytes(&self.0)))
        }
        #[cfg(not(unix))]
        {
            self.as_str().map(PathBuf::from)
        }
    }

    /// The text with all escaped that does not print as itself: control characters, direction
    /// overrides, invisible characters and bytes that are not UTF-8.
    pub fn escaped(&self) -> Escaped<'_> {
        Escaped {
            bytes: &self.0,
            quotes: false,
        }
    }

    /// [`escaped`](Self::escaped) between double quotes, with quotes and backslashes escaped too.
    pub fn quoted(&self) -> Escaped<'_> {
        Escaped {
            bytes: &self.0,
            quotes: true,
        }
    }
}

impl fmt::Debug for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.quoted().fmt(f)
    }
}

impl From<&str> for ImageName {
    fn from(text: &str) -> Self {
        ImageName::new(text.as_bytes())
    }
}

impl From<&[u8]> for ImageName {
    fn from(bytes: &[u8]) -> Self {
        ImageName::new(bytes)
    }
}

impl From<PathBuf> for ImageName {
    fn from(path: PathBuf) -> Self {
        ImageName::from(path.as_path())
    }
}

impl From<&Path> for ImageName {
    fn from(path: &Path) -> Self {
        ImageName::new(path.as_os_str().as_encoded_bytes())
    }
}

/// Text from an image in a form that is safe to print; see [`ImageName::escaped`].
#[derive(Clone, Copy)]
pub struct Escaped<'a> {
    bytes: &'a [u8],
    quotes: bool,
}

impl fmt::Debug for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        if self.quotes {
            f.write_char('"')?;
        }
        for chunk in self.bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '"' | '\\' if self.quotes => write!(f, "\\{c}")?,
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\r' => f.write_str("\\r")?,
                    c if is_printable(c) => f.write_char(c)?,
                    c => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        if self.quotes {
            f.write_char('"')?;
        }
        Ok(())
    }
}

/// Returns true if a character prints as itself: it is not a control character, a line or paragraph
/// separator, or an invisible format character that reorders or hides text.
pub(crate) fn is_printable(c: char) -> bool {
    !(c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'))
}

/// Returns true if a file has a name that macOS gives to metadata of another file (AppleDouble).
pub(crate) fn is_apple_double(name: &[u8]) -> bool {
    let last = name.rsplit(|byte| *byte == b'/').next();
    last.is_some_and(|name| name.starts_with(b"._"))
}

/// A path as error messages show it: quoted, with control characters escaped.
pub(crate) fn quoted_path(path: &std::path::Path) -> impl fmt::Display + use<> {
    ImageName::from(PathBuf::from(path)).quoted().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_survives() {
        let name = ImageName::new(&b"a\x1b]0;x\x07\n\x7f\xc2\x9b\xff\"\xe2\x80\xaeb"[..]);
        assert_eq!(
            name.escaped().to_string(),
            "a\\u{1b}]0;x\\u{7}\\n\\u{7f}\\u{9b}\\xff\"\\u{202e}b"
        );
        assert_eq!(
            ImageName::from("a\"b\\").quoted().to_string(),
            r#""a\"b\\""#
        );
        assert_eq!(format!("{:?}", ImageName::from("é")), "\"é\"");
    }

    #[test]
    fn a_nul_is_no_path() {
        assert_eq!(ImageName::new(&b"a\0b"[..]).to_path(), None);
        assert_eq!(
            ImageName::from("json:{}").to_path(),
            Some(PathBuf::from("json:{}"))
        );
    }
}
