//! The descriptor (DSP0243, "Open Virtualization Format Specification", versions 1 and 2, and the 0.9
//! that VirtualBox still writes): what an appliance consists of.

use std::collections::HashMap;

use crate::format_id::FormatId;
use crate::name::ImageName;
use crate::ondisk::xml::{self, Element};

/// The most files that a descriptor may list, and the most disks.
const MAX_FILES: usize = 2048;

/// Content of a descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Package {
    /// The files of the package (`References`).
    pub files: Vec<PackageFile>,
    /// The disks (`DiskSection`), in order.
    pub disks: Vec<PackageDisk>,
    /// The virtual machines.
    pub systems: Vec<VirtualSystem>,
    /// Warnings about the descriptor, for a person to read.
    pub warnings: Vec<String>,
}

/// A file of a package (`File`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackageFile {
    /// `id`.
    pub id: ImageName,
    /// Its name (`href`): a name, and nothing is opened by having it.
    pub href: ImageName,
    /// Its size in bytes as it stands in the package, where the descriptor says it.
    pub size: Option<u64>,
    /// Compression, such as `gzip`, if there is any.
    pub compression: Option<ImageName>,
    /// The bytes of each of its chunks but the last, if it is split.
    pub chunk_size: Option<u64>,
}

/// A disk of a package (`Disk`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackageDisk {
    /// `diskId`.
    pub id: ImageName,
    /// The file that holds it; none for a disk that is empty at first.
    pub file: Option<PackageFile>,
    /// Its size in bytes, as far as the descriptor says a number.
    pub capacity: Option<u64>,
    /// About how many bytes of it are used.
    pub populated_size: Option<u64>,
    /// The URI that names its format.
    pub format_uri: Option<ImageName>,
    /// The format that this URI means, if it is known.
    pub format: Option<FormatId>,
    /// The `diskId` of the disk that shows through where this one records nothing.
    pub parent: Option<ImageName>,
    /// Attachment, if a virtual machine has the disk.
    pub attachment: Option<Attachment>,
}

/// Attachment of a disk to a virtual machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attachment {
    /// The `id` of the virtual machine.
    pub system: ImageName,
    /// The kind of its controller: `ide`, `scsi`, `sata`, `nvme`, or another.
    pub bus: Option<&'static str>,
    /// The controller's model (`ResourceSubType`), such as `lsilogic`.
    pub controller: Option<ImageName>,
    /// Number of the controller among those of its kind (`Address`).
    pub controller_address: Option<u64>,
    /// Its place on the controller (`AddressOnParent`).
    pub unit: Option<u64>,
}

/// A virtual machine (`VirtualSystem`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VirtualSystem {
    /// `id`.
    pub id: ImageName,
    /// Its name.
    pub name: Option<ImageName>,
    /// The guest's operating system: the number of CIM, what VMware or VirtualBox call it, and words.
    pub os_id: Option<u64>,
    /// Name of the operating system by VMware or VirtualBox.
    pub os_type: Option<ImageName>,
    /// The operating system in words.
    pub os_description: Option<ImageName>,
    /// The hardware it is made for, such as `vmx-10`.
    pub hardware: Option<ImageName>,
    /// Number of processors.
    pub cpus: Option<u64>,
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Boots by UEFI.
    pub efi: bool,
    /// Secure boot: the firmware verifies boot programs.
    pub secure_boot: bool,
    /// The product: its name, and who makes it.
    pub product: Option<ImageName>,
    /// Vendor of the product.
    pub vendor: Option<ImageName>,
    /// The product's version.
    pub version: Option<ImageName>,
    /// The keys of the properties that can be set.
    pub properties: Vec<ImageName>,
}

