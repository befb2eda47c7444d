//! Damage and attacks: an examination ends, says what is wrong, and reads little.

use blockform::content::{Contents, FilesystemKind, GptCopy, examine};
use blockform::storage::Memory;
use blockform::{BlockSource, Error, Limits};

use crate::support::{Rng, fails, testdata};
use crate::{Counting, contents_in};

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(testdata(&format!("content/{name}"))).unwrap()
}

fn told(contents: &Contents) -> String {
    contents.warnings.join("\n")
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// CRC-32 of IEEE 802.3, bit by bit, so that it has nothing in common with the one under test.
fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}

/// A GPT by hand: `count` entries of `size` bytes in sectors of `sector` bytes, one partition, and the
/// arrays where the caller wants them.
fn gpt(sector: usize, count: u32, size: u32, array_lba: usize) -> Vec<u8> {
    let sectors = 512_usize;
    let mut disk = vec![0; sectors * sector];
    disk[446 + 4] = 0xee;
    put32(&mut disk, 446 + 8, 1);
    put32(&mut disk, 446 + 12, 511);
    disk[510..512].copy_from_slice(b"\x55\xaa");
    let length = count as usize * size as usize;
    let mut array = vec![0; length];
    array[..16]
        .copy_from_slice(b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4");
    array[16] = 7;
    put64(&mut array, 32, 300);
    put64(&mut array, 40, 310);
    array[56] = b'p';
    let last = sectors - 1;
    let back = last - length.div_ceil(sector);
    for (own, other, place) in [(1, last, array_lba), (last, 1, back)] {
        disk[place * sector..place * sector + length].copy_from_slice(&array);
        let at = own * sector;
        disk[at..at + 8].copy_from_slice(b"EFI PART");
        put32(&mut disk, at + 8, 0x1_0000);
        put32(&mut disk, at + 12, 92);
        put64(&mut disk, at + 24, own as u64);
        put64(&mut disk, at + 32, other as u64);
        put64(&mut disk, at + 40, 200);
        put64(&mut disk, at + 48, 400);
        put64(&mut disk, at + 72, place as u64);
        put32(&mut disk, at + 80, count);
        put32(&mut disk, at + 84, size);
        put32(&mut disk, at + 88, crc32(&array));
        sum_header(&mut disk, at);
    }
    disk
}

fn sum_header(disk: &mut [u8], at: usize) {
    put32(disk, at + 16, 0);
    let sum = crc32(&disk[at..at + 92]);
    put32(disk, at + 16, sum);
}

#[test]
fn tables_of_all_shapes() {
    for (sector, count, size, lba) in [
        (512, 128, 128, 2),
        (4096, 128, 128, 2),
        (512, 248, 128, 20),
        (512, 176, 128, 2),
        (512, 4, 256, 2),
        (512, 16, 512, 100),
        (2048, 128, 128, 2),
    ] {
        let contents = contents_in(&gpt(sector, count, size, lba));
        let found = contents.gpt.as_ref().unwrap();
        assert_eq!(found.sector_size as usize, sector);
        assert_eq!((found.array_entries, found.entry_size), (count, size));
        assert_eq!(
            (&found.primary, &found.backup),
            (&GptCopy::Valid, &GptCopy::Valid)
        );
        assert_eq!(contents.partitions.len(), 1);
        assert_eq!(contents.partitions[0].offset, 300 * sector as u64);
        assert_eq!(contents.partitions[0].size, 11 * sector as u64);
        assert_eq!(told(&contents), "", "{sector} {count} {size} {lba}");
    }
}

#[test]
fn what_is_far_from_the_start_is_recognised_too() {
    let found = |disk: &[u8]| {
        let detected = blockform::detect(&Memory::new(disk.to_vec())).unwrap();
        let ids = detected.content.iter().map(|(id, _)| id.to_string());
        ids.collect::<Vec<_>>()
    };
    // The first copy of the table is gone.
    for sector in [512, 4096] {
        let mut disk = gpt(sector, 128, 128, 2);
        disk[sector..sector + 92].fill(0);
        assert_eq!(found(&disk), ["gpt", "mbr"], "{sector}");
        // Without a partition that stands for it, the end is the end of some file.
        disk[446 + 4] = 0x83;
        assert_eq!(found(&disk), ["mbr"], "{sector}");
    }
    // Btrfs, and swap space in pages of 64 KiB.
    let mut disk = vec![0; 1 << 20];
    disk[65_536 - 10..65_536].copy_from_slice(b"SWAPSPACE2");
    disk[1024] = 1;
    disk[1028] = 15;
    assert_eq!(found(&disk), ["swap"]);
    let mut disk = vec![0; 1 << 20];
    disk[65_536 + 48..65_536 + 56].copy_from_slice(&65_536_u64.to_le_bytes());
    disk[65_536 + 64..65_536 + 72].copy_from_slice(b"_BHRfS_M");
    assert_eq!(found(&disk), ["btrfs"]);
}

#[test]
fn one_good_copy_of_a_table_is_enough() {
    let sound = gpt(512, 128, 128, 2);
    let copies = |contents: &Contents| {
        let gpt = contents.gpt.as_ref().unwrap();
        (gpt.primary.as_str(), gpt.backup.as_str())
    };
    let mut disk = sound.clone();
    disk[512 + 56] ^= 1;
    let contents = contents_in(&disk);
    assert_eq!(copies(&contents), ("damaged", "valid"));
    assert_eq!(contents.partitions.len(), 1);
    assert!(
        told(&contents).contains("the checksum of its header"),
        "{}",
        told(&contents)
    );

    let mut disk = sound.clone();
    disk[1024 + 200] ^= 1;
    let contents = contents_in(&disk);
    assert_eq!(copies(&contents), ("damaged", "valid"));
    assert!(
        told(&contents).contains("the checksum of its array"),
        "{}",
        told(&contents)
    );

    let mut disk = sound.clone();
    disk[512..1024].fill(0);
    let contents = contents_in(&disk);
    assert_eq!(copies(&contents), ("missing", "valid"));
    assert_eq!(contents.partitions.len(), 1);

    // The disk has grown.
    let mut disk = sound.clone();
    disk.resize(disk.len() + (1 << 20), 0);
    let contents = contents_in(&disk);
    assert_eq!(copies(&contents), ("valid", "misplaced"));
    assert!(told(&contents).contains("has grown"), "{}", told(&contents));

    let contents = contents_in(&sound[..sound.len() - 512]);
    assert_eq!(copies(&contents), ("valid", "missing"));

    let mut disk = sound;
    let last = 511 * 512;
    disk[last + 56] ^= 1;
    sum_header(&mut disk, last);
    let contents = contents_in(&disk);
    assert!(
        told(&contents).contains("copies of the GPT differ"),
        "{}",
        told(&contents)
    );
}

#[test]
fn numbers_of_a_table_that_cannot_be() {
    let sound = gpt(512, 128, 128, 2);
    for (at, value) in [
        (80, u32::MAX),
        (84, u32::MAX),
        (84, 0),
        (80, 0),
        (12, u32::MAX),
        (12, 0),
    ] {
        let mut disk = sound.clone();
        put32(&mut disk, 512 + at, value);
        if at != 12 {
            sum_header(&mut disk, 512);
        }
        let contents = contents_in(&disk);
        let state = contents.gpt.unwrap().primary;
        assert!(
            matches!(state, GptCopy::Damaged { .. }),
            "{at} {value}: {state:?}"
        );
    }
    for lba in [u64::MAX, 1 << 55, 1 << 54, 600] {
        let mut disk = sound.clone();
        put64(&mut disk, 512 + 72, lba);
        sum_header(&mut disk, 512);
        let state = contents_in(&disk).gpt.unwrap().primary;
        assert!(matches!(state, GptCopy::Damaged { .. }), "{lba}: {state:?}");
    }
    // Partitions that lie outside, or in each other, of a table whose sums are right.
    let mut disk = sound;
    let array: Vec<u8> = {
        let mut array = disk[1024..1024 + 128 * 128].to_vec();
        let entry = array[..128].to_vec();
        array[128..256].copy_from_slice(&entry);
        put64(&mut array, 256 + 32, 5);
        put64(&mut array, 256 + 40, u64::MAX);
        array[256] = 1;
        array
    };
    disk[1024..1024 + array.len()].copy_from_slice(&array);
    put32(&mut disk, 512 + 88, crc32(&array));
    sum_header(&mut disk, 512);
    let contents = contents_in(&disk);
    assert!(
        told(&contents).contains("partitions 1 and 2 overlap"),
        "{}",
        told(&contents)
    );
    assert!(
        told(&contents).contains("partition 3 takes sectors 5 to"),
        "{}",
        told(&contents)
    );
}

#[test]
fn a_chain_of_logical_partitions_that_comes_back_ends() {
    let mut disk = golden("mbr-logical.img");
    // The second boot record (at sector 56) leads on to the first one's offset of itself.
    let second = (32..100)
        .find(|sector| *sector > 32 && disk[sector * 512 + 510..sector * 512 + 512] == *b"\x55\xaa")
        .unwrap();
    let at = second * 512 + 446 + 16;
    disk[at + 4] = 5;
    put32(&mut disk, at + 8, 0);
    put32(&mut disk, at + 12, 10);
    let contents = contents_in(&disk);
    assert!(
        told(&contents).contains("does not end"),
        "{}",
        told(&contents)
    );
    assert_eq!(contents.mbr.unwrap().logical.len(), 2);

    put32(&mut disk, at + 8, u32::MAX);
    let contents = contents_in(&disk);
    assert!(
        told(&contents).contains("outside of its partition"),
        "{}",
        told(&contents)
    );
}

#[test]
fn flags_that_nobody_defined_are_no_reason_to_see_no_table() {
    let mut disk = golden("mbr-logical.img");
    disk[446] = 0x01;
    let contents = contents_in(&disk);
    assert_eq!(contents.mbr.as_ref().unwrap().entries[0].flag, 1);
    assert_eq!(contents.partitions.len(), 4);
    // In bytes that are no table they stay what they are: noise.
    put32(&mut disk, 446 + 8, 0x5555_5555);
    assert_eq!(contents_in(&disk).mbr, None);
}

#[test]
fn a_chain_of_clusters_that_comes_back_ends() {
    let mut fat = golden("esp-fat12.img");
    // Every entry of the table leads to cluster 3.
    let table = 512..1024;
    for triple in fat[table].chunks_exact_mut(3) {
        triple.copy_from_slice(&[0x03, 0x30, 0x00]);
    }
    let source = Counting::new(Memory::new(fat));
    let contents = examine(&source, &Limits::default()).unwrap();
    assert_eq!(contents.filesystems[0].kind, FilesystemKind::Fat12);
    assert!(source.sums().1 <= 640 << 10);
}

#[test]
fn a_catalogue_without_end_ends() {
    let mut iso = golden("bios-efi.iso");
    let at = 32 * 2048;
    for entry in iso[at + 64..at + 8192].chunks_exact_mut(32) {
        entry.fill(0);
        entry[0] = 0x90;
        entry[1] = 0xef;
        entry[2..4].copy_from_slice(&0_u16.to_le_bytes());
    }
    let contents = contents_in(&iso);
    assert_eq!(contents.iso.unwrap().boot.unwrap().entries.len(), 1);

    let mut iso = golden("bios-efi.iso");
    iso[at + 5] ^= 1;
    let contents = contents_in(&iso);
    assert!(
        !contents
            .iso
            .as_ref()
            .unwrap()
            .boot
            .as_ref()
            .unwrap()
            .checksum_is_right
    );
    assert!(
        told(&contents).contains("checksum of the boot catalogue"),
        "{}",
        told(&contents)
    );

    let mut iso = golden("bios-efi.iso");
    iso[at..at + 32].fill(0);
    let contents = contents_in(&iso);
    assert!(
        told(&contents).contains("the boot catalogue at sector 32"),
        "{}",
        told(&contents)
    );
}

#[test]
fn an_extension_of_an_entry_is_passed_over() {
    let mut iso = golden("bios-efi.iso");
    let at = 32 * 2048;
    // Initial entry, header of a section with one entry, the entry: the entry gets two extensions, and
    // another section follows.
    let entry = iso[at + 96..at + 128].to_vec();
    let mut header = iso[at + 64..at + 96].to_vec();
    assert_eq!(header[0], 0x91);
    iso[at + 64] = 0x90;
    iso[at + 96 + 1] |= 0x20;
    let mut extension = [0; 32];
    extension[0] = 0x44;
    extension[1] = 0x20;
    iso[at + 128..at + 160].copy_from_slice(&extension);
    extension[1] = 0;
    iso[at + 160..at + 192].copy_from_slice(&extension);
    header[1] = 2;
    iso[at + 192..at + 224].copy_from_slice(&header);
    iso[at + 224..at + 256].copy_from_slice(&entry);
    let boot = contents_in(&iso).iso.unwrap().boot.unwrap();
    let platforms: Vec<u8> = boot.entries.iter().map(|entry| entry.platform).collect();
    assert_eq!(platforms, [0, 0xef, 2]);
}

#[test]
fn descriptors_in_any_order_and_without_end() {
    let sound = golden("bios-efi.iso");
    let (primary, boot) = (16 * 2048, 17 * 2048);
    let mut iso = sound.clone();
    let first = iso[primary..boot].to_vec();
    iso.copy_within(boot..boot + 2048, primary);
    iso[boot..boot + 2048].copy_from_slice(&first);
    let contents = contents_in(&iso);
    let volume = contents.iso.unwrap();
    assert_eq!(volume.volume_id.unwrap().as_str(), Some("BOTH"));
    assert_eq!(volume.boot.unwrap().entries.len(), 2);

    let mut iso = sound.clone();
    let end = (16..32).find(|sector| iso[sector * 2048] == 255).unwrap();
    iso[end * 2048..end * 2048 + 7].fill(0);
    let contents = contents_in(&iso);
    assert!(
        told(&contents).contains("have no end"),
        "{}",
        told(&contents)
    );

    let mut iso = sound;
    iso[primary + 84..primary + 88].copy_from_slice(&7_u32.to_be_bytes());
    let contents = contents_in(&iso);
    assert!(
        told(&contents).contains("in one order of bytes and 7"),
        "{}",
        told(&contents)
    );
}

#[test]
fn a_later_session_counts() {
    let mut disc = golden("bios-efi.iso");
    let size = disc.len();
    disc.resize(size.next_multiple_of(32 * 2048), 0);
    let start = disc.len();
    let mut second = golden("bios-efi.iso");
    second[16 * 2048 + 40..16 * 2048 + 44].copy_from_slice(b"LAST");
    disc.extend(second);
    let contents = contents_in(&disc);
    let iso = contents.iso.unwrap();
    assert_eq!(iso.volume_id.unwrap().as_str(), Some("LAST"));
    assert_eq!((iso.sessions, iso.offset), (2, (start + 16 * 2048) as u64));
}

/// Fields of a member of a RAID, version 1.2, and of 1.0 at the end.
#[test]
fn members_of_a_raid() {
    let member = |size: usize, at: usize| {
        let mut disk = vec![0; size];
        put32(&mut disk, at, 0xa92b_4efc);
        put32(&mut disk, at + 4, 1);
        disk[at + 16..at + 32].fill(0xab);
        disk[at + 32..at + 37].copy_from_slice(b"host:");
        put64(&mut disk, at + 144, at as u64 / 512);
        disk
    };
    for (size, at) in [(1 << 20, 4096), (1 << 20, 0), (1 << 20, (1 << 20) - 8192)] {
        let contents = contents_in(&member(size, at));
        let [raid] = contents.filesystems.as_slice() else {
            panic!("{at}: {contents:?}");
        };
        assert_eq!(raid.kind, FilesystemKind::MdRaid);
        assert_eq!(raid.label.as_ref().unwrap().as_str(), Some("host:"));
        assert_eq!(raid.evidence.offset, at as u64);
    }
    // The superblock of another disk, moved here.
    let mut moved = member(1 << 20, 4096);
    put64(&mut moved, 4096 + 144, 0);
    assert!(contents_in(&moved).is_empty());
}

#[test]
fn a_pool_whose_list_goes_nowhere() {
    let mut disk = vec![0; 1 << 20];
    let at = 16 << 10;
    disk[at..at + 4].copy_from_slice(b"\x01\x01\0\0");
    let mut list = vec![0, 0, 0, 0, 0, 0, 0, 1];
    let pair = |name: &[u8], kind: u32, value: &[u8]| {
        let mut pair = Vec::new();
        pair.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
        pair.extend(name);
        pair.resize(pair.len().next_multiple_of(4), 0);
        pair.extend(kind.to_be_bytes());
        pair.extend(1_u32.to_be_bytes());
        pair.extend(value);
        let len = u32::try_from(pair.len() + 8).unwrap().to_be_bytes();
        [&len[..], &len, &pair].concat()
    };
    list.extend(pair(b"version", 8, &5000_u64.to_be_bytes()));
    list.extend(pair(b"name", 9, b"\0\0\0\x04tank"));
    list.extend(pair(b"pool_guid", 8, &1234_u64.to_be_bytes()));
    disk[at + 4..at + 4 + list.len()].copy_from_slice(&list);
    let contents = contents_in(&disk);
    let [zfs] = contents.filesystems.as_slice() else {
        panic!("{contents:?}");
    };
    assert_eq!(zfs.label.as_ref().unwrap().as_str(), Some("tank"));
    assert_eq!(zfs.uuid.as_deref(), Some("1234"));
    for length in [0, 1, u32::MAX] {
        let mut disk = disk.clone();
        disk[at + 12..at + 16].copy_from_slice(&length.to_be_bytes());
        assert_eq!(contents_in(&disk).filesystems[0].uuid, None);
    }
}

/// Whatever a byte is changed to and wherever an image ends, an examination ends, without a panic and
/// within its bounds.
#[test]
fn every_cut_and_many_changes_of_bytes() {
    let mut rng = Rng(7);
    for name in [
        "bios-efi.iso",
        "esp-fat12.img",
        "gpt.img",
        "mbr-logical.img",
        "os-release.ext4",
    ] {
        let sound = golden(name);
        for len in (0..sound.len()).step_by(509) {
            contents_in(&sound[..len]);
        }
        let used: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
        for _ in 0..600 {
            let mut bytes = sound.clone();
            for _ in 0..1 + rng.below(6) {
                let at = used[usize::try_from(rng.below(used.len() as u64)).unwrap()];
                bytes[at] =
                    [0, 0xff, 0x80, 0x7f, rng.bytes(1)[0]][usize::try_from(rng.below(5)).unwrap()];
            }
            let source = Counting::new(Memory::new(bytes));
            let contents = examine(&source, &Limits::default()).unwrap();
            assert!(source.sums().1 <= 640 << 10);
            assert!(
                told(&contents)
                    .lines()
                    .all(|line| !line.chars().any(char::is_control))
            );
        }
    }
}

#[test]
fn a_filesystem_that_is_cut_short_says_so() {
    let sound = golden("os-release.ext4");
    let contents = contents_in(&sound[..sound.len() - 1024]);
    let text = "the disk has ext4 of 131072 bytes and only 130048 of them: it is cut short";
    assert_eq!(told(&contents), text);
    let mut disk = golden("gpt.img");
    disk[40 * 512 + 19] = 65;
    let contents = contents_in(&disk);
    let text = "partition 1 has fat12 of 33280 bytes and only 32768 of them: it is cut short";
    assert_eq!(told(&contents), text);
}

/// A disk whose first page cannot be read.
#[derive(Debug)]
struct Broken(Memory);

impl BlockSource for Broken {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> blockform::Result<usize> {
        if offset < 4096 {
            return Err(blockform::Error::io(
                "read",
                std::io::Error::other("broken"),
            ));
        }
        self.0.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> blockform::Result<blockform::Extent> {
        self.0.extent_at(offset, limit)
    }
}

#[test]
fn a_read_that_fails_is_an_error_and_no_empty_disk() {
    let broken = Broken(Memory::new(golden("gpt.img")));
    let error = examine(&broken, &Limits::default()).unwrap_err();
    assert_eq!(error.chain(), "cannot read: broken");
    let mut limits = Limits::default();
    limits.metadata_bytes = 4096;
    fails!(
        examine(&Memory::new(vec![0; 4096]), &limits),
        Error::LimitExceeded { .. },
        "metadata_bytes"
    );
}
