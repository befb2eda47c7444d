//! ext2, ext3 and ext4: enough to read a small file by its path.
//!
//! The filesystem is not trusted, and reads are few: every walk is bounded, and only the blocks on the path
//! are read. Files that are encrypted or inline in an inode are not found. A journal that was not written back
//! is not replayed.

use crate::content::bytes::Bytes;
use crate::content::filesystem::linux::{ExtSuperblock, ext_superblock};
use crate::format_id::FormatId;
use crate::ondisk::{le, on_disk};

const EXT: FormatId = FormatId::new("ext");
/// The number of the root directory.
const ROOT: u32 = 2;
/// Blocks of a directory that are searched.
const MOST_DIRECTORY: u64 = 24;
/// Names that a path leads through, with those in symbolic links.
const MOST_NAMES: usize = 32;
/// Bytes of the target of a symbolic link.
const MOST_TARGET: usize = 1024;

on_disk! {
    /// "Block Group Descriptors", the table of inodes. The upper half is there where descriptors are
    /// longer.
    struct GroupDescriptor in EXT, "group descriptor", Little, 32 bytes {
        bg_inode_table_lo: u32 = 8,
    }
}

on_disk! {
    /// "Index Nodes".
    struct IndexNode in EXT, "inode", Little, 128 bytes {
        i_mode: u16 = 0,
        i_size_lo: u32 = 4,
        i_flags: u32 = 32,
        i_block: [u8; 60] = 40,
        i_size_high: u32 = 108,
    }
}

on_disk! {
    /// "Extent Tree", `ext4_extent_header`.
    struct ExtentHeader in EXT, "extent header", Little, 12 bytes {
        eh_magic: u16 = 0,
        eh_entries: u16 = 2,
        eh_depth: u16 = 6,
    }
}

on_disk! {
    /// `ext4_extent`: the first block in the file, how many, and where.
    struct Extent in EXT, "extent", Little, 12 bytes {
        ee_block: u32 = 0,
        ee_len: u16 = 4,
        ee_start_hi: u16 = 6,
        ee_start_lo: u32 = 8,
    }
}

on_disk! {
    /// `ext4_extent_idx`: the first block in the file, and where the node is.
    struct ExtentIndex in EXT, "extent index", Little, 12 bytes {
        ei_block: u32 = 0,
        ei_leaf_lo: u32 = 4,
        ei_leaf_hi: u16 = 8,
    }
}

on_disk! {
    /// "Linear (Classic) Directories", before the name.
    struct DirectoryEntry in EXT, "directory entry", Little, 8 bytes {
        inode: u32 = 0,
        rec_len: u16 = 4,
        name_len: u8 = 6,
    }
}

const S_IFMT: u16 = 0xf000;
const S_IFDIR: u16 = 0x4000;
const S_IFREG: u16 = 0x8000;
const S_IFLNK: u16 = 0xa000;
const EXTENTS_FL: u32 = 0x0008_0000;
const INLINE_DATA_FL: u32 = 0x1000_0000;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;

/// The start of the regular file at `path`, at most `most` bytes of it.
pub(super) fn read(disk: &dyn Bytes, path: &[u8], most: usize) -> Option<Vec<u8>> {
    let ext = Ext::open(disk)?;
    let file = ext.resolve(path)?;
    (file.i_mode & S_IFMT == S_IFREG).then(|| ext.start_of(&file, most))
}

struct Ext<'a> {
    disk: &'a dyn Bytes,
    block: u64,
    superblock: ExtSuperblock,
}

impl<'a> Ext<'a> {
    fn open(disk: &'a dyn Bytes) -> Option<Self> {
        let superblock = ext_superblock(disk)?;
        // Descriptors in other places are for filesystems of 256 TiB.
        let is_plain = superblock.s_feature_incompat & INCOMPAT_META_BG == 0;
        is_plain.then_some(Ext {
            disk,
            block: 1024 << superblock.s_log_block_size,
            superblock,
        })
    }

    fn block_at(&self, number: u64) -> Option<Vec<u8>> {
        if number == 0 {
            return None;
        }
        let at = number.checked_mul(self.block)?;
        self.disk.bytes(at, usize::try_from(self.block).ok()?)
    }

    fn inode(&self, number: u32) -> Option<IndexNode> {
        let sb = &self.superblock;
        let index = u64::from(number.checked_sub(1)?);
        let per_group = u64::from(sb.s_inodes_per_group);
        let (group, index) = (index.checked_div(per_group)?, index.checked_rem(per_group)?);
        let size = match sb.s_feature_incompat & INCOMPAT_64BIT {
            0 => 32,
            _ => u64::from(sb.s_desc_size.max(32)),
        };
        let table = (u64::from(sb.s_first_data_block) + 1) * self.block;
        let at = group.checked_mul(size)?.checked_add(table)?;
        let raw = self.disk.bytes(at, usize::try_from(size.min(64)).ok()?)?;
        let low = GroupDescriptor::parse(&raw, at).ok()?.bg_inode_table_lo;
        let high: u32 = le(&raw, 40).unwrap_or(0);
        let table = (u64::from(high) << 32 | u64::from(low)).checked_mul(self.block)?;
        let size = match sb.s_rev_level {
            0 => 128,
            _ => u64::from(sb.s_inode_size),
        };
        let at = table.checked_add(index.checked_mul(size)?)?;
        IndexNode::parse(&self.disk.bytes(at, IndexNode::LEN)?, at).ok()
    }

