//! The manifest (DSP0243, section "Manifest and certificate"): the digests of the package's files.

use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::name::ImageName;
use crate::source::BlockSource;

use super::{OVA, malformed};

/// Line of a manifest about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: ImageName,
    digest: Digest,
}

/// The lines `SHA256(name)= hex`, with spaces anywhere between: [`Error::Malformed`] for one that is none,
/// [`Error::Unsupported`] for an algorithm that is not known.
pub(super) fn parse(text: &[u8]) -> impl Iterator<Item = Result<Entry>> {
    let lines = text.split(|byte| matches!(byte, b'\n' | b'\r'));
    let lines = lines.map(<[u8]>::trim_ascii);
    lines.filter(|line| !line.is_empty()).map(entry)
}

fn entry(line: &[u8]) -> Result<Entry> {
    let bad = || {
        let line = ImageName::from(line);
        malformed("manifest", None, format!("has the line {}", line.quoted()))
    };
    let position = |bytes: &[u8], byte| bytes.iter().position(|b| *b == byte);
    let open = position(line, b'(').ok_or_else(bad)?;
    let (algorithm, rest) = line.split_at(open);
    // A name may have brackets and signs of its own: a digest has none.
    let equals = rest
        .iter()
        .rposition(|byte| *byte == b'=')
        .ok_or_else(bad)?;
    let (name, hex) = rest.split_at(equals);
    let name = name.trim_ascii_end().strip_suffix(b")").ok_or_else(bad)?;
    let name = name.strip_prefix(b"(").ok_or_else(bad)?;
    let hex = hex.strip_prefix(b"=").unwrap_or_default().trim_ascii();
    let algorithm = std::str::from_utf8(algorithm.trim_ascii()).map_err(|_| bad())?;
    let known = [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512];
    let algorithm: Algorithm = match algorithm.parse() {
        Ok(algorithm) if known.contains(&algorithm) => algorithm,
        _ => {
            let algorithm = ImageName::from(algorithm);
            return Err(Error::unsupported(
                OVA,
                format!("a manifest with digests of {}", algorithm.quoted()),
                None,
            ));
        }
    };
    let hex = std::str::from_utf8(hex).map_err(|_| bad())?;
    let digest = Digest::from_hex(algorithm, hex).map_err(|_| bad())?;
    let name = ImageName::from(name);
    Ok(Entry { name, digest })
}

impl Entry {
    /// Fails if `file` has another digest.
    pub(super) fn check(&self, file: &dyn BlockSource) -> Result<()> {
        let found = digest_of(file, self.digest.algorithm())?;
        if found == self.digest {
            return Ok(());
        }
        let problem = format!(
            "says that {} has the digest {}, and it has {found}",
            self.name.quoted(),
            self.digest
        );
        Err(malformed("manifest", None, problem))
    }
}

/// The digest of all bytes of a file, in one pass.
fn digest_of(file: &dyn BlockSource, algorithm: Algorithm) -> Result<Digest> {
    let mut hasher = Hasher::new(algorithm)?;
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        let n = file.read_at(&mut buffer, at)?;
        if n == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
        at += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA1: &str = "06271f767e0d5671c67e4edeaa2c157cabb66c2b";

    #[test]
    fn lines_of_every_producer() {
        let text = format!(
            "SHA1 (a.ovf) = {SHA1}\r\nSHA1(b (1)=x.vmdk)= {SHA1}\n\nsha-1(c)={}\n",
            SHA1.to_uppercase()
        );
        let entries: Result<Vec<_>> = parse(text.as_bytes()).collect();
        let entries = entries.unwrap();
        let names: Vec<_> = entries.iter().map(|e| e.name.as_str().unwrap()).collect();
        assert_eq!(names, ["a.ovf", "b (1)=x.vmdk", "c"]);
        assert!(entries.iter().all(|entry| entry.digest.to_hex() == SHA1));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for bad in [
            "SHA1(a)= 00",
            "SHA1 a = 00",
            "hello",
            "SHA1(a) 00",
            "SHA1(a)= zz",
        ] {
            let line = parse(bad.as_bytes()).next().unwrap();
            assert!(matches!(line, Err(Error::Malformed { .. })), "{bad}");
        }
        let other = parse(b"SHA3(a)= 00").next().unwrap();
        assert!(matches!(other, Err(Error::Unsupported { .. })), "{other:?}");
    }
}
