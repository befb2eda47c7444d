//! `DiskDescriptor.xml`: which files a disk consists of, and which of them lies over which (QEMU,
//! `docs/interop/prl-xml.rst`).

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::ondisk::xml::{self, Element};
use crate::source::{BlockSource, BlockSourceExt};

use super::PARALLELS;
use super::header::{MAGIC, MAGIC_EXT, SECTOR};

/// Bytes from the start of the file in which the name of the root element has to be.
const ROOT_WITHIN: usize = 4096;
const ROOT: &str = "Parallels_disk_image";
/// The byte order mark of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The image on top, unless the descriptor says otherwise.
const TOP: Uuid = Uuid::from_u128(0x5fba_abe3_6958_40ff_92a7_860e_329a_ab41);

/// The parts of a disk.
#[derive(Debug)]
pub(super) struct Descriptor {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    /// The parts of the disk in order, without gaps.
    pub(super) storages: Vec<Storage>,
    /// The images that lie over each other in every part, with their parents.
    pub(super) shots: Vec<Shot>,
    top: Uuid,
}

/// A part of a disk.
#[derive(Debug)]
pub(super) struct Storage {
    /// Size in bytes.
    pub(super) size: u64,
    /// Cluster size in bytes; 0 if it is not given.
    pub(super) block_size: u64,
    pub(super) images: Vec<ImageEntry>,
}

/// An image of a part.
#[derive(Debug)]
pub(super) struct ImageEntry {
    guid: Uuid,
    pub(super) kind: ImageKind,
    pub(super) file: ImageName,
}

/// The content of the file of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageKind {
    /// The bytes of the disk.
    Plain,
    /// An expandable image.
    Compressed,
}

/// A state of the disk, and the one that it is recorded over.
#[derive(Debug)]
pub(super) struct Shot {
    pub(super) guid: Uuid,
    parent: Uuid,
}

/// Returns `true` if these bytes begin as a descriptor does.
pub(super) fn recognize(head: &[u8]) -> bool {
    let head = head.get(..ROOT_WITHIN).unwrap_or(head);
    let head = head.strip_prefix(BOM).unwrap_or(head).trim_ascii_start();
    let mut places = head.windows(ROOT.len() + 1);
    head.starts_with(b"<")
        && places.any(|place| place.split_first() == Some((&b'<', ROOT.as_bytes())))
}

/// Returns `true` if a file begins as a descriptor does.
pub(super) fn is_at_start(file: &dyn BlockSource) -> Result<bool> {
    // The table of an image begins right behind its header, and may be what cannot be read.
    let mut magic = [0; MAGIC.len()];
    file.read_at(&mut magic, 0)?;
    if magic == MAGIC || magic == MAGIC_EXT {
        return Ok(false);
    }
    let mut head = [0; ROOT_WITHIN];
    let n = file.read_at(&mut head, 0)?;
    Ok(recognize(head.get(..n).unwrap_or_default()))
}

fn malformed(problem: impl Into<String>) -> Error {
    Error::malformed(PARALLELS, "DiskDescriptor.xml", None, problem.into())
}

fn unsupported(feature: String) -> Error {
    Error::unsupported(PARALLELS, feature, None)
}

