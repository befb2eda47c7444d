//! Disks as their own tools make them, against what other tools read in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use blockform::content::{Architecture, BootCode, PartitionType};
use serde_json::Value;

use crate::contents_of;
use crate::support::{has_tool, run, testdata};

/// Runs a line of shell in a folder; it has to succeed.
fn shell(folder: &Path, line: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command
        .args(["-euc", line])
        .current_dir(folder)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C.UTF-8")
        .env("MTOOLS_SKIP_CHECK", "1");
    run(&mut command)
}

/// Returns true if all programs of a list are installed. Those of administrators are not on everyone's path.
fn has_tools(names: &str) -> bool {
    names.split(' ').all(|name| {
        let own = Path::new("/usr/sbin").join(name);
        own.exists() || has_tool(name)
    })
}

/// A name, the programs that are needed, and how `x.img` is made.
const TABLES: &[(&str, &str, &str)] = &[
    (
        "gpt by sfdisk",
        "sfdisk",
        "truncate -s 20M x.img; printf '%s\\n' 'label: gpt' 'size=4M,type=U,name=\"one two\"' \
         'size=4M,type=L,attrs=LegacyBIOSBootable' 'size=1M,type=21686148-6449-6E6F-744E-656564454649' \
         | sfdisk -q x.img",
    ),
    (
        "gpt of 248 entries by sfdisk",
        "sfdisk",
        "truncate -s 20M x.img; printf '%s\\n' 'label: gpt' 'table-length: 248' 'size=4M,type=U' \
         | sfdisk -q x.img",
    ),
    (
        "gpt by sgdisk",
        "sgdisk sfdisk",
        "truncate -s 30M x.img; sgdisk -n 1:2048:+4M -t 1:ef00 -c 1:Straße -n 4:0:+8M -t 4:8304 x.img \
         > out",
    ),
    (
        "gpt by parted",
        "parted sfdisk",
        "truncate -s 30M x.img; parted -s x.img mklabel gpt mkpart esp fat32 1MiB 5MiB mkpart data \
         ext4 5MiB 28MiB set 1 esp on",
    ),
    (
        "mbr by sfdisk",
        "sfdisk",
        "truncate -s 40M x.img; printf '%s\\n' 'label: dos' 'size=4M,type=83' 'size=2M,type=ef,bootable' \
         'size=20M,type=f' 'size=3M,type=82' 'size=5M,type=83' 'size=2M,type=8e' | sfdisk -q x.img",
    ),
    (
        "mbr by parted",
        "parted sfdisk",
        "truncate -s 40M x.img; parted -s x.img mklabel msdos mkpart primary ext4 1MiB 5MiB mkpart \
         extended 5MiB 35MiB mkpart logical linux-swap 6MiB 10MiB mkpart logical 11MiB 20MiB set 1 boot on",
    ),
];

#[test]
fn partitions_are_where_sfdisk_sees_them() {
    for (name, tools, recipe) in TABLES {
        if !has_tools(tools) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        shell(folder.path(), recipe);
        let theirs: Value = serde_json::from_str(&shell(folder.path(), "sfdisk -J x.img")).unwrap();
        let theirs = &theirs["partitiontable"];
        let ours = contents_of(&folder.path().join("x.img"));
        assert_eq!(ours.warnings, [""; 0], "{name}");
        let partitions = theirs["partitions"].as_array().unwrap();
        assert_eq!(ours.partitions.len(), partitions.len(), "{name}");
        for (ours, theirs) in ours.partitions.iter().zip(partitions) {
            let node = theirs["node"].as_str().unwrap();
            assert_eq!(node, format!("x.img{}", ours.number), "{name}");
            assert_eq!(theirs["start"], ours.offset / 512, "{name} {node}");
            assert_eq!(theirs["size"], ours.size / 512, "{name} {node}");
            let kind = theirs["type"].as_str().unwrap();
            let code = match ours.kind {
                PartitionType::Mbr(kind) => format!("{kind:x}"),
                _ => ours.kind.code(),
            };
            assert_eq!(kind, code, "{name} {node}");
            let attributes = theirs["attrs"].as_str().unwrap_or_default();
            let active = theirs["bootable"] == true || attributes.contains("LegacyBIOSBootable");
            assert_eq!(active, ours.active, "{name} {node}");
            assert_eq!(
                theirs["uuid"].as_str(),
                ours.guid.as_deref(),
                "{name} {node}"
            );
            let label = ours.name.as_ref().and_then(|label| label.as_str());
            assert_eq!(theirs["name"].as_str(), label, "{name} {node}");
        }
        match (&ours.gpt, &ours.mbr) {
            (Some(gpt), _) => assert_eq!(theirs["id"], gpt.disk_guid.as_str(), "{name}"),
            (None, Some(mbr)) => {
                let id = format!("{:#010x}", mbr.disk_signature);
                assert_eq!(theirs["id"], id.as_str(), "{name}");
            }
            _ => panic!("{name}: no table"),
        }
    }
}

