//! The images of `testdata/content`, whose truth other programs told.

use blockform::content::{
    Architecture, BootCode, BootMedia, Fact, FilesystemKind, Firmware, GptCopy, PartitionType,
};
use blockform::image::Value;
use blockform::inspect::Report;
use blockform::{ImageName, OpenOptions};

use crate::support::{root, skipped, testdata};
use crate::{contents_in, contents_of};

fn name(text: &str) -> Option<ImageName> {
    Some(ImageName::from(text))
}

#[test]
fn a_fat_filesystem_with_programs_for_uefi() {
    let contents = contents_of(&testdata("content/esp-fat12.img"));
    let [fat] = contents.filesystems.as_slice() else {
        panic!("{contents:?}");
    };
    assert_eq!(fat.kind, FilesystemKind::Fat12);
    assert_eq!(fat.label, name("ESP"));
    assert_eq!(fat.uuid.as_deref(), Some("1234-5678"));
    assert_eq!(fat.size, Some(32 << 10));
    let [efi] = contents.efi.as_slice() else {
        panic!("{contents:?}");
    };
    let programs: Vec<_> = efi
        .programs
        .iter()
        .map(|p| (p.name.as_str().unwrap(), p.architecture, p.is_signed))
        .collect();
    assert_eq!(
        programs,
        [
            ("BOOTX64.EFI", Some(Architecture::X86_64), true),
            ("BOOTAA64.EFI", Some(Architecture::Aarch64), false),
        ]
    );
    assert_eq!(efi.vendors, [ImageName::from("a-vendor-with-a-long-name")]);
    assert!(contents.mbr.is_none() && contents.warnings.is_empty());
    // Two processors: neither is clear.
    assert_eq!(
        contents.properties(),
        [("hw_firmware_type", "uefi".to_owned())]
    );
}

#[test]
fn signed_programs_for_one_processor_are_clear() {
    let mut bytes = std::fs::read(testdata("content/esp-fat12.img")).unwrap();
    let other = bytes
        .windows(11)
        .position(|name| name == b"BOOTAA64EFI")
        .unwrap();
    // Deleted.
    bytes[other] = 0xe5;
    let contents = contents_in(&bytes);
    assert_eq!(contents.efi[0].programs.len(), 1);
    assert_eq!(
        contents.properties(),
        [
            ("architecture", "x86_64".to_owned()),
            ("hw_firmware_type", "uefi".to_owned()),
            ("os_secure_boot", "optional".to_owned()),
        ]
    );
}

#[test]
fn a_cd_for_both_kinds_of_firmware() {
    let contents = contents_of(&testdata("content/bios-efi.iso"));
    let iso = contents.iso.as_ref().unwrap();
    assert_eq!(iso.volume_id, name("BOTH"));
    assert_eq!((iso.block_size, iso.size), (2048, 102_400));
    assert_eq!(
        (iso.joliet, iso.rock_ridge, iso.sessions),
        (Some(3), true, 1)
    );
    assert_eq!(iso.joliet_volume_id, name("BOTH"));
    assert_eq!(iso.created.as_deref().map(str::len), Some(28));
    let boot = iso.boot.as_ref().unwrap();
    assert!(boot.checksum_is_right);
    assert_eq!(boot.offset, 32 * 2048);
    let entries: Vec<_> = boot
        .entries
        .iter()
        .map(|e| (e.platform, e.bootable, e.media, e.offset, e.load_size))
        .collect();
    assert_eq!(
        entries,
        [
            (0, true, BootMedia::NoEmulation, 33 * 2048, 2048),
            (0xef, true, BootMedia::NoEmulation, 34 * 2048, 32_768),
        ]
    );
    assert_eq!(contents.efi.len(), 1);
    assert_eq!(contents.efi[0].offset, 34 * 2048);
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        let mut facts = contents.findings.iter().map(|finding| &finding.fact);
        assert!(
            facts.any(|fact| *fact == Fact::Firmware(firmware)),
            "{firmware:?}"
        );
    }
    // Either firmware starts it, so neither has to be asked for.
    assert_eq!(contents.properties(), []);
    assert!(contents.warnings.is_empty(), "{:?}", contents.warnings);
}

