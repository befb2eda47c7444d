//! Options of a new image.

use crate::error::{Error, Result};
use crate::image::ImageIds;
use crate::name::ImageName;

/// Options of a new image: its size, its backing file, and the options of its format.
///
/// The options are those of `qemu-img create -o`, as text; each format documents and checks its
/// own, and refuses others.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Virtual size in bytes.
    pub virtual_size: u64,
    /// Backing file of the new image.
    pub backing: Option<Backing>,
    /// True if units are to be compressed.
    pub compress: bool,
    /// Name of the new file, without a directory, where it is known: for formats that name their
    /// files in the image, or name other files after it.
    pub file_name: Option<ImageName>,
    /// Options of the format, each a name and a value.
    pub options: Vec<(String, String)>,
}

/// Backing file that a new image names. Naming one opens nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backing {
    /// Its name, as it will stand in the image.
    pub name: ImageName,
    /// Its format, which the image will declare.
    pub format: String,
    /// Ids that the new image repeats of it, in formats that do.
    pub ids: ImageIds,
}

impl Backing {
    /// A backing file of this name and format. Its ids are taken from the open image when an
    /// [overlay](crate::convert::ConvertOptions::overlay) is made.
    pub fn new(name: ImageName, format: impl Into<String>) -> Self {
        Backing {
            name,
            format: format.into(),
            ids: ImageIds::default(),
        }
    }
}

impl CreateOptions {
    /// A new image of this many bytes, with nothing below it and every option at its default.
    pub fn new(virtual_size: u64) -> Self {
        CreateOptions {
            virtual_size,
            backing: None,
            compress: false,
            file_name: None,
            options: Vec::new(),
        }
    }

    /// Options of the format, to be taken out one by one.
    pub fn option_set(&self, format: &'static str) -> OptionSet<'_> {
        OptionSet {
            format,
            left: self
                .options
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect(),
        }
    }
}

/// Options of a format while it takes them out; those left at the end are refused.
#[derive(Debug)]
pub struct OptionSet<'a> {
    format: &'static str,
    left: Vec<(&'a str, &'a str)>,
}

impl<'a> OptionSet<'a> {
    /// Takes out the value of an option, the last one if there are several.
    pub fn text(&mut self, name: &str) -> Option<&'a str> {
        let value = self
            .left
            .iter()
            .rev()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value);
        self.left.retain(|(key, _)| *key != name);
        value
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        want: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.text(name) else {
            return Ok(None);
        };
        parse(value).map(Some).ok_or_else(|| {
            let value = ImageName::from(value);
            let value = value.quoted();
            Error::invalid(format!("option {name} is {value}, but has to be {want}"))
        })
    }

    /// Takes out an option that is `on` or `off` (or `true`, `yes`, `false`, `no`).
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for any other value.
    pub fn switch(&mut self, name: &str) -> Result<Option<bool>> {
        self.parsed(name, "on or off", |value| match value {
            "on" | "true" | "yes" => Some(true),
            "off" | "false" | "no" => Some(false),
            _ => None,
        })
    }

    /// Takes out an option that is a size such as `65536`, `64k` or `2M`, in bytes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for any other value.
    pub fn size(&mut self, name: &str) -> Result<Option<u64>> {
        self.parsed(name, "a size such as 64k", parse_size)
    }

    /// Takes out an option that is one of `words`, and returns its index.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for any other value.
    pub fn word(&mut self, name: &str, words: &[&str]) -> Result<Option<usize>> {
        self.parsed(name, &words.join(", "), |value| {
            words.iter().position(|word| *word == value)
        })
    }

    /// Refuses the options that are left.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] that names the first option that is left.
    pub fn finish(self) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name = ImageName::from(*name);
                Err(Error::invalid(format!(
                    "{} has no option {}",
                    self.format,
                    name.quoted()
                )))
            }
        }
    }
}

/// Splits `a=1,b=2` into its options; a comma within a value is doubled, as in qemu-img. An option
/// without a value is `on`.
///
/// # Errors
/// [`Error::InvalidInput`] for an option without a name.
pub fn parse_options(text: &str) -> Result<Vec<(String, String)>> {
    let mut options = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut item = String::new();
        loop {
            let (head, tail) = rest.split_once(',').unwrap_or((rest, ""));
            item.push_str(head);
            rest = tail;
            let Some(tail) = rest.strip_prefix(',') else {
                break;
            };
            item.push(',');
            rest = tail;
        }
        let (name, value) = item.split_once('=').unwrap_or((&item, "on"));
        if name.is_empty() {
            return Err(Error::invalid(format!(
                "an option without a name in {text:?}"
            )));
        }
        options.push((name.to_owned(), value.to_owned()));
    }
    Ok(options)
}

/// Parses a size: digits, an optional fraction, and an optional suffix b, k, M, G, T, P or E for
/// powers of 1,024, in either case. `None` if it is not a size or does not fit into 63 bits.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)? {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    if digits.is_empty() || !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) || fraction.len() > 15 {
        return None;
    }
    let whole: u64 = match whole.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => whole.parse().ok()?,
    };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<u128>().ok()?
    };
    if part != 0 && shift == 0 {
        return None;
    }
    let bytes = (u128::from(whole) << shift) + ((part << shift) / scale);
    u64::try_from(bytes)
        .ok()
        .filter(|b| i64::try_from(*b).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64k", Some(65_536)),
            ("1.5G", Some(3 << 29)),
            ("2M", Some(2 << 20)),
            ("8E", None),
            ("7E", Some(7 << 60)),
            ("", None),
            ("k", None),
            ("-1", None),
            ("1.5", None),
            ("1x", None),
            ("1kk", None),
            ("0x10", Some(16)),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn options_with_commas_and_switches() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            parse_options("a=1,b").unwrap(),
            [pair("a", "1"), pair("b", "on")]
        );
        assert_eq!(
            parse_options("f=x,,y,b=2").unwrap(),
            [pair("f", "x,y"), pair("b", "2")]
        );
        let error = parse_options("=1").unwrap_err();
        assert_eq!(error.to_string(), "an option without a name in \"=1\"");
    }

    #[test]
    fn an_option_that_nobody_takes_is_refused() {
        let mut create = CreateOptions::new(0);
        create.options = parse_options("size=4k,speed=9").unwrap();
        let mut set = create.option_set("raw");
        assert_eq!(set.size("size").unwrap(), Some(4096));
        assert_eq!(
            set.finish().unwrap_err().to_string(),
            "raw has no option \"speed\""
        );
    }
}
