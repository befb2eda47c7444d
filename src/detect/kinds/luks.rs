//! LUKS 1, in the words of QEMU, which treats it as a format of its own.
//!
//! To detection it is content: an encrypted disk. Its description has QEMU's fields and the size of the disk
//! inside. Reading is refused unless the caller names the format raw.

use crate::detect::Detected;
use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::ondisk::luks;

use super::Kind;
use super::look::Look;

/// `luks`, of either version.
pub(crate) const LUKS: FormatId = FormatId::new("luks");

static KIND: Kind = Kind::image("luks", "LUKS volume", describe);

/// LUKS, if the disk holds that alone and in the version that QEMU knows, and its header makes sense.
pub(super) fn kind_of(detected: &Detected, window: &Probe<'_>) -> Option<&'static Kind> {
    let alone = matches!(detected.content.as_slice(), [(id, _)] if *id == LUKS);
    let header = window.at(0, luks::HEADER_LEN)?;
    let size = luks::payload(header).ok()?;
    (alone && size <= window.size).then_some(&KIND)
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let head = look.window.head;
    let payload = luks::payload(head)?;
    let mut info = ImageInfo {
        virtual_size: look.window.size.saturating_sub(payload),
        encryption: Some("luks"),
        ..ImageInfo::default()
    };
    let mut specific = Value::map();
    if let Value::Map(entries) = luks::describe(head, 0)? {
        // The name of the format stands above.
        for (name, value) in entries.into_iter().filter(|(name, _)| *name != "format") {
            specific.insert(name, value);
        }
    }
    info.specific = Some(specific);
    info.warnings.push(
        "it is read only as a raw disk, which is its encrypted bytes with the header".to_owned(),
    );
    Ok(info)
}