/// Recognises the start of a descriptor.
pub(super) fn recognize(head: &[u8]) -> bool {
    let Some(text) = xml::decoded_start(head) else {
        return false;
    };
    let mut rest = text.trim_start();
    // Declarations, comments and processing instructions come before the root.
    loop {
        let end = match rest {
            r if r.starts_with("<?") => "?>",
            r if r.starts_with("<!--") => "-->",
            _ => break,
        };
        match rest.split_once(end) {
            Some((_, after)) => rest = after.trim_start(),
            None => return false,
        }
    }
    let Some(tag) = rest.strip_prefix('<') else {
        return false;
    };
    let name = tag.split(|c: char| c.is_whitespace() || c == '>' || c == '/');
    let name = name.into_iter().next().unwrap_or_default();
    let local = name.rsplit(':').next().unwrap_or_default();
    local == "Envelope" && (tag.contains("ovf") || tag.contains("envelope"))
}

impl Package {
    /// Reads a descriptor.
    ///
    /// # Errors
    /// The fault, in words that continue a sentence after the descriptor's name.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let root = xml::parse(&xml::decoded(bytes)?)?;
        if root.name != "Envelope" {
            return Err("is not an OVF envelope".to_owned());
        }
        let mut package = Package::default();
        let references = root.children.iter().filter(|c| c.name == "References");
        for file in references.flat_map(|references| &references.children) {
            if file.name == "File" {
                package.add_file(file)?;
            }
        }
        for disk in root
            .descendants()
            .filter(|element| element.name == "Disk" && element.attribute("diskId").is_some())
        {
            package.add_disk(disk)?;
        }
        for system in root.descendants() {
            let old = system.name == "Content" && type_of(system) == "VirtualSystem";
            if system.name == "VirtualSystem" || old {
                package.add_system(system);
            }
        }
        Ok(package)
    }

    fn add_file(&mut self, file: &Element) -> Result<(), String> {
        let href = file.attribute("href").filter(|href| !href.is_empty());
        let href = href.ok_or("has a File without href")?;
        let id = file.attribute("id").unwrap_or(href);
        if self.files.iter().any(|known| known.id == id.into()) {
            return Err(format!(
                "has two files called {}",
                ImageName::from(id).quoted()
            ));
        }
        check_count(self.files.len())?;
        let number = |name| file.attribute(name).and_then(|text| text.parse().ok());
        let compression = file.attribute("compression");
        let compression = compression.filter(|c| !c.is_empty() && *c != "identity");
        self.files.push(PackageFile {
            id: id.into(),
            href: href.into(),
            size: number("size"),
            compression: compression.map(ImageName::from),
            chunk_size: number("chunkSize").filter(|size| *size > 0),
        });
        Ok(())
    }

    fn add_disk(&mut self, disk: &Element) -> Result<(), String> {
        let id = ImageName::from(disk.attribute("diskId").unwrap_or_default());
        if self.disks.iter().any(|known| known.id == id) {
            return Err(format!("has two disks called {}", id.quoted()));
        }
        check_count(self.disks.len())?;
        let file = match disk.attribute("fileRef").filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => {
                let file = self.files.iter().find(|file| file.id == name.into());
                // oVirt refers to files by their names.
                let file = file.or_else(|| self.files.iter().find(|f| f.href == name.into()));
                let file = file.ok_or_else(|| {
                    let (id, name) = (id.quoted(), ImageName::from(name));
                    format!(
                        "has the disk {id} in the file {}, which it does not list",
                        name.quoted()
                    )
                })?;
                Some(file.clone())
            }
        };
        let units = disk.attribute("capacityAllocationUnits").unwrap_or("byte");
        let capacity = disk.attribute("capacity").map(|text| bytes(text, units));
        if capacity == Some(None) {
            self.warnings.push(format!(
                "the capacity of the disk {} is not a number",
                id.quoted()
            ));
        }
        let uri = disk.attribute("format").filter(|uri| !uri.is_empty());
        let parent = disk.attribute("parentRef").filter(|name| !name.is_empty());
        let format = match disk.attribute("volume-format") {
            Some("RAW") => Some(FormatId::new("raw")),
            Some("COW") => Some(FormatId::new("qcow2")),
            _ => uri.and_then(format_of),
        };
        self.disks.push(PackageDisk {
            id,
            file,
            capacity: capacity.flatten(),
            populated_size: disk.attribute("populatedSize").and_then(|t| t.parse().ok()),
            format_uri: uri.map(ImageName::from),
            format,
            parent: parent.map(ImageName::from),
            attachment: None,
        });
        Ok(())
    }

    fn add_system(&mut self, element: &Element) {
        let mut system = VirtualSystem {
            id: element.attribute("id").unwrap_or_default().into(),
            name: element.child_text(&["Name"]).map(ImageName::from),
            ..VirtualSystem::default()
        };
        for section in &element.children {
            let kind = match section.name.as_str() {
                "Section" => type_of(section),
                name => name,
            };
            match kind {
                "OperatingSystemSection" => system.set_os(section),
                "VirtualHardwareSection" => self.add_hardware(section, &mut system),
                "ProductSection" => system.set_product(section),
                // VirtualBox repeats the machine in elements of its own.
                "Machine" => {
                    let firmware = section.descendants().find(|e| e.name == "Firmware");
                    let kind = firmware.and_then(|e| e.attribute("type"));
                    system.efi |= kind.is_some_and(|kind| kind.starts_with("EFI"));
                }
                _ => {}
            }
        }
        self.systems.push(system);
    }

    fn add_hardware(&mut self, section: &Element, system: &mut VirtualSystem) {
        if let Some(description) = section.child(&["System"]) {
            let kind = description.child_text(&["VirtualSystemType"]);
            system.hardware = kind.map(ImageName::from);
        }
        let items: Vec<Item<'_>> = section
            .children
            .iter()
            .filter(|e| matches!(e.name.as_str(), "Item" | "StorageItem"))
            .map(Item)
            .collect();
        let by_id: HashMap<&str, &Item<'_>> = items
            .iter()
            .filter_map(|item| Some((item.text(&["InstanceID", "InstanceId"])?, item)))
            .collect();
        for item in &items {
            match item.number(&["ResourceType"]) {
                Some(3) if system.cpus.is_none() => {
                    system.cpus = item.number(&["VirtualQuantity"]);
                }
                Some(4) if system.memory.is_none() => {
                    let units = item.text(&["AllocationUnits"]).unwrap_or("byte * 2^20");
                    let quantity = item.text(&["VirtualQuantity"]);
                    system.memory = quantity.and_then(|text| bytes(text, units));
                }
                Some(17 | 31) => self.attach(item, &by_id, &system.id),
                _ => {}
            }
        }
        for config in section.descendants().filter(|e| e.name == "Config") {
            match (config.attribute("key"), config.attribute("value")) {
                (Some("firmware"), Some(value)) => system.efi = value.eq_ignore_ascii_case("efi"),
                (Some("bootOptions.efiSecureBootEnabled"), Some(value)) => {
                    system.secure_boot = value.eq_ignore_ascii_case("true");
                }
                _ => {}
            }
        }
    }

    /// Notes where the disk hangs that an item stands for.
    fn attach(&mut self, item: &Item<'_>, items: &HashMap<&str, &Item<'_>>, system: &ImageName) {
        // `ovf:/disk/vmdisk1`, and `/disk/vmdisk1` of old.
        let Some(resource) = item.text(&["HostResource"]) else {
            return;
        };
        let path = resource.strip_prefix("ovf:").unwrap_or(resource);
        let mut path = path.trim_start_matches('/').splitn(2, '/');
        let (kind, id) = (path.next(), path.next().map(ImageName::from));
        let disk = self.disks.iter_mut().find(|disk| match kind {
            Some("disk") => Some(&disk.id) == id.as_ref(),
            Some("file") => disk.file.as_ref().map(|file| &file.id) == id.as_ref(),
            _ => false,
        });
        let Some(disk) = disk.filter(|disk| disk.attachment.is_none()) else {
            return;
        };
        let parent = item.text(&["Parent"]);
        let controller = parent.and_then(|id| items.get(id));
        let sub_type = controller.and_then(|item| item.text(&["ResourceSubType"]));
        let nvme = sub_type.is_some_and(|name| name.to_ascii_lowercase().contains("nvme"));
        disk.attachment = Some(Attachment {
            system: system.clone(),
            bus: controller.map(|item| match item.number(&["ResourceType"]) {
                Some(5) => "ide",
                Some(6) => "scsi",
                Some(20) if nvme => "nvme",
                Some(20)
                    if sub_type.is_none_or(|name| name.to_ascii_lowercase().contains("ahci")) =>
                {
                    "sata"
                }
                _ => "other",
            }),
            controller: sub_type.map(ImageName::from),
            controller_address: controller.and_then(|item| item.number(&["Address", "BusNumber"])),
            unit: item.number(&["AddressOnParent"]),
        });
    }

    /// The disks that are no other disk's parent.
    pub(super) fn is_parent(&self, disk: &PackageDisk) -> bool {
        self.disks
            .iter()
            .any(|other| other.parent.as_ref() == Some(&disk.id))
    }
}