impl Descriptor {
    /// Reads and checks the descriptor that a file is.
    pub(super) fn read(file: &dyn BlockSource, limits: &Limits) -> Result<Self> {
        let len = file.size();
        limits.check_descriptor("DiskDescriptor.xml", len)?;
        let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_exact_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text).map_err(|_| malformed("is not in UTF-8"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Descriptor::from_root(&xml::parse(text).map_err(malformed)?)
    }

    fn from_root(root: &Element) -> Result<Self> {
        if root.name != ROOT {
            let name = ImageName::from(root.name.as_str());
            return Err(malformed(format!(
                "has the root element {}, and not {ROOT}",
                name.quoted()
            )));
        }
        match root.attribute("Version") {
            Some("1.0") => {}
            version => {
                let version = ImageName::from(version.unwrap_or_default());
                return Err(unsupported(format!("version {}", version.quoted())));
            }
        }
        let parameters = child(root, "Disk_Parameters")?;
        check_parameters(parameters)?;
        let size = in_bytes(number(parameters, "Disk_size")?)?;
        let storages = storages(child(root, "StorageData")?, size)?;
        let snapshots = children(root, "Snapshots").next();
        let shots = snapshots.map_or(Ok(Vec::new()), shots)?;
        let top = snapshots.and_then(|node| children(node, "TopGUID").next());
        let top = top.map_or(Ok(TOP), guid)?;
        Ok(Descriptor {
            size,
            storages,
            shots,
            top,
        })
    }

    /// The state that is read unless another one is asked for.
    pub(super) fn top(&self) -> Uuid {
        self.top
    }

    /// The images from `top` down to the one that has no parent.
    pub(super) fn chain(&self, top: Uuid, limits: &Limits) -> Result<Vec<Uuid>> {
        let mut chain = vec![top];
        // Without any snapshots there is nothing to tell.
        if self.shots.is_empty() {
            return Ok(chain);
        }
        let mut at = top;
        loop {
            let mut named = self.shots.iter().filter(|shot| shot.guid == at);
            let (Some(shot), None) = (named.next(), named.next()) else {
                return Err(malformed(format!(
                    "needs exactly one snapshot with the GUID {at}"
                )));
            };
            at = shot.parent;
            if at.is_nil() {
                return Ok(chain);
            }
            if chain.contains(&at) {
                return Err(malformed(format!(
                    "has the snapshot {at} among its own parents"
                )));
            }
            chain.push(at);
            limits.check_chain_depth(chain.len() as u64)?;
        }
    }
}

impl Storage {
    /// The image of a state.
    pub(super) fn image(&self, guid: Uuid) -> Result<&ImageEntry> {
        let mut named = self.images.iter().filter(|image| image.guid == guid);
        match (named.next(), named.next()) {
            (Some(image), None) => Ok(image),
            _ => Err(malformed(format!(
                "needs exactly one image with the GUID {guid} in each storage"
            ))),
        }
    }
}

/// Refuses what would make the bytes others than the images have.
fn check_parameters(parameters: &Element) -> Result<()> {
    let padding = optional_number(parameters, "Padding")?.unwrap_or(0);
    if padding != 0 {
        return Err(unsupported(format!("padding ({padding})")));
    }
    let sector = optional_number(parameters, "LogicSectorSize")?.unwrap_or(SECTOR);
    if sector != SECTOR {
        return Err(unsupported(format!("sectors of {sector} bytes")));
    }
    let encryption = children(parameters, "Encryption").next();
    let engine = encryption.and_then(|node| children(node, "Engine").next());
    let engine = engine.map(Element::text).unwrap_or_default();
    if !engine.is_empty() && Uuid::try_parse(engine) != Ok(Uuid::nil()) {
        let engine = ImageName::from(engine);
        return Err(unsupported(format!("encryption ({})", engine.quoted())));
    }
    Ok(())
}

fn storages(node: &Element, size: u64) -> Result<Vec<Storage>> {
    let mut storages = Vec::new();
    for storage in children(node, "Storage") {
        let start = in_bytes(number(storage, "Start")?)?;
        let end = in_bytes(number(storage, "End")?)?;
        let block_size = optional_number(storage, "Blocksize")?.unwrap_or(0);
        let mut images = Vec::new();
        for image in children(storage, "Image") {
            images.push(ImageEntry {
                guid: guid(child(image, "GUID")?)?,
                kind: kind(child(image, "Type")?)?,
                file: ImageName::from(child(image, "File")?.text()),
            });
        }
        storages.push((
            start,
            end,
            Storage {
                size: end.saturating_sub(start),
                block_size: in_bytes(block_size)?,
                images,
            },
        ));
    }
    storages.sort_by_key(|(start, ..)| *start);
    let mut covered = 0;
    for (start, end, _) in &storages {
        if *start != covered || end <= start {
            return Err(malformed(format!(
                "has a storage from byte {start} to {end}, where one from byte {covered} on is \
                 expected"
            )));
        }
        covered = *end;
    }
    if covered != size {
        return Err(malformed(format!(
            "has storages for {covered} bytes of a disk of {size}"
        )));
    }
    Ok(storages.into_iter().map(|(.., storage)| storage).collect())
}

fn shots(node: &Element) -> Result<Vec<Shot>> {
    let shots = children(node, "Shot").map(|shot| {
        Ok(Shot {
            guid: guid(child(shot, "GUID")?)?,
            parent: guid(child(shot, "ParentGUID")?)?,
        })
    });
    shots.collect()
}

fn kind(node: &Element) -> Result<ImageKind> {
    match node.text() {
        "Plain" => Ok(ImageKind::Plain),
        "Compressed" => Ok(ImageKind::Compressed),
        other => {
            let other = ImageName::from(other);
            Err(unsupported(format!("an image of type {}", other.quoted())))
        }
    }
}

fn guid(node: &Element) -> Result<Uuid> {
    Uuid::try_parse(node.text().trim()).map_err(|_| {
        let found = ImageName::from(node.text());
        malformed(format!("has {} for a GUID", found.quoted()))
    })
}

fn in_bytes(sectors: u64) -> Result<u64> {
    sectors
        .checked_mul(SECTOR)
        .ok_or_else(|| malformed(format!("has a place at sector {sectors}, past any disk")))
}

fn children<'a>(node: &'a Element, name: &'static str) -> impl Iterator<Item = &'a Element> {
    node.children.iter().filter(move |child| child.name == name)
}

/// The only element of this name in `node`.
fn child<'a>(node: &'a Element, name: &'static str) -> Result<&'a Element> {
    let mut named = children(node, name);
    match (named.next(), named.next()) {
        (Some(child), None) => Ok(child),
        _ => Err(malformed(format!(
            "needs exactly one element {name} in {}",
            ImageName::from(node.name.as_str()).quoted()
        ))),
    }
}

fn number(node: &Element, name: &'static str) -> Result<u64> {
    to_number(child(node, name)?, name)
}

fn optional_number(node: &Element, name: &'static str) -> Result<Option<u64>> {
    let child = children(node, name).next();
    child.map(|child| to_number(child, name)).transpose()
}

fn to_number(node: &Element, name: &'static str) -> Result<u64> {
    let digits = node.text();
    let only_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let value = digits.parse().ok().filter(|_| only_digits);
    value.ok_or_else(|| {
        let found = ImageName::from(digits);
        malformed(format!(
            "has {} for {name}, which is a number",
            found.quoted()
        ))
    })
}
