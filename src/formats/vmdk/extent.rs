//! The extents of a disk, each as a source of its own.

use std::sync::Arc;

use crate::error::Result;
use crate::extent::{Extent, ExtentKind};
use crate::image::{FileInfo, Image, Request, Value};
use crate::map::{Below, BlockMap, Mapped, Reason, Unreadable};
use crate::name::ImageName;
use crate::reference::Reference;
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, check_extent, readable};
use crate::storage::{Concat, Memory, Slice};

use super::header::{COWD_MAGIC, SE_SPARSE_MAGIC, SECTOR, SPARSE_MAGIC, SparseExtentHeader};
use super::line::malformed;
use super::line::{ExtentData, ExtentLine};
use super::map::{GrainMap, Tables};
use super::sparse::{self, InForce};
use super::walk::Walk;
use super::{VMDK, sesparse};

/// The description of an extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentInfo {
    pub(super) name: Option<ImageName>,
    /// As the descriptor has it; empty for an extent in the image's own file.
    pub(super) kind: String,
    pub(super) size: u64,
    pub(super) grain: Option<u64>,
    pub(super) compressed: bool,
    /// Set if the file was opened, so that all of this is known.
    pub(super) known: bool,
}

impl ExtentInfo {
    /// Under the names of QEMU's `VmdkExtentInfo`.
    pub(super) fn value(&self) -> Value {
        let mut map = Value::map();
        map.insert("virtual-size", self.size);
        map.insert("filename", Value::File(self.name.clone()));
        map.insert("format", self.kind.clone());
        if let Some(grain) = self.grain {
            map.insert("cluster-size", grain);
        }
        if self.compressed {
            map.insert("compressed", true);
        }
        map
    }
}

/// An extent of the disk.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) source: Arc<dyn BlockSource>,
    pub(super) info: ExtentInfo,
    pub(super) warnings: Vec<String>,
    /// Places of its tables in its file.
    pub(super) tables: Vec<(u64, u64)>,
    /// The file that it lies in, if it is another than the image's own and open.
    pub(super) file: Option<FileInfo>,
}

/// A disk while it is opened.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    pub(super) request: &'a Request<'a>,
    /// The content of ranges that a sparse extent does not record.
    pub(super) below: Below,
    pub(super) backing: Option<Arc<dyn Image>>,
    pub(super) references: Vec<Reference>,
    pub(super) warnings: Vec<String>,
    /// Guest offset of the next extent.
    pub(super) start: u64,
    /// Ranges of files that extents have.
    pub(super) taken: Vec<(FileIdentity, u64, u64)>,
}

