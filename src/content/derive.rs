//! From what was found to what follows from it.

use crate::content::kind::{self, BIOS_BOOT, ESP, LINUX, MSR, WINDOWS_RECOVERY};
use crate::content::{
    BootCode, Confidence, Contents, EfiVolume, Fact, FilesystemKind, Finding, Firmware, OsType,
    Partition, PartitionType,
};

use Confidence::{High, Low, Medium};

/// Conclusions from the contents, the surest first.
pub(super) fn findings(contents: &Contents) -> Vec<Finding> {
    let mut list = List(Vec::new());
    list.boot_record(contents);
    for partition in &contents.partitions {
        list.partition(partition, contents);
    }
    list.boot_catalogue(contents);
    for volume in &contents.efi {
        list.efi(volume, contents);
    }
    list.filesystems(contents);
    list.os_release(contents);
    let mut findings = list.0;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.confidence));
    findings
}

struct List(Vec<Finding>);

impl List {
    fn add(&mut self, fact: Fact, source: impl Into<String>, confidence: Confidence) {
        let finding = Finding {
            fact,
            source: source.into(),
            confidence,
        };
        if !self.0.contains(&finding) {
            self.0.push(finding);
        }
    }

    fn boot_record(&mut self, contents: &Contents) {
        let Some(mbr) = &contents.mbr else {
            return;
        };
        let is_active = contents.partitions.iter().any(|p| p.active);
        let Some(code) = mbr.boot_code else {
            return;
        };
        let source = format!("the boot record has the program of {}", code.as_str());
        let confidence = match code {
            BootCode::Grub | BootCode::GrubLegacy | BootCode::Isolinux | BootCode::Lilo => High,
            // These start the active partition. They also stand on disks that are not bootable.
            BootCode::Syslinux | BootCode::Windows | BootCode::FreeBsd if is_active => Medium,
            _ => Low,
        };
        self.add(Fact::Firmware(Firmware::Bios), source, confidence);
    }

    fn partition(&mut self, partition: &Partition, contents: &Contents) {
        let number = partition.number;
        let kind = &partition.kind;
        let of_type = |what: &str| format!("partition {number} has the type {what}");
        let is_esp = kind.is_guid(ESP) || *kind == PartitionType::Mbr(0xef);
        let is_read = contents.efi.iter().any(|v| v.offset == partition.offset);
        // A partition of a CD is its boot image, which the catalogue lists.
        if is_esp && !is_read && contents.iso.is_none() {
            let source = of_type("EFI system, without \\EFI");
            self.add(Fact::Firmware(Firmware::Uefi), source, Low);
        }
        if kind.is_guid(BIOS_BOOT) {
            let source = of_type("BIOS boot");
            self.add(Fact::Firmware(Firmware::Bios), source, Low);
        }
        if kind.is_guid(MSR) || kind.is_guid(WINDOWS_RECOVERY) {
            let source = of_type(kind.name().unwrap_or_default());
            self.add(Fact::OsType(OsType::Windows), source, Medium);
        }
        if let PartitionType::Gpt(guid) = kind {
            if let Some(architecture) = kind::architecture_of(guid) {
                let name = kind.name().unwrap_or_default();
                let source = of_type(&format!("{name} for {}", architecture.as_str()));
                self.add(Fact::Architecture(architecture), source.clone(), Medium);
                self.add(Fact::OsType(OsType::Linux), source, Medium);
            }
            if guid == LINUX {
                let source = of_type("Linux filesystem");
                self.add(Fact::OsType(OsType::Linux), source, Low);
            }
        }
        let filesystem = partition.filesystem.as_ref().map(|f| f.kind);
        if partition.active && filesystem == Some(FilesystemKind::Ntfs) {
            let source = format!("partition {number} is active and has ntfs");
            self.add(Fact::OsType(OsType::Windows), source, Medium);
        }
    }

    fn boot_catalogue(&mut self, contents: &Contents) {
        let boot = contents.iso.iter().flat_map(|iso| &iso.boot);
        for catalogue in boot {
            for entry in catalogue.entries.iter().filter(|entry| entry.bootable) {
                let source = format!(
                    "the boot catalogue has an entry for {}",
                    entry.platform_name()
                );
                let confidence = match catalogue.checksum_is_right {
                    true => Medium,
                    false => Low,
                };
                if entry.is_bios() {
                    self.add(Fact::Firmware(Firmware::Bios), source, confidence);
                } else if entry.is_efi() {
                    self.add(Fact::Firmware(Firmware::Uefi), source, confidence);
                }
            }
        }
    }

    fn efi(&mut self, volume: &EfiVolume, contents: &Contents) {
        let offset = volume.offset;
        let programs = volume.programs.iter().filter(|p| p.is_default());
        for program in programs {
            let name = program.name.escaped();
            let source = format!("\\EFI\\BOOT\\{name} at byte {offset}");
            if let Some(architecture) = program.architecture {
                self.add(Fact::Architecture(architecture), source.clone(), High);
            }
            self.add(Fact::Firmware(Firmware::Uefi), source.clone(), High);
            self.add(Fact::SignedLoader(program.is_signed), source, High);
        }
        for vendor in &volume.vendors {
            let source = format!("\\EFI\\{} at byte {offset}", vendor.escaped());
            self.add(Fact::Firmware(Firmware::Uefi), source.clone(), Medium);
            if vendor.as_bytes().eq_ignore_ascii_case(b"Microsoft") && contents.iso.is_none() {
                self.add(Fact::OsType(OsType::Windows), source, High);
            }
        }
    }

    fn filesystems(&mut self, contents: &Contents) {
        let partitions = contents.partitions.iter();
        let in_partitions = partitions.filter_map(|p| p.filesystem.as_ref());
        for filesystem in contents.filesystems.iter().chain(in_partitions) {
            use FilesystemKind as Kind;
            let is_of_linux = filesystem.kind.is_ext()
                || matches!(
                    filesystem.kind,
                    Kind::Xfs | Kind::Btrfs | Kind::F2fs | Kind::Swap | Kind::Lvm2 | Kind::MdRaid
                );
            if is_of_linux {
                let source = format!("there is {}", filesystem.kind.as_str());
                self.add(Fact::OsType(OsType::Linux), source, Medium);
            }
        }
    }

    fn os_release(&mut self, contents: &Contents) {
        let Some(release) = &contents.os_release else {
            return;
        };
        let source = "/etc/os-release";
        self.add(Fact::OsType(OsType::Linux), source, High);
        self.add(Fact::OsDistro(release.id.clone()), source, High);
        if let Some(version) = &release.version_id {
            self.add(Fact::OsVersion(version.clone()), source, High);
        }
    }
}
