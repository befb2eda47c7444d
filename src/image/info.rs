//! Description of an image.

use uuid::Uuid;

use crate::image::Value;
use crate::name::ImageName;
use crate::source::BlockSourceExt;

/// Description of an image of any format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Size of the disk that a guest sees, in bytes.
    pub virtual_size: u64,
    /// True if the size is not known, for a file that is described and not read; it is 0 then.
    pub size_is_unknown: bool,
    /// The unit of allocation in bytes (cluster, grain, block), where the format has one.
    pub cluster_size: Option<u64>,
    /// True if QEMU reports neither the unit nor the dirty flag for this format: a description in
    /// its words then has both under a key of our own.
    pub unknown_to_qemu: bool,
    /// True if the image was not closed properly: its tables may be behind its data.
    pub dirty: bool,
    /// True if the image is marked as corrupt.
    pub corrupt: bool,
    /// The name of the encryption scheme, if the guest's data is encrypted.
    pub encryption: Option<&'static str>,
    /// True if all of the data is compressed (as in a streamOptimized VMDK).
    pub compressed: bool,
    /// The internal snapshots, in the order of their table.
    pub snapshots: Vec<SnapshotInfo>,
    /// The persistent dirty bitmaps.
    pub bitmaps: Vec<BitmapInfo>,
    /// True if an image of this format and version can hold persistent dirty bitmaps.
    pub has_room_for_bitmaps: bool,
    /// Ids that an overlay repeats, so that it is known to belong to this image.
    pub ids: ImageIds,
    /// The other files that the image consists of, as far as they are open.
    pub files: Vec<FileInfo>,
    /// Facts of this format alone, under QEMU's names (`ImageInfoSpecific`): a map, empty if there
    /// are none.
    pub specific: Option<Value>,
    /// Facts of this format alone that QEMU has no names for: a map.
    pub details: Option<Value>,
    /// Properties that the format suggests to an image service, in OpenStack's words.
    pub properties: Vec<(&'static str, String)>,
    /// Oddities of the image that do not make it unreadable, as text for a person.
    pub warnings: Vec<String>,
}

/// Ids that an overlay repeats of its backing file, so that it is not put over another one.
///
/// Each format has some of them: VHD the UUID and the time, VHDX the data write GUID, VDI two
/// UUIDs, VMDK the content id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageIds {
    /// The identity of the image's present content.
    pub uuid: Option<Uuid>,
    /// The identity of the last change, where the format keeps it apart (VDI).
    pub modification_uuid: Option<Uuid>,
    /// The content id (VMDK).
    pub content_id: Option<u32>,
    /// Time of the last change, in the format's own unit and epoch (VHD).
    pub timestamp: Option<u32>,
    /// Size of the sectors that a guest sees, in bytes, where an overlay has to have the same.
    pub logical_sector_size: Option<u32>,
}

/// A file that is a part of the image, beside its own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileInfo {
    /// QEMU's name of its node, such as `extents.0`.
    pub node: String,
    /// Its name as it stands in the image.
    pub name: ImageName,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that it takes up on its file system, where that is known.
    pub allocated_size: Option<u64>,
}

impl FileInfo {
    /// The file behind a node, by the name that the image has for it.
    pub fn new(
        node: impl Into<String>,
        name: ImageName,
        file: &dyn crate::source::BlockSource,
    ) -> Self {
        FileInfo {
            node: node.into(),
            name,
            size: file.size(),
            allocated_size: file.allocated_size(),
        }
    }
}

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Its id, unique in the image.
    pub id: ImageName,
    /// Its name.
    pub name: ImageName,
    /// Size of the disk when the snapshot was taken, in bytes.
    pub virtual_size: u64,
    /// Size of the saved state of the virtual machine, in bytes; 0 if it was not saved.
    pub vm_state_size: u64,
    /// Time when it was taken, in seconds since 1970.
    pub date_seconds: u64,
    /// Nanoseconds of that second.
    pub date_nanoseconds: u32,
    /// Run time of the virtual machine, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// Count of instructions that the virtual machine had executed, where that was recorded.
    pub instruction_count: Option<u64>,
}

impl SnapshotInfo {
    /// A snapshot of this id and name, with nothing else known.
    pub fn new(id: ImageName, name: ImageName) -> Self {
        SnapshotInfo {
            id,
            name,
            virtual_size: 0,
            vm_state_size: 0,
            date_seconds: 0,
            date_nanoseconds: 0,
            vm_clock_nanoseconds: 0,
            instruction_count: None,
        }
    }
}

/// A persistent bitmap of written ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BitmapInfo {
    /// Its name.
    pub name: ImageName,
    /// Bytes of the disk that one bit stands for.
    pub granularity: u64,
    /// True if it was not saved properly, so that its bits cannot be trusted.
    pub in_use: bool,
    /// True if it is to be kept up to date whenever the image is written.
    pub auto: bool,
}

impl BitmapInfo {
    /// A bitmap of this name and granularity in bytes, with no flag set.
    pub fn new(name: ImageName, granularity: u64) -> Self {
        BitmapInfo {
            name,
            granularity,
            in_use: false,
            auto: false,
        }
    }
}