#[test]
fn a_hybrid_table_is_both() {
    if !has_tools("sgdisk") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    shell(
        folder.path(),
        "truncate -s 20M x.img; sgdisk -n 1:2048:+4M -n 2::+8M -h 1:2 x.img > out",
    );
    let ours = contents_of(&folder.path().join("x.img"));
    let mbr = ours.mbr.unwrap();
    assert!(mbr.is_hybrid() && !mbr.is_protective());
    assert_eq!(ours.partitions.len(), 2);
    assert!(matches!(ours.partitions[0].kind, PartitionType::Gpt(_)));
}

/// The name of a filesystem, the programs that are needed, and how `x.img` is made.
const FILESYSTEMS: &[(&str, &str, &str)] = &[
    ("ext2", "mke2fs", "mke2fs -q -t ext2 -L two x.img 2M"),
    ("ext3", "mke2fs", "mke2fs -q -t ext3 -L three x.img 8M"),
    ("ext4", "mke2fs", "mke2fs -q -t ext4 -L four x.img 8M"),
    (
        "ext4",
        "mke2fs",
        "mke2fs -q -t ext4 -O ^has_journal,64bit -b 4096 x.img 8M",
    ),
    ("ext2", "mke2fs", "mke2fs -q -t ext2 -r 0 x.img 2M"),
    (
        "ext4",
        "mke2fs",
        "mke2fs -q -F -t ext4 -O ^resize_inode -b 65536 x.img 16M 2> out",
    ),
    (
        "xfs",
        "mkfs.xfs",
        "truncate -s 300M x.img; mkfs.xfs -q -L name x.img",
    ),
    (
        "btrfs",
        "mkfs.btrfs",
        "truncate -s 120M x.img; mkfs.btrfs -q -L 'a label' x.img",
    ),
    (
        "f2fs",
        "mkfs.f2fs",
        "truncate -s 60M x.img; mkfs.f2fs -q -l label x.img > out",
    ),
    (
        "ntfs",
        "mkfs.ntfs",
        "truncate -s 4M x.img; mkfs.ntfs -q -F -Q -L 'label é' x.img > out 2>&1",
    ),
    (
        "fat12",
        "mkfs.vfat",
        "truncate -s 1M x.img; mkfs.vfat -F 12 -n LABEL x.img > out",
    ),
    (
        "fat16",
        "mkfs.vfat",
        "truncate -s 20M x.img; mkfs.vfat -F 16 -n LABEL x.img > out",
    ),
    (
        "fat32",
        "mkfs.vfat",
        "truncate -s 40M x.img; mkfs.vfat -F 32 -n LABEL x.img > out",
    ),
    (
        "fat32",
        "mkfs.vfat",
        "truncate -s 300M x.img; mkfs.vfat -F 32 -S 4096 x.img > out",
    ),
    (
        "fat12",
        "mformat",
        "mformat -C -i x.img -v FLOPPY -f 1440 ::",
    ),
    (
        "fat16",
        "mformat",
        "mformat -C -i x.img -v SIXTEEN -T 40960 -h 16 -s 32 ::",
    ),
    (
        "fat32",
        "mformat",
        "mformat -C -i x.img -v THIRTYTWO -F -T 90000 -h 16 -s 32 ::",
    ),
    (
        "exfat",
        "mkfs.exfat",
        "truncate -s 8M x.img; mkfs.exfat -L 'label é' x.img > out",
    ),
    (
        "squashfs",
        "mksquashfs",
        "mkdir d; echo x > d/x; mksquashfs d x.img -quiet > out",
    ),
    (
        "erofs",
        "mkfs.erofs",
        "mkdir d; echo x > d/x; mkfs.erofs --quiet x.img d > out 2>&1",
    ),
    (
        "cramfs",
        "mkfs.cramfs",
        "mkdir d; echo x > d/x; mkfs.cramfs -n name d x.img",
    ),
    (
        "swap",
        "mkswap",
        "truncate -s 1M x.img; mkswap -q -L label x.img 2> out",
    ),
    (
        "swap",
        "mkswap",
        "truncate -s 2M x.img; mkswap -q -p 65536 x.img > out 2>&1",
    ),
    (
        "luks1",
        "cryptsetup",
        "truncate -s 4M x.img; echo -n p | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations \
         1000 x.img -",
    ),
    (
        "luks2",
        "cryptsetup",
        "truncate -s 18M x.img; echo -n p | cryptsetup -q luksFormat --type luks2 --label mine --pbkdf \
         pbkdf2 --pbkdf-force-iterations 1000 x.img -",
    ),
    (
        "udf",
        "mkudffs",
        "truncate -s 5M x.img; mkudffs -l 'a name é' -b 512 x.img > out",
    ),
    (
        "udf",
        "mkudffs",
        "truncate -s 5M x.img; mkudffs -l name -b 2048 -m dvd x.img > out",
    ),
    (
        "udf",
        "mkudffs",
        "truncate -s 8M x.img; mkudffs -l 名 -b 4096 x.img > out",
    ),
    (
        "udf",
        "mkudffs",
        "truncate -s 5M x.img; mkudffs -l name -b 1024 x.img > out",
    ),
    (
        "iso9660",
        "genisoimage",
        "mkdir d; echo x > d/x; genisoimage -quiet -R -V 'A name' -o x.img d",
    ),
    (
        "iso9660",
        "genisoimage",
        "mkdir d; echo x > d/x; genisoimage -quiet -V none -o x.img d",
    ),
    (
        "iso9660",
        "xorriso",
        "mkdir d; echo x > d/x; xorriso -as mkisofs -quiet -J -V NAME -o x.img d",
    ),
    (
        "iso9660 udf",
        "genisoimage",
        "mkdir d; echo x > d/x; genisoimage -quiet -udf -V Both -o x.img d",
    ),
];