impl VirtualSystem {
    fn set_os(&mut self, section: &Element) {
        self.os_id = section.attribute("id").and_then(|text| text.parse().ok());
        let own = section.attribute("osType");
        let own = own.or_else(|| section.child_text(&["OSType"]));
        self.os_type = own.map(ImageName::from);
        self.os_description = section.child_text(&["Description"]).map(ImageName::from);
    }

    fn set_product(&mut self, section: &Element) {
        let text = |name| section.child_text(&[name]).map(ImageName::from);
        self.product = self.product.take().or_else(|| text("Product"));
        self.vendor = self.vendor.take().or_else(|| text("Vendor"));
        self.version = self.version.take().or_else(|| text("Version"));
        let properties = section.descendants().filter(|e| e.name == "Property");
        let keys = properties.filter_map(|property| property.attribute("key"));
        self.properties.extend(keys.map(ImageName::from));
    }
}

fn check_count(count: usize) -> Result<(), String> {
    match count < MAX_FILES {
        true => Ok(()),
        false => Err(format!("has more than {MAX_FILES} files or disks")),
    }
}

/// A device (`Item`).
struct Item<'a>(&'a Element);

impl<'a> Item<'a> {
    fn text(&self, names: &[&str]) -> Option<&'a str> {
        self.0.child_text(names)
    }

    fn number(&self, names: &[&str]) -> Option<u64> {
        self.text(names)?.parse().ok()
    }
}