    /// The inode that a path from the root leads to.
    fn resolve(&self, path: &[u8]) -> Option<IndexNode> {
        let mut folders = vec![ROOT];
        let mut names = Vec::new();
        push_names(&mut names, path);
        for _ in 0..MOST_NAMES {
            let name = names.pop()?;
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if folders.len() > 1 {
                        folders.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let number = self.find(*folders.last()?, &name)?;
            let inode = self.inode(number)?;
            match inode.i_mode & S_IFMT {
                S_IFDIR => folders.push(number),
                S_IFLNK => {
                    let target = self.target(&inode)?;
                    if target.first() == Some(&b'/') {
                        folders.truncate(1);
                    }
                    push_names(&mut names, &target);
                }
                _ if names.is_empty() => return Some(inode),
                _ => return None,
            }
        }
        None
    }

    /// Target of a symbolic link. A short one stands in place of the block map.
    fn target(&self, link: &IndexNode) -> Option<Vec<u8>> {
        let size = usize::try_from(size_of(link)).ok()?;
        if size > MOST_TARGET {
            return None;
        }
        match link.i_block.get(..size) {
            Some(target) if link.i_flags & EXTENTS_FL == 0 => Some(target.to_vec()),
            _ => Some(self.start_of(link, size)),
        }
    }

    /// The number of the inode that a directory has under a name. Directories with an index have the
    /// same entries for those who do not know it.
    fn find(&self, folder: u32, name: &[u8]) -> Option<u32> {
        let folder = self.inode(folder)?;
        let blocks = size_of(&folder).div_ceil(self.block).min(MOST_DIRECTORY);
        (0..blocks).find_map(|index| {
            let block = self.block_at(self.place_of(&folder, index)?)?;
            find_in(&block, name)
        })
    }

    /// The first bytes of a file, without those from the first hole on.
    fn start_of(&self, file: &IndexNode, most: usize) -> Vec<u8> {
        let size = usize::try_from(size_of(file)).map_or(most, |size| size.min(most));
        let mut bytes = Vec::new();
        let mut index = 0;
        while bytes.len() < size {
            let place = self.place_of(file, index);
            let Some(block) = place.and_then(|place| self.block_at(place)) else {
                break;
            };
            bytes.extend(block);
            index += 1;
        }
        bytes.truncate(size);
        bytes
    }

    /// The block of the disk that has this block of a file.
    fn place_of(&self, file: &IndexNode, index: u64) -> Option<u64> {
        if file.i_flags & INLINE_DATA_FL != 0 {
            return None;
        }
        if file.i_flags & EXTENTS_FL != 0 {
            return self.place_in_tree(&file.i_block, u32::try_from(index).ok()?);
        }
        // Twelve blocks, then one of numbers of blocks, then one of numbers of such.
        let per_block = self.block / 4;
        match index.checked_sub(12) {
            None => number_at(&file.i_block, index),
            Some(index) if index < per_block => {
                let numbers = self.block_at(number_at(&file.i_block, 12)?)?;
                number_at(&numbers, index)
            }
            Some(index) => {
                let index = index - per_block;
                let numbers = self.block_at(number_at(&file.i_block, 13)?)?;
                let numbers = self.block_at(number_at(&numbers, index / per_block)?)?;
                number_at(&numbers, index % per_block)
            }
        }
    }

    fn place_in_tree(&self, root: &[u8], index: u32) -> Option<u64> {
        const MOST_DEPTH: u16 = 5;
        let mut node = root.to_vec();
        let mut above = MOST_DEPTH + 1;
        loop {
            let (header, entries) = node.split_at_checked(ExtentHeader::LEN)?;
            let header = ExtentHeader::parse(header, 0).ok()?;
            if header.eh_magic != 0xf30a || header.eh_depth >= above {
                return None;
            }
            above = header.eh_depth;
            let entries = entries.chunks_exact(Extent::LEN);
            let entries = entries.take(header.eh_entries.into());
            if header.eh_depth == 0 {
                let mut extents = entries.filter_map(|raw| Extent::parse(raw, 0).ok());
                // Longer ones are not written to yet, and read as zeros.
                let has = |e: &Extent| {
                    e.ee_len <= 1 << 15
                        && index
                            .checked_sub(e.ee_block)
                            .is_some_and(|n| n < e.ee_len.into())
                };
                let extent = extents.find(has)?;
                let start = u64::from(extent.ee_start_hi) << 32 | u64::from(extent.ee_start_lo);
                return Some(start + u64::from(index - extent.ee_block));
            }
            let nodes = entries.filter_map(|raw| ExtentIndex::parse(raw, 0).ok());
            let next = nodes.take_while(|next| next.ei_block <= index).last()?;
            node = self.block_at(u64::from(next.ei_leaf_hi) << 32 | u64::from(next.ei_leaf_lo))?;
        }
    }
}

/// Puts the names of a path on top of those that are still to be followed.
fn push_names(names: &mut Vec<Vec<u8>>, path: &[u8]) {
    names.extend(path.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec));
}

fn size_of(inode: &IndexNode) -> u64 {
    u64::from(inode.i_size_high) << 32 | u64::from(inode.i_size_lo)
}

/// A number in a list of numbers of blocks; 0 stands for a hole.
fn number_at(list: &[u8], index: u64) -> Option<u64> {
    let at = usize::try_from(index.checked_mul(4)?).ok()?;
    le::<u32>(list, at)
        .filter(|number| *number != 0)
        .map(u64::from)
}

/// The inode that a block of a directory has under a name.
fn find_in(mut block: &[u8], name: &[u8]) -> Option<u32> {
    loop {
        let entry = DirectoryEntry::parse(block, 0).ok()?;
        let len = usize::from(entry.rec_len).max(DirectoryEntry::LEN);
        let own = block.get(DirectoryEntry::LEN..DirectoryEntry::LEN + usize::from(entry.name_len));
        if entry.inode != 0 && own == Some(name) {
            return Some(entry.inode);
        }
        block = block.get(len..)?;
    }
}
