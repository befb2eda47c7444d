//! Safety checks of the header and the descriptor, also of images that opening refuses.

use crate::error::{Error, Result};
use crate::image::SafetyCheck;
use crate::limits::Limits;
use crate::source::BlockSource;

use super::descriptor::Descriptor;
use super::header::{
    CHANGE_TRACKING_MAGIC, COWD_MAGIC, GD_AT_END, SE_SPARSE_MAGIC, SPARSE_MAGIC, SparseExtentHeader,
};
use super::{open, sparse, stream};

/// The checks of a VMDK: all of it has to be in the one file, and its text has to say so.
pub(super) fn checks(source: &dyn BlockSource, limits: &Limits) -> Result<Vec<SafetyCheck>> {
    let mut magic = [0; 4];
    source.read_at(&mut magic, 0)?;
    // A file without a descriptor in it is for opening to judge.
    let bare = [COWD_MAGIC, CHANGE_TRACKING_MAGIC].contains(&magic);
    if bare || SE_SPARSE_MAGIC.starts_with(&magic) {
        return Ok(Vec::new());
    }
    if magic != SPARSE_MAGIC {
        let reason = "the file is only the description of a disk that lies in others";
        return Ok(vec![SafetyCheck::failed("descriptor", reason)]);
    }
    let header = match sparse::read_header(source) {
        Ok(header) => header,
        Err(Error::Unsupported { feature, .. }) => {
            let reason = format!("{feature} is not known");
            return Ok(vec![SafetyCheck::failed("version", reason)]);
        }
        Err(error) => return Err(error),
    };
    let mut checks = vec![SafetyCheck::passed("version")];
    let descriptor = open::embedded_text(source, &header, limits)
        .and_then(|text| Descriptor::parse(&text, limits).map(|d| (text.is_empty(), d)));
    match descriptor {
        Ok((empty, descriptor)) => {
            let problem = match empty {
                true => Some("there is none".to_owned()),
                false => descriptor_problem(&descriptor),
            };
            checks.push(SafetyCheck::unless("descriptor", problem));
            let child = descriptor
                .parent_hint()
                .map(|name| name.quoted().to_string());
            let child = child.or(descriptor.nameless_parent());
            let reason = child.map(|parent| format!("records changes to a parent, {parent}"));
            checks.push(SafetyCheck::unless("backing_file", reason));
        }
        Err(error @ Error::Io { .. }) => return Err(error),
        Err(error) => checks.push(SafetyCheck::failed("descriptor", error.to_string())),
    }
    if header.gd_offset == GD_AT_END {
        checks.push(match stream::read_footer(source, &header) {
            Ok(footer) => SafetyCheck::unless("footer", footer_problem(&header, &footer)),
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => SafetyCheck::failed("footer", error.to_string()),
        });
    }
    Ok(checks)
}

/// The reason why other software might follow a descriptor in a sparse extent out of the file.
fn descriptor_problem(descriptor: &Descriptor) -> Option<String> {
    let create_type = descriptor
        .create_type()
        .unwrap_or_default()
        .to_ascii_lowercase();
    if !matches!(
        create_type.as_slice(),
        b"monolithicsparse" | b"streamoptimized"
    ) {
        let name = crate::ImageName::new(create_type);
        return Some(format!("the type is {}, of several files", name.quoted()));
    }
    if descriptor.extents.is_empty() {
        return Some("names no extent".into());
    }
    let mut names = descriptor.extents.iter().filter_map(|e| e.name.as_ref());
    let path = names.find(|name| name.as_bytes().iter().any(|b| matches!(b, b'/' | b'\\')))?;
    Some(format!("names its extent by a path, {}", path.quoted()))
}

/// The difference of footer and header that makes them those of two disks.
fn footer_problem(header: &SparseExtentHeader, footer: &SparseExtentHeader) -> Option<String> {
    if footer.version != header.version {
        return Some("its version is another than the header's".into());
    }
    let place = |h: &SparseExtentHeader| (h.descriptor_offset, h.descriptor_size);
    if place(footer) != place(header) {
        return Some("it has the descriptor in another place than the header".into());
    }
    (footer.capacity != header.capacity)
        .then(|| "it gives the disk another size than the header".into())
}
