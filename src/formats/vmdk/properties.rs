//! Properties of a disk for OpenStack's VMware driver.

use crate::name::ImageName;

/// The properties that follow from the descriptor's `createType` and `ddb.adapterType`. Only those
/// kinds of disks have one that the driver takes.
pub(super) fn of(create_type: &ImageName, adapter: Option<&[u8]>) -> Vec<(&'static str, String)> {
    let disk = match create_type.as_bytes() {
        b"monolithicSparse" => Some("sparse"),
        b"streamOptimized" => Some("streamOptimized"),
        b"monolithicFlat" | b"vmfs" => Some("preallocated"),
        _ => None,
    };
    let adapter = adapter.map(<[u8]>::to_ascii_lowercase);
    let adapter = match adapter.as_deref() {
        Some(b"ide") => Some("ide"),
        Some(b"lsilogic") => Some("lsiLogic"),
        Some(b"lsisas1068") => Some("lsiLogicsas"),
        Some(b"buslogic") => Some("busLogic"),
        Some(b"pvscsi") => Some("paraVirtual"),
        _ => None,
    };
    let pairs = [("vmware_adaptertype", adapter), ("vmware_disktype", disk)];
    let pairs = pairs.into_iter();
    pairs
        .filter_map(|(name, value)| Some((name, value?.to_owned())))
        .collect()
}