#[test]
fn filesystems_are_what_blkid_sees() {
    if !has_tools("blkid") {
        return;
    }
    for (kinds, tools, recipe) in FILESYSTEMS {
        if !has_tools(tools) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        shell(folder.path(), recipe);
        let contents = contents_of(&folder.path().join("x.img"));
        assert_eq!(contents.warnings, [""; 0], "{recipe}");
        let ours: Vec<&str> = contents
            .filesystems
            .iter()
            .map(|f| f.kind.as_str())
            .collect();
        assert_eq!(ours.join(" "), *kinds, "{recipe}");
        assert!(contents.mbr.is_none() && contents.gpt.is_none(), "{recipe}");
        let told = shell(folder.path(), "blkid -p -o export x.img");
        let theirs: BTreeMap<&str, &str> = told
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        // It knows one of two at a time.
        let name = match theirs["TYPE"] {
            "vfat" => theirs["VERSION"].to_ascii_lowercase(),
            "crypto_LUKS" => format!("luks{}", theirs["VERSION"]),
            name => name.to_owned(),
        };
        let ours = contents
            .filesystems
            .iter()
            .find(|f| f.kind.as_str() == name);
        let ours = ours.unwrap_or_else(|| panic!("{recipe}: {told}"));
        let label = ours.label.as_ref().and_then(|label| label.as_str());
        // The other form of its output escapes what is not ASCII.
        let plain = theirs.get("LABEL").map(|_| {
            let told = shell(folder.path(), "blkid -p -o value -s LABEL x.img");
            told.trim_end_matches('\n').to_owned()
        });
        assert_eq!(label, plain.as_deref(), "{recipe}: {told}");
        let uuid = theirs.get("UUID").map(|uuid| uuid.replace('\\', ""));
        assert_eq!(ours.uuid, uuid, "{recipe}: {told}");
        let length = std::fs::metadata(folder.path().join("x.img"))
            .unwrap()
            .len();
        if let Some(size) = ours.size {
            assert!(size <= length, "{recipe}: {size} of {length}");
            assert!(
                size >= length / 2 || length < 1 << 20 || name == "udf",
                "{recipe}: {size}"
            );
        }
    }
}