/// Type of a section by `xsi:type`, without `_Type` and its prefix.
fn type_of(element: &Element) -> &str {
    let kind = element.attribute("type").unwrap_or_default();
    let local = kind.rsplit(':').next().unwrap_or_default();
    local.strip_suffix("_Type").unwrap_or(local)
}

/// A number of units in bytes. Units are `byte * 2^20`, `byte*10^6`, or the words of old (DSP0004,
/// annex C); a fraction or a property's name is not a number.
fn bytes(number: &str, units: &str) -> Option<u64> {
    let number: u64 = number.trim().parse().ok()?;
    let plain: String = units.chars().filter(|c| !c.is_whitespace()).collect();
    let plain = plain.to_ascii_lowercase();
    let unit = match plain.as_str() {
        "" | "byte" | "bytes" => 1,
        "kilobytes" | "kb" => 1 << 10,
        "megabytes" | "mb" => 1 << 20,
        "gigabytes" | "gb" => 1 << 30,
        _ => {
            let factor = plain.strip_prefix("byte")?.strip_prefix('*')?;
            let (base, exponent) = factor.split_once('^').unwrap_or((factor, "1"));
            let (base, exponent): (u64, u32) = (base.parse().ok()?, exponent.parse().ok()?);
            base.checked_pow(exponent)?
        }
    };
    number.checked_mul(unit)
}

