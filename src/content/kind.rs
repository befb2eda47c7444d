//! Types of partitions: the numbers of boot records and the GUIDs of GPT.

use crate::content::Architecture;

/// The name of a type in a master boot record; `None` for one that is not known.
pub fn mbr_type_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0x01 => "FAT12",
        0x04 | 0x06 | 0x0e => "FAT16",
        0x05 | 0x0f | 0x85 => "extended",
        0x07 => "NTFS or exFAT",
        0x0b | 0x0c => "FAT32",
        0x11 | 0x14 | 0x16 | 0x17 | 0x1b | 0x1c | 0x1e => "hidden FAT or NTFS",
        0x27 => "Windows recovery",
        0x41 => "PowerPC PReP boot",
        0x42 => "Windows dynamic disk",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8e => "Linux LVM",
        0x96 | 0xcd => "ISO 9660",
        0xa5 => "FreeBSD",
        0xa6 => "OpenBSD",
        0xa8 | 0xab | 0xaf => "macOS",
        0xa9 => "NetBSD",
        0xbe | 0xbf => "Solaris",
        0xe8 => "LUKS",
        0xea => "Linux /boot",
        0xee => "GPT",
        0xef => "EFI system",
        0xfb | 0xfc => "VMware",
        0xfd => "Linux RAID",
        _ => return None,
    })
}

/// The GUID of an EFI system partition.
pub(super) const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
/// The GUID of the partition from which GRUB starts on a BIOS.
pub(super) const BIOS_BOOT: &str = "21686148-6449-6E6F-744E-656564454649";
/// The GUID of the partition that Windows reserves.
pub(super) const MSR: &str = "E3C9E316-0B5C-4DB8-817D-F92DF00215AE";
/// The GUID of Windows' recovery environment.
pub(super) const WINDOWS_RECOVERY: &str = "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC";
/// The GUID of data of Linux.
pub(super) const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

