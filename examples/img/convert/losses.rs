//! Report of the losses of a salvaged disk.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use blockform::salvage::Salvage;
use blockform::storage::{FileStorage, PendingFile};
use blockform::{BlockSource, BlockSourceExt, BlockTarget, Error, ImageName, Result};

use crate::command::{complain, quoted, told};

/// Exit status of a conversion that lost data.
const LOST: u8 = 3;
/// Number of losses that are printed.
const MOST_TOLD: usize = 20;

/// Fails if the map would overwrite an image of the conversion.
pub(crate) fn check_map(
    map: Option<&Path>,
    source: &dyn BlockSource,
    destination: &Path,
) -> Result<(), String> {
    let Some(map) = map else {
        return Ok(());
    };
    let there = FileStorage::open(map).ok().and_then(|file| file.identity());
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a.components().eq(b.components()),
    };
    if same(map, destination) || there.is_some_and(|file| source.uses_file(file)) {
        return Err(format!(
            "{} is an image of the conversion: it cannot be the map, too",
            quoted(map)
        ));
    }
    Ok(())
}

/// Prints the losses, and returns the exit status.
pub(crate) fn tell(
    salvage: &Salvage,
    source: &Path,
    map: Option<&Path>,
) -> Result<ExitCode, String> {
    if let Some(map) = map {
        write_map(salvage, source, map).map_err(|e| {
            format!(
                "the image is written, and the map {} is not: {}",
                quoted(map),
                told(&e)
            )
        })?;
    }
    let losses = salvage.losses();
    if losses.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for loss in losses.list.iter().take(MOST_TOLD) {
        let text = format!(
            "lost: {} bytes at {}: {}",
            loss.length, loss.start, loss.error
        );
        complain(&text);
    }
    let told = losses.list.iter().take(MOST_TOLD).map(|loss| loss.length);
    let more = losses.bytes.saturating_sub(told.sum());
    if more > 0 {
        complain(&format!("lost: {more} bytes after these"));
    }
    let text = format!(
        "{} of {} bytes are lost, in {} ranges, and are zeros in the result",
        losses.bytes,
        salvage.size(),
        losses.ranges
    );
    complain(&text);
    Ok(ExitCode::from(LOST))
}

/// Writes the map as `qemu-img map --output json` would, with the reasons.
fn write_map(salvage: &Salvage, source: &Path, map: &Path) -> Result<()> {
    let pending = PendingFile::create(map)?;
    let file = pending.storage();
    let (mut text, mut offset) = (Vec::new(), 0);
    let mut separator = "[";
    for entry in salvage.entries(ImageName::from(source)) {
        let line = entry?.to_json();
        let cannot = |error| Error::io("put the map together", error);
        write!(text, "{separator}{line}").map_err(cannot)?;
        separator = ",\n";
        if text.len() > 64 << 10 {
            file.write_all_at(&text, offset)?;
            offset += text.len() as u64;
            text.clear();
        }
    }
    text.extend_from_slice(b"]\n");
    file.write_all_at(&text, offset)?;
    pending.commit(false)
}