#[test]
fn a_cd_that_is_cut_short_says_so() {
    let bytes = std::fs::read(testdata("content/bios-efi.iso")).unwrap();
    let contents = contents_in(&bytes[..bytes.len() - 2048]);
    assert_eq!(contents.iso.unwrap().size, 102_400);
    let told = contents.warnings.join("\n");
    assert!(
        told.contains("102400 bytes and only 100352 are there"),
        "{told}"
    );

    let contents = contents_in(&bytes[..66_000]);
    let told = contents.warnings.join("\n");
    assert!(
        told.contains("the boot image for UEFI at byte 69632 is not there"),
        "{told}"
    );
}

#[test]
fn logical_partitions_are_followed() {
    let contents = contents_of(&testdata("content/mbr-logical.img"));
    let mbr = contents.mbr.as_ref().unwrap();
    assert_eq!(mbr.disk_signature, 0x1234_5678);
    assert_eq!(mbr.boot_code, None);
    assert!(!mbr.is_protective() && !mbr.is_hybrid());
    let partitions: Vec<_> = contents
        .partitions
        .iter()
        .map(|p| {
            (
                p.number,
                p.offset / 512,
                p.size / 512,
                p.kind.clone(),
                p.active,
            )
        })
        .collect();
    assert_eq!(
        partitions,
        [
            (1, 8, 16, PartitionType::Mbr(0x83), true),
            (2, 32, 80, PartitionType::Mbr(0x05), false),
            (5, 40, 16, PartitionType::Mbr(0x82), false),
            (6, 64, 16, PartitionType::Mbr(0x8e), false),
        ]
    );
    assert!(contents.warnings.is_empty(), "{:?}", contents.warnings);
}

#[test]
fn a_guid_partition_table_with_its_partitions() {
    let contents = contents_of(&testdata("content/gpt.img"));
    let gpt = contents.gpt.as_ref().unwrap();
    assert_eq!(gpt.sector_size, 512);
    assert_eq!(gpt.disk_guid, "11111111-2222-3333-4444-555555555555");
    assert_eq!(
        (&gpt.primary, &gpt.backup),
        (&GptCopy::Valid, &GptCopy::Valid)
    );
    assert!(contents.mbr.as_ref().unwrap().is_protective());
    let [esp, linux] = contents.partitions.as_slice() else {
        panic!("{contents:?}");
    };
    assert_eq!((esp.offset, esp.size), (40 * 512, 64 * 512));
    assert_eq!(esp.kind.name(), Some("EFI system"));
    assert_eq!(esp.name, name("esp"));
    assert_eq!(
        esp.guid.as_deref(),
        Some("AAAAAAAA-0000-0000-0000-000000000001")
    );
    assert_eq!(esp.filesystem.as_ref().unwrap().kind, FilesystemKind::Fat12);
    assert_eq!(linux.kind.name(), Some("Linux root"));
    assert_eq!(contents.efi[0].offset, 40 * 512);
    let properties = contents.properties();
    let value = |name| {
        let mut all = properties.iter();
        all.find(|(n, _)| *n == name)
            .map(|(_, value)| value.as_str())
    };
    assert_eq!(value("hw_firmware_type"), Some("uefi"));
    assert_eq!(value("os_type"), Some("linux"));
    // One of the programs is for another processor, and has no signature.
    assert_eq!(
        (value("architecture"), value("os_secure_boot")),
        (None, None)
    );
    assert!(contents.warnings.is_empty(), "{:?}", contents.warnings);
}

#[test]
fn the_system_says_what_it_is() {
    let bytes = std::fs::read(testdata("content/os-release.ext4")).unwrap();
    let contents = contents_in(&bytes);
    assert_eq!(contents.filesystems[0].kind, FilesystemKind::Ext4);
    let release = contents.os_release.as_ref().unwrap();
    assert_eq!(release.id, "debian");
    assert_eq!(release.version_id.as_deref(), Some("12"));
    assert_eq!(
        contents.properties(),
        [
            ("os_distro", "debian".to_owned()),
            ("os_type", "linux".to_owned()),
            ("os_version", "12".to_owned()),
        ]
    );
}