/// The entries of the boot catalogue, as `xorriso` reports them: platform and sector.
fn entries_of_xorriso(folder: &Path) -> Vec<(String, u64)> {
    let told = shell(
        folder,
        "xorriso -indev x.iso -report_el_torito plain 2> /dev/null",
    );
    let images = told
        .lines()
        .filter(|line| line.starts_with("El Torito boot img"));
    images
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[6].to_owned(), words.last().unwrap().parse().unwrap())
        })
        .collect()
}

#[test]
fn bootable_cds_of_three_writers() {
    if !has_tools("xorriso genisoimage") {
        return;
    }
    let efi = testdata("content/esp-fat12.img");
    let tree = format!(
        "mkdir d; head -c 2048 /dev/zero > d/bios.img; cp {} d/efi.img;",
        efi.display()
    );
    let mut recipes = vec![
        format!(
            "{tree} genisoimage -quiet -V BOTH -b bios.img -no-emul-boot -boot-info-table \
             -eltorito-alt-boot -e efi.img -no-emul-boot -o x.iso d"
        ),
        format!(
            "{tree} xorriso -as mkisofs -quiet -V BOTH -b bios.img -no-emul-boot -eltorito-alt-boot -e \
             efi.img -no-emul-boot -isohybrid-gpt-basdat -o x.iso d"
        ),
        format!(
            "{tree} xorriso -as mkisofs -quiet -V BOTH -b bios.img -no-emul-boot -eltorito-alt-boot -e \
             --interval:appended_partition_2:all:: -no-emul-boot -append_partition 2 0xef {} -o x.iso d",
            efi.display()
        ),
    ];
    if Path::new("/usr/lib/ISOLINUX/isohdpfx.bin").exists() {
        recipes.push(format!(
            "{tree} cp /usr/lib/ISOLINUX/isolinux.bin d; xorriso -as mkisofs -quiet -V BOTH -isohybrid-mbr \
             /usr/lib/ISOLINUX/isohdpfx.bin -c boot.cat -b isolinux.bin -no-emul-boot -boot-load-size 4 \
             -boot-info-table -eltorito-alt-boot -e efi.img -no-emul-boot -isohybrid-gpt-basdat -o x.iso d"
        ));
    }
    for recipe in recipes {
        let folder = tempfile::tempdir().unwrap();
        shell(folder.path(), &recipe);
        let contents = contents_of(&folder.path().join("x.iso"));
        assert_eq!(contents.warnings, [""; 0], "{recipe}");
        let iso = contents.iso.as_ref().unwrap();
        let boot = iso.boot.as_ref().unwrap();
        assert!(boot.checksum_is_right);
        let ours: Vec<(String, u64)> = boot
            .entries
            .iter()
            .map(|e| (e.platform_name().to_owned(), e.offset / 2048))
            .collect();
        assert_eq!(ours, entries_of_xorriso(folder.path()), "{recipe}");
        let programs = &contents.efi[0].programs;
        assert_eq!(
            programs[0].architecture,
            Some(Architecture::X86_64),
            "{recipe}"
        );
        if recipe.contains("isohdpfx") {
            let code = contents.mbr.as_ref().unwrap().boot_code;
            assert_eq!(code, Some(BootCode::Isolinux));
        }
    }
}