/// The format that a URI means. Producers spell them freely: what counts is the format's name in it.
fn format_of(uri: &str) -> Option<FormatId> {
    let uri = uri.to_ascii_lowercase();
    // A longer word comes before one that it holds.
    const WORDS: [(&str, &str); 8] = [
        ("vmdk", "vmdk"),
        ("vhdx", "vhdx"),
        ("vhd", "vhd"),
        ("virtual-hard-disk", "vhd"),
        ("vdi", "vdi"),
        ("qcow", "qcow2"),
        ("iso9660", "raw"),
        ("raw", "raw"),
    ];
    let word = WORDS.iter().find(|(word, _)| uri.contains(word));
    word.map(|(_, format)| FormatId::new(format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities_in_every_unit() {
        for (number, units, want) in [
            ("30", "byte * 2^20", Some(30 << 20)),
            ("30", "byte*2^30", Some(30 << 30)),
            ("8", "byte * 10^9", Some(8_000_000_000)),
            ("12582912", "byte", Some(12_582_912)),
            ("2", "MegaBytes", Some(2 << 20)),
            ("2", "GigaBytes", Some(2 << 30)),
            ("${size}", "byte", None),
            ("1.5", "byte * 2^30", None),
            ("1", "byte * 2^64", None),
            ("18446744073709551615", "byte * 2^1", None),
            ("1", "parsec", None),
        ] {
            assert_eq!(bytes(number, units), want, "{number} {units}");
        }
    }

    #[test]
    fn a_descriptor_is_known_by_its_root() {
        for (text, known) in [
            (
                "<?xml version=\"1.0\"?>\n<!-- <x> --><ovf:Envelope xmlns:ovf=\"u\">",
                true,
            ),
            (
                "\u{feff}<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"",
                true,
            ),
            (
                "<soap:Envelope xmlns:soap=\"http://schemas.xmlsoap.org/soap/\">",
                false,
            ),
            ("<html>ovf:Envelope</html>", false),
            ("# Disk DescriptorFile", false),
        ] {
            assert_eq!(recognize(text.as_bytes()), known, "{text}");
        }
    }

    #[test]
    fn who_hangs_where() {
        let text = r#"<o:Envelope xmlns:o="u"><o:References><o:File o:href="a.vmdk" o:id="f" o:size="7"
            o:compression="gzip"/></o:References>
            <Section xsi:type="ovf:DiskSection_Type"><Disk o:capacity="3" o:diskId="d" o:fileRef="f"
            o:capacityAllocationUnits="byte * 2^10" o:format="http://x/vmdk.html#sparse"/></Section>
            <Content xsi:type="ovf:VirtualSystem_Type" o:id="vm">
            <Section xsi:type="ovf:OperatingSystemSection_Type" o:id="96"/>
            <Section xsi:type="ovf:VirtualHardwareSection_Type">
            <Item><r:InstanceId>3</r:InstanceId><r:ResourceType>6</r:ResourceType>
            <r:ResourceSubType>lsilogic</r:ResourceSubType><r:BusNumber>1</r:BusNumber></Item>
            <Item><r:HostResource>/disk/d</r:HostResource><r:Parent>3</r:Parent>
            <r:AddressOnParent>2</r:AddressOnParent><r:ResourceType>17</r:ResourceType></Item>
            <v:Config v:key="firmware" v:value="efi"/></Section></Content></o:Envelope>"#;
        let package = Package::parse(text.as_bytes()).unwrap();
        let disk = &package.disks[0];
        assert_eq!(disk.capacity, Some(3072));
        assert_eq!(disk.format.unwrap().as_str(), "vmdk");
        let file = disk.file.as_ref().unwrap();
        assert_eq!((file.size, file.compression.is_some()), (Some(7), true));
        let place = disk.attachment.as_ref().unwrap();
        assert_eq!((place.bus, place.unit), (Some("scsi"), Some(2)));
        assert_eq!(place.controller_address, Some(1));
        assert_eq!(package.systems[0].os_id, Some(96));
        assert!(package.systems[0].efi);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let envelope = |inside: &str| format!("<Envelope>{inside}</Envelope>");
        for (text, words) in [
            ("<Envelop/>".to_owned(), "not an OVF envelope"),
            (
                envelope("<References><File id='a'/></References>"),
                "without href",
            ),
            (
                envelope("<References><File id='a' href='b'/><File id='a' href='c'/></References>"),
                "two files",
            ),
            (
                envelope("<DiskSection><Disk diskId='a'/><Disk diskId='a'/></DiskSection>"),
                "two disks",
            ),
            (
                envelope("<DiskSection><Disk diskId='a' fileRef='x'/></DiskSection>"),
                "does not list",
            ),
        ] {
            let error = Package::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
