//! Arguments that several verbs take as `qemu-img` has them.

use blockform::ImageName;
use blockform::image::{SnapshotSelector, parse_options, parse_size};
use clap::{Args, ValueEnum};

use crate::command::told;

/// Cache mode of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheMode {
    None,
    Writeback,
    Unsafe,
    Writethrough,
    Directsync,
}

/// Options of a format, and the name and the format of a backing file.
type Options = (Vec<(String, String)>, Option<(ImageName, String)>);

/// Format of the image to write.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Format to write
    #[arg(
        id = "target_format",
        short = 'O',
        long = "target-format",
        value_name = "FMT",
        default_value = "raw"
    )]
    pub(crate) format: String,
    /// Options of the format to write, NAME=VALUE[,NAME=VALUE]…
    #[arg(id = "target_options", short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
}

impl Target {
    pub(crate) fn has_options(&self) -> bool {
        !self.options.is_empty()
    }

    /// The options of the format, apart from those that name a backing file.
    pub(crate) fn options(&self) -> Result<Options, String> {
        let mut options = Vec::new();
        let (mut name, mut format) = (None, None);
        for text in &self.options {
            for (option, value) in parse_options(text).map_err(|e| told(&e))? {
                match option.as_str() {
                    "backing_file" => name = Some(ImageName::from(value.as_str())),
                    "backing_fmt" => format = Some(value),
                    _ => options.push((option, value)),
                }
            }
        }
        match (name, format) {
            (Some(name), Some(format)) => Ok((options, Some((name, format)))),
            (None, None) => Ok((options, None)),
            _ => Err("options backing_file and backing_fmt go together".to_owned()),
        }
    }
}

/// Parses the shortest run of zeros that becomes a hole.
pub(crate) fn sparse_size(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Some(bytes) if bytes % 512 == 0 => Ok(bytes),
        Some(_) => Err("it has to be a multiple of 512".to_owned()),
        None => Err("it has to be a size such as 4k".to_owned()),
    }
}

/// Parses the name of an internal snapshot.
pub(crate) fn snapshot(text: &str) -> Result<SnapshotSelector, String> {
    let value = |value: &str| match value {
        "" => Err("it names no snapshot".to_owned()),
        value if value.contains(",snapshot.") => Err("give an id or a name, not both".to_owned()),
        value => Ok(value.to_owned()),
    };
    if let Some(id) = text.strip_prefix("snapshot.id=") {
        value(id).map(SnapshotSelector::Id)
    } else if let Some(name) = text.strip_prefix("snapshot.name=") {
        value(name).map(SnapshotSelector::Name)
    } else {
        value(text).map(SnapshotSelector::Any)
    }
}