#[test]
fn the_rescue_cd_of_grub() {
    if !has_tools("grub-mkrescue xorriso mformat") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    shell(
        folder.path(),
        "mkdir d; grub-mkrescue -o x.iso d > out 2>&1",
    );
    let contents = contents_of(&folder.path().join("x.iso"));
    assert_eq!(
        contents.mbr.as_ref().unwrap().boot_code,
        Some(BootCode::Grub)
    );
    assert!(contents.gpt.as_ref().unwrap().is_readable());
    if Path::new("/usr/lib/grub/x86_64-efi").exists() {
        let mut names = contents.efi[0].programs.iter().map(|p| &p.name);
        assert!(names.any(|name| name.as_str().unwrap().eq_ignore_ascii_case("bootx64.efi")));
    }
    let ours = contents.iso.unwrap().boot.unwrap().entries.len();
    assert_eq!(ours, entries_of_xorriso(folder.path()).len());
}

#[test]
fn a_system_in_each_ext_filesystem_is_found() {
    if !has_tools("mke2fs sfdisk") {
        return;
    }
    for options in [
        "-t ext2",
        "-t ext3",
        "-t ext4",
        "-t ext4 -b 4096",
        "-t ext4 -O ^metadata_csum,64bit",
        "-t ext4 -b 1024 -I 128",
        "-t ext4 -b 65536",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = format!(
            "mkdir -p d/etc d/usr/lib d/usr/share; for i in $(seq 400); do echo > d/usr/share/file-$i; \
             done; printf 'PRETTY_NAME=\"x y\"\\nID=ubuntu\\nVERSION_ID=\"24.04\"\\n' > \
             d/usr/lib/os-release; ln -s ../usr/lib/os-release d/etc/os-release; mke2fs -q -F {options} -d d \
             fs.img 40M 2> out; truncate -s 50M x.img; echo 'start=2048,type=83' | sfdisk -q x.img; dd if=fs.img \
             of=x.img bs=1M seek=1 conv=notrunc,sparse status=none"
        );
        shell(folder.path(), &recipe);
        let contents = contents_of(&folder.path().join("x.img"));
        let release = contents.os_release.as_ref();
        let release = release.unwrap_or_else(|| panic!("{options}: {contents:#?}"));
        assert_eq!(release.id, "ubuntu");
        assert_eq!(release.version_id.as_deref(), Some("24.04"));
    }
}

#[test]
fn links_that_lead_nowhere_lead_nowhere() {
    if !has_tools("mke2fs") {
        return;
    }
    let long = "x/".repeat(300);
    for (made, found) in [
        ("ln -s os-release d/etc/os-release", None),
        ("ln -s /etc/../etc/./os-release d/etc/os-release", None),
        (
            "ln -s / d/etc/up; ln -s up/etc/up/etc/name d/etc/os-release",
            Some("x"),
        ),
        ("ln -s ../../../../etc/name d/etc/os-release", Some("x")),
        ("mkdir d/etc/os-release", None),
        (
            "mkdir -p d/etc/deep; ln -s deep/../deep/../deep/../deep/../deep/../deep/../name \
             d/etc/os-release",
            Some("x"),
        ),
        (&format!("ln -s {long} d/etc/os-release"), None),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let recipe = format!(
            "mkdir -p d/etc; echo ID=x > d/etc/name; {made}; mke2fs -q -t ext4 -d d x.img 2M 2> out"
        );
        shell(folder.path(), &recipe);
        let release = contents_of(&folder.path().join("x.img")).os_release;
        assert_eq!(release.as_ref().map(|r| r.id.as_str()), found, "{made}");
    }
}