impl Opening<'_> {
    /// Opens the extent that a line of the descriptor describes.
    pub(super) fn open(&mut self, line: &ExtentLine) -> Result<Part> {
        let size = line.sectors * SECTOR;
        let part = self.open_kind(line, size)?;
        self.start = self
            .start
            .checked_add(size)
            .ok_or_else(|| malformed("describes a disk of 2^64 bytes or more"))?;
        Ok(part)
    }

    fn open_kind(&mut self, line: &ExtentLine, size: u64) -> Result<Part> {
        let mut info = ExtentInfo {
            name: line.name.clone(),
            kind: line.kind.clone(),
            size,
            grain: None,
            compressed: false,
            known: true,
        };
        let (reference, flat) = match line.data()? {
            ExtentData::Zeros => return Ok(info.part(Arc::new(Zeros { size }))),
            ExtentData::NoAccess => {
                let feature = "reading an extent that is marked NOACCESS";
                let reason = Reason::Unsupported(VMDK, feature);
                return Ok(info.part(Arc::new(Unreadable { size, reason })));
            }
            ExtentData::File { reference, flat } => (reference, flat),
        };
        if !self.references.contains(&reference) {
            self.references.push(reference.clone());
        }
        let Some(file) = self.request.opener.open_bytes(&reference)? else {
            info.known = flat;
            let reason = Reason::Detached(reference);
            return Ok(info.part(Arc::new(Unreadable { size, reason })));
        };
        let file_info = FileInfo::new(String::new(), reference.name, &file);
        let part = if flat {
            self.open_flat(line, info, file)?
        } else {
            if line.offset != 0 {
                return Err(malformed("gives a sparse extent an offset in its file"));
            }
            self.take(&file, 0, u64::MAX)?;
            self.open_sparse(info, file)?
        };
        Ok(Part {
            file: Some(file_info),
            ..part
        })
    }

    fn open_flat(
        &mut self,
        line: &ExtentLine,
        info: ExtentInfo,
        file: Arc<dyn BlockSource>,
    ) -> Result<Part> {
        let size = info.size;
        let start = line.offset.checked_mul(SECTOR);
        let end = start.and_then(|start| start.checked_add(size));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(malformed("gives a flat extent an offset that no file has"));
        };
        self.take(&file, start, end)?;
        if end > file.size() {
            let name = line.name.clone().unwrap_or_default();
            let problem = format!(
                "needs {end} bytes of the flat extent {}, which has {}",
                name.quoted(),
                file.size()
            );
            if !self.request.salvages {
                return Err(malformed(problem));
            }
            let there = file.size().saturating_sub(start);
            let there: Arc<dyn BlockSource> = match there {
                0 => Arc::new(Memory::default()),
                there => Arc::new(Slice::new(file, start, there)?),
            };
            let missing = Unreadable {
                size: size - there.size(),
                reason: Reason::Missing(VMDK, "extent", problem),
            };
            return Ok(info.part(Arc::new(Concat::new([there, Arc::new(missing)])?)));
        }
        let slice = Slice::new(file, start, size)?;
        Ok(info.part(Arc::new(slice)))
    }

    fn open_sparse(&mut self, info: ExtentInfo, file: Arc<dyn BlockSource>) -> Result<Part> {
        let mut magic = [0; 8];
        let n = file.read_at(&mut magic, 0)?;
        if n >= 4 && magic.starts_with(&SPARSE_MAGIC) {
            let header = sparse::read_header(&file)?;
            let found = InForce::of(Arc::clone(&file), &header, self.request)?;
            check_capacity(&info, found.capacity(), header.grain_size * SECTOR)?;
            self.hosted(info, file, found)
        } else if n >= 4 && magic.starts_with(&COWD_MAGIC) {
            let header = sparse::read_cowd_header(&file)?;
            let capacity = u64::from(header.num_sectors) * SECTOR;
            check_capacity(&info, capacity, u64::from(header.grain_size) * SECTOR)?;
            let map = sparse::open_cowd(Arc::clone(&file), &header, Some(info.size), self.request)?;
            self.mapped(info, file, map, Vec::new())
        } else if n == 8 && magic == SE_SPARSE_MAGIC {
            check_capacity(&info, sesparse::capacity(&file)?, 8 * SECTOR)?;
            let map = sesparse::open(Arc::clone(&file), Some(info.size), self.request)?;
            self.mapped(info, file, map, Vec::new())
        } else {
            let name = info.name.unwrap_or_default();
            Err(malformed(format!(
                "calls {} a sparse extent, and the file is not one",
                name.quoted()
            )))
        }
    }

    /// A hosted sparse extent whose header was read and compared with the descriptor.
    pub(super) fn hosted(
        &mut self,
        info: ExtentInfo,
        file: Arc<dyn BlockSource>,
        found: InForce,
    ) -> Result<Part> {
        let extent = sparse::open_hosted(found, info.size, self.request)?;
        self.mapped(info, file, extent.map, extent.warnings)
    }

    /// The same while it arrives, and how its grains are found.
    pub(super) fn walked(
        &mut self,
        mut info: ExtentInfo,
        file: Arc<dyn BlockSource>,
        header: &SparseExtentHeader,
    ) -> Result<(Part, Walk)> {
        let size = info.size;
        let walk = Walk::new(Arc::clone(&file), header, size, self.request.limits)?;
        info.grain = Some(walk.unit());
        info.compressed = true;
        let below = window(&self.below, self.start)?;
        let mapped = Mapped::new(walk.clone(), file, below, size);
        Ok((info.part(Arc::new(mapped)), walk))
    }

    pub(super) fn mapped<T: Tables + 'static>(
        &mut self,
        mut info: ExtentInfo,
        file: Arc<dyn BlockSource>,
        map: GrainMap<T>,
        warnings: Vec<String>,
    ) -> Result<Part> {
        info.grain = Some(map.unit());
        info.compressed = map.packing.is_some();
        let size = info.size;
        let below = window(&self.below, self.start)?;
        let tables = map.tables();
        let mapped = Mapped::new(map, file, below, size);
        Ok(Part {
            warnings,
            tables,
            ..info.part(Arc::new(mapped))
        })
    }

    /// Notes that an extent has these bytes of a file to itself.
    fn take(&mut self, file: &dyn BlockSource, start: u64, end: u64) -> Result<()> {
        let Some(identity) = file.identity() else {
            return Ok(());
        };
        let shared = |(id, from, to): &(FileIdentity, u64, u64)| {
            *id == identity && *from < end && start < *to
        };
        if self.taken.iter().any(shared) {
            return Err(malformed("has two extents in the same bytes of a file"));
        }
        self.taken.push((identity, start, end));
        Ok(())
    }
}

impl ExtentInfo {
    fn part(self, source: Arc<dyn BlockSource>) -> Part {
        Part {
            source,
            info: self,
            warnings: Vec::new(),
            tables: Vec::new(),
            file: None,
        }
    }
}

/// The backing image from `start` on.
fn window(below: &Below, start: u64) -> Result<Below> {
    match below {
        Below::Image(image) if start > 0 => {
            let start = start.min(image.size());
            let len = image.size() - start;
            let slice = Slice::new(Arc::clone(image), start, len)?;
            Ok(Below::Image(Arc::new(slice)))
        }
        other => Ok(other.clone()),
    }
}

/// A writer may round the capacity in an extent's header up to whole grains; the descriptor says what
/// the guest sees.
pub(super) fn check_capacity(info: &ExtentInfo, capacity: u64, grain: u64) -> Result<()> {
    if capacity >= info.size && capacity - info.size < grain {
        return Ok(());
    }
    let name = info.name.clone().unwrap_or_default();
    Err(malformed(format!(
        "says that the extent {} has {} bytes, and the extent says {capacity}",
        name.quoted(),
        info.size
    )))
}

/// An extent of zeros.
#[derive(Debug)]
struct Zeros {
    size: u64,
}

impl BlockSource for Zeros {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = readable(buf.len(), offset, self.size);
        buf.get_mut(..n).unwrap_or_default().fill(0);
        Ok(n)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        Ok(Extent::new(
            offset,
            check_extent(offset, limit, self.size)?,
            ExtentKind::Zero,
        ))
    }
}
