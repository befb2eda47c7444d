//! Safety checks of the headers, also for an image that cannot be opened.

use crate::error::{Error, Result};
use crate::image::SafetyCheck;
use crate::limits::Limits;
use crate::source::BlockSource;

use super::header;
use super::metadata::{FileFlags, read_metadata};
use super::region::read_regions;

/// The checks of a VHDX. What a log has yet to write is not seen here: opening sees it.
pub(super) fn checks(source: &dyn BlockSource, _: &Limits) -> Result<Vec<SafetyCheck>> {
    header::check_identifier(source)?;
    let current = match header::read_current(source) {
        Ok(current) => current,
        Err(Error::Unsupported { feature, .. }) => {
            let reason = format!("{feature} is not known");
            return Ok(vec![SafetyCheck::failed("version", reason)]);
        }
        Err(error) => return Err(error),
    };
    let mut checks = vec![SafetyCheck::passed("version")];
    let regions = read_regions(source, &current.header, current.offset);
    match regions.and_then(|regions| read_metadata(source, regions.metadata)) {
        Ok(metadata) => {
            checks.push(SafetyCheck::passed("unknown_features"));
            let child = metadata.flags.contains(FileFlags::HAS_PARENT);
            let reason = child.then(|| "the disk records changes to a parent".to_owned());
            checks.push(SafetyCheck::unless("backing_file", reason));
        }
        Err(Error::Unsupported { feature, .. }) => {
            let reason = format!("{feature} is not known");
            checks.push(SafetyCheck::failed("unknown_features", reason));
        }
        Err(error @ Error::Io { .. }) => return Err(error),
        // Opening says what is wrong, after what the log has to write.
        Err(_) => {}
    }
    Ok(checks)
}
