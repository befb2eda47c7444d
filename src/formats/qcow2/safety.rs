//! Safety checks of the header, also for an image that cannot be opened.

use crate::error::Result;
use crate::image::SafetyCheck;
use crate::name::ImageName;
use crate::source::BlockSource;

use super::Incompatible;
use super::feature::describe_unknown;
use super::header::{HeaderV2, HeaderV3};

/// The checks of a qcow2 image, from its fixed fields alone.
pub(super) fn checks(source: &dyn BlockSource) -> Result<Vec<SafetyCheck>> {
    let mut bytes = [0; HeaderV2::LEN + HeaderV3::LEN];
    let n = source.read_at(&mut bytes, 0)?;
    let bytes = bytes.get(..n).unwrap_or_default();
    let header = HeaderV2::parse(bytes, 0)?;
    let version = match header.version {
        2 | 3 => None,
        other => Some(format!("the version is {other}")),
    };
    let tail = bytes.get(HeaderV2::LEN..).unwrap_or_default();
    let features = match header.version {
        3 => HeaderV3::parse(tail, HeaderV2::LEN as u64)?.incompatible_features,
        _ => 0,
    };
    let unknown = features & !Incompatible::all().bits();
    let unknown = (unknown != 0).then(|| describe_unknown(unknown, &[]));
    let has_data_file = features & Incompatible::DATA_FILE.bits() != 0;
    let data_file = has_data_file.then(|| "the data is in another file".to_owned());
    Ok(vec![
        SafetyCheck::unless("version", version),
        SafetyCheck::unless("unknown_features", unknown),
        SafetyCheck::unless("backing_file", backing_file(&header, source)?),
        SafetyCheck::unless("data_file", data_file),
    ])
}

/// Names the backing file, wherever its name stands: opening may refuse the image before it gets there.
fn backing_file(header: &HeaderV2, source: &dyn BlockSource) -> Result<Option<String>> {
    let (offset, len) = (header.backing_file_offset, header.backing_file_size);
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    let mut name = vec![0; usize::try_from(len.min(super::header::MAX_BACKING_NAME)).unwrap_or(0)];
    let n = source.read_at(&mut name, offset)?;
    name.truncate(n);
    let name = ImageName::from(name.as_slice());
    Ok(Some(format!("refers to backing file {}", name.quoted())))
}