#[test]
fn a_description_has_the_contents_and_nothing_that_steers_a_terminal() {
    let mut bytes = std::fs::read(testdata("content/esp-fat12.img")).unwrap();
    for at in 0..bytes.len() - 11 {
        if &bytes[at..at + 11] == b"ESP        " {
            bytes[at..at + 11].copy_from_slice(b"\x1b[2J\x07\xc2\x9b\n   ");
        }
        if &bytes[at..at + 11] == b"BOOTX64 EFI" {
            bytes[at..at + 11].copy_from_slice(b"BOOT\x1b[4 EFI");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.img");
    std::fs::write(&path, bytes).unwrap();
    let report = Report::of_path(&path, &OpenOptions::new()).unwrap();
    assert_eq!(report.format.as_str(), "raw");
    let text = report.to_string();
    assert!(text.contains("fat12, label \"\\u{1b}[2J"), "{text}");
    assert!(text.contains("BOOT\\u{1b}[4.EFI"), "{text}");
    for line in text.lines() {
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    let own = &json["blockform"];
    assert_eq!(own["contents"]["filesystems"][0]["type"], "fat12");
    assert_eq!(own["contents"]["efi"][0]["programs"][0]["signed"], true);
    assert_eq!(own["properties"]["hw_firmware_type"], "uefi");
    assert_eq!(own["properties"]["min_disk"], "1");
    assert!(report.to_json().is_ascii());
}

#[test]
fn a_description_has_a_table_of_partitions() {
    let report = Report::of_path(testdata("content/mbr-logical.img"), &OpenOptions::new()).unwrap();
    let text = report.to_string();
    let table = "    MBR, disk signature 12345678\n    \
                 NR  TYPE        START  SIZE    CONTENT  LABEL\n    \
                 1   Linux       4096   8 KiB   -        -\n    \
                 2   extended    16384  40 KiB  -        -\n    \
                 5   Linux swap  20480  8 KiB   -        -\n    \
                 6   Linux LVM   32768  8 KiB   -        -\n";
    assert!(text.contains(table), "{text}");
}

#[test]
fn what_lies_in_closed_files_or_is_encrypted_is_not_described() {
    let folder = root().join("testdata/qcow2/good");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(report) = Report::of_path(&path, &OpenOptions::new()) else {
            continue;
        };
        if report.info.encryption.is_some() || report.backing().is_some() {
            seen += 1;
            let told = report.warnings.join("\n");
            assert!(!told.contains("is not known"), "{}: {told}", path.display());
            if report.info.encryption.is_some() {
                assert_eq!(report.contents, None, "{}", path.display());
            }
        }
    }
    assert!(seen > 2);
}

#[test]
fn a_vmdk_says_what_openstack_has_to_know_of_it() {
    let folder = root().join("testdata/vmdk/good");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(report) = Report::of_path(&path, &OpenOptions::new()) else {
            continue;
        };
        let Some(Value::Map(specific)) = &report.info.specific else {
            continue;
        };
        let kind = specific.iter().find(|(name, _)| *name == "create-type");
        let Some((_, Value::Name(kind))) = kind else {
            continue;
        };
        let want = match kind.as_str().unwrap() {
            "monolithicSparse" => Some("sparse"),
            "streamOptimized" => Some("streamOptimized"),
            "monolithicFlat" | "vmfs" => Some("preallocated"),
            _ => None,
        };
        let mut properties = report.properties.iter();
        let ours = properties.find(|(name, _)| *name == "vmware_disktype");
        assert_eq!(
            ours.map(|(_, value)| value.as_str()),
            want,
            "{}",
            path.display()
        );
        seen += usize::from(want.is_some());
    }
    assert!(seen > 2);
}

#[test]
fn boot_records_of_other_programs() {
    for (file, code) in [
        ("/usr/lib/syslinux/mbr/mbr.bin", BootCode::Syslinux),
        ("/usr/lib/syslinux/mbr/gptmbr.bin", BootCode::Syslinux),
        ("/usr/lib/ISOLINUX/isohdpfx.bin", BootCode::Isolinux),
        ("/usr/lib/grub/i386-pc/boot.img", BootCode::Grub),
    ] {
        let Ok(program) = std::fs::read(file) else {
            skipped(format_args!("there is no {file}"));
            continue;
        };
        let mut disk = std::fs::read(testdata("content/mbr-logical.img")).unwrap();
        let len = program.len().min(440);
        disk[..len].copy_from_slice(&program[..len]);
        let contents = contents_in(&disk);
        assert_eq!(contents.mbr.unwrap().boot_code, Some(code), "{file}");
    }
}
