//! `/etc/os-release`, by which a system of Linux says what it is (os-release(5)).

use crate::content::bytes::Bytes;
use crate::content::ext;

/// Bytes of the file that are looked at.
const MOST_TEXT: usize = 8 << 10;

/// Fields of `/etc/os-release`, in letters, digits, `.`, `_`, `-` and `+`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OsRelease {
    /// `ID`, such as `debian`.
    pub id: String,
    /// `VERSION_ID`, such as `12`.
    pub version_id: Option<String>,
}

/// The file of the system in `bytes`, if that is an ext filesystem which has it.
pub(super) fn read(bytes: &dyn Bytes) -> Option<OsRelease> {
    let text = |path| ext::read(bytes, path, MOST_TEXT);
    let text = text(b"etc/os-release").or_else(|| text(b"usr/lib/os-release"));
    parse(&text?)
}

/// The variables of os-release(5), as far as they are plain words.
fn parse(text: &[u8]) -> Option<OsRelease> {
    let value = |name: &[u8]| {
        let mut lines = text.split(|byte| *byte == b'\n');
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(b"="))?;
        let quote = |byte: &u8| matches!(byte, b'"' | b'\'');
        let line = line.trim_ascii();
        let inner = match (line.first(), line.last()) {
            (Some(a), Some(b)) if line.len() > 1 && quote(a) && a == b => {
                line.get(1..line.len() - 1)?
            }
            _ => line,
        };
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+');
        let word = std::str::from_utf8(inner).ok()?;
        (!inner.is_empty() && inner.len() <= 64 && inner.iter().all(is_plain))
            .then(|| word.to_owned())
    };
    Some(OsRelease {
        id: value(b"ID")?.to_ascii_lowercase(),
        version_id: value(b"VERSION_ID"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_and_without_quotes() {
        let release = |text: &str| parse(text.as_bytes());
        let found = release("NAME=\"x\"\nVERSION_ID=\"12.5\"\nID='opensuse-leap'\n").unwrap();
        assert_eq!(found.id, "opensuse-leap");
        assert_eq!(found.version_id.unwrap(), "12.5");
        assert_eq!(release("ID_LIKE=debian\n"), None);
        assert_eq!(release("ID=\"a b\"\n"), None);
        assert_eq!(release("ID=\u{1b}[2J\n"), None);
        assert_eq!(release("ID=\"\n"), None);
    }
}