const GPT_TYPES: &[(&str, &str)] = &[
    (ESP, "EFI system"),
    (BIOS_BOOT, "BIOS boot"),
    (MSR, "Microsoft reserved"),
    (WINDOWS_RECOVERY, "Windows recovery"),
    (
        "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
        "Microsoft basic data",
    ),
    (
        "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3",
        "Microsoft LDM metadata",
    ),
    ("AF9B60A0-1431-4F62-BC68-3311714A69AD", "Microsoft LDM data"),
    (
        "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D",
        "Microsoft Storage Spaces",
    ),
    (
        "024DEE41-33E7-11D3-9D69-0008C781F39F",
        "MBR partition scheme",
    ),
    (LINUX, "Linux filesystem"),
    ("0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "Linux swap"),
    ("E6D6D379-F507-44C2-A23C-238F2A3DF928", "Linux LVM"),
    ("A19D880F-05FC-4D3B-A006-743F0F84911E", "Linux RAID"),
    ("CA7D7CCB-63ED-4C53-861C-1742536059CC", "LUKS"),
    ("933AC7E1-2EB4-4F13-B844-0E14E2AEF915", "Linux home"),
    ("3B8F8425-20E0-4F3B-907F-1A25A76F98E8", "Linux server data"),
    (
        "4D21B016-B534-45C2-A9FB-5C16E091FD2D",
        "Linux variable data",
    ),
    (
        "7EC6F557-3BC5-4ACA-B293-16EF5DF639D1",
        "Linux temporary data",
    ),
    (
        "BC13C2FF-59E6-4262-A352-B275FD6F7172",
        "Linux extended boot",
    ),
    ("8DA63339-0007-60C0-C436-083AC8230908", "Linux reserved"),
    ("9E1A2D38-C612-4316-AA26-8B49521E5A8B", "PowerPC PReP boot"),
    ("83BD6B9D-7F41-11DC-BE0B-001560B84F0F", "FreeBSD boot"),
    ("516E7CB4-6ECF-11D6-8FF8-00022D09712B", "FreeBSD data"),
    ("516E7CB5-6ECF-11D6-8FF8-00022D09712B", "FreeBSD swap"),
    ("516E7CB6-6ECF-11D6-8FF8-00022D09712B", "FreeBSD UFS"),
    ("516E7CBA-6ECF-11D6-8FF8-00022D09712B", "FreeBSD ZFS"),
    ("48465300-0000-11AA-AA11-00306543ECAC", "Apple HFS+"),
    ("7C3457EF-0000-11AA-AA11-00306543ECAC", "Apple APFS"),
    ("426F6F74-0000-11AA-AA11-00306543ECAC", "Apple boot"),
    ("6A898CC3-1DD2-11B2-99A6-080020736631", "ZFS"),
    ("AA31E02A-400F-11DB-9590-000C2911D1B8", "VMware VMFS"),
    ("9D275380-40AD-11DB-BF97-000C2911D1B8", "VMware diagnostic"),
    ("9198EFFC-31C0-11DB-8F78-000C2911D1B8", "VMware reserved"),
    ("FE3A2A5D-4F32-41A7-B725-ACCC3285A309", "ChromeOS kernel"),
    ("3CB8E202-3B7E-47DD-8A3C-7FF2A13CFCEC", "ChromeOS root"),
    ("5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6", "CoreOS usr"),
    ("3884DD41-8582-4404-B9A8-E9B84F2DF50E", "CoreOS root"),
    ("C95DC21A-DF0E-4340-8D7B-26CBFA9A03E0", "CoreOS OEM"),
];

/// Types of the Discoverable Partitions Specification of UAPI by processor: its root and its usr.
const DISCOVERABLE: &[(Architecture, &str, &str)] = &[
    (
        Architecture::Alpha,
        "6523F8AE-3EB1-4E2A-A05A-18B695AE656F",
        "E18CF08C-33EC-4C0D-8246-C6C6FB3DA024",
    ),
    (
        Architecture::I686,
        "44479540-F297-41B2-9AF7-D131D5F0458A",
        "75250D76-8CC6-458E-BD66-BD47CC81A812",
    ),
    (
        Architecture::X86_64,
        "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
        "8484680C-9521-48C6-9C11-B0720656F69E",
    ),
    (
        Architecture::Armv7l,
        "69DAD710-2CE4-4E3C-B16C-21A1D49ABED3",
        "7D0359A3-02B3-4F0A-865C-654403E70625",
    ),
    (
        Architecture::Aarch64,
        "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
        "B0E01050-EE5F-4390-949A-9101B17104E9",
    ),
    (
        Architecture::Ia64,
        "993D8D3D-F80E-4225-855A-9DAF8ED7EA97",
        "4301D2A6-4E3B-4B2A-BB94-9E0B2C4225EA",
    ),
    (
        Architecture::Loongarch64,
        "77055800-792C-4F94-B39A-98C91B762BB6",
        "E611C702-575C-4CBE-9A46-434FA0BF7E3F",
    ),
    (
        Architecture::Ppc,
        "1DE3F1EF-FA98-47B5-8DCD-4A860A654D78",
        "7D14FEC5-CC71-415D-9D6C-06BF0B3C3EAF",
    ),
    (
        Architecture::Ppc64,
        "912ADE1D-A839-4913-8964-A10EEE08FBD2",
        "2C9739E2-F068-46B3-9FD0-01C5A9AFBCCA",
    ),
    (
        Architecture::Ppc64le,
        "C31C45E6-3F39-412E-80FB-4809C4980599",
        "15BB03AF-77E7-4D4A-B12B-C0D084F7491C",
    ),
    (
        Architecture::Riscv32,
        "60D5A7FE-8E7D-435C-B714-3DD8162144E1",
        "B933FB22-5C3F-4F91-AF90-E2BB0FA50702",
    ),
    (
        Architecture::Riscv64,
        "72EC70A6-CF74-40E6-BD49-4BDA08E8F224",
        "BEAEC34B-8442-439B-A40B-984381ED097D",
    ),
    (
        Architecture::S390,
        "08A7ACEA-624C-4A20-91E8-6E0FA67D23F9",
        "CD0F869B-D0FB-4CA0-B141-9EA87CC78D66",
    ),
    (
        Architecture::S390x,
        "5EEAD9A9-FE09-4A1E-A1D7-520D00531306",
        "8A4F5770-50AA-4ED3-874A-99B710DB6FEA",
    ),
];

/// The name of a type in a GUID partition table, by its GUID in capitals; `None` for one that is not
/// known.
pub fn gpt_type_name(guid: &str) -> Option<&'static str> {
    let plain = GPT_TYPES.iter().find(|(known, _)| *known == guid);
    let root = || DISCOVERABLE.iter().any(|(_, root, _)| *root == guid);
    let usr = || DISCOVERABLE.iter().any(|(_, _, usr)| *usr == guid);
    match plain {
        Some((_, name)) => Some(name),
        None if root() => Some("Linux root"),
        None if usr() => Some("Linux usr"),
        None => None,
    }
}

/// The processor that a partition is for which Linux finds by its type.
pub(super) fn architecture_of(guid: &str) -> Option<Architecture> {
    let mut all = DISCOVERABLE.iter();
    all.find(|(_, root, usr)| *root == guid || *usr == guid)
        .map(|(architecture, _, _)| *architecture)
}
