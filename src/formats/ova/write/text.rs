//! The text of a descriptor, in the order and with the elements that ovftool writes. Those of an item
//! are in the order of the alphabet: the schema of CIM asks for that.

use crate::ondisk::xml::escaped;

use super::OvaOptions;

/// Fields of the disk in a descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct DiskText<'a> {
    /// The name of its file.
    pub(super) file: &'a str,
    /// The size of its file in bytes.
    pub(super) file_size: u64,
    /// Its virtual size in bytes.
    pub(super) capacity: u64,
}

/// The descriptor of a machine called `name` with this disk.
pub(super) fn descriptor(options: &OvaOptions, name: &str, disk: DiskText<'_>) -> String {
    let mut out = Lines::default();
    out.line(0, r#"<?xml version="1.0" encoding="UTF-8"?>"#);
    out.line(
        0,
        concat!(
            r#"<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1""#,
            r#" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1""#,
            r#" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData""#,
            r#" xmlns:vmw="http://www.vmware.com/schema/ovf""#,
            r#" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData""#,
            r#" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">"#,
        ),
    );
    out.line(1, "<References>");
    out.line(
        2,
        &format!(
            r#"<File ovf:href="{}" ovf:id="file1" ovf:size="{}"/>"#,
            escaped(disk.file),
            disk.file_size
        ),
    );
    out.line(1, "</References>");
    out.line(1, "<DiskSection>");
    out.line(2, "<Info>Virtual disks</Info>");
    out.line(
        2,
        &format!(
            concat!(
                r#"<Disk ovf:capacity="{}" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk1""#,
                r#" ovf:fileRef="file1""#,
                r#" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>"#,
            ),
            disk.capacity
        ),
    );
    out.line(1, "</DiskSection>");
    if let Some(network) = &options.network {
        let network = escaped(network);
        out.line(1, "<NetworkSection>");
        out.line(2, "<Info>Logical networks</Info>");
        out.line(2, &format!(r#"<Network ovf:name="{network}">"#));
        out.text(3, "Description", &network);
        out.line(2, "</Network>");
        out.line(1, "</NetworkSection>");
    }
    system(&mut out, options, &escaped(name));
    out.line(0, "</Envelope>");
    out.0
}

fn system(out: &mut Lines, options: &OvaOptions, name: &str) {
    out.line(1, &format!(r#"<VirtualSystem ovf:id="{name}">"#));
    out.text(2, "Info", "A virtual machine");
    out.text(2, "Name", name);
    let (id, kind) = &options.os;
    out.line(
        2,
        &format!(r#"<OperatingSystemSection ovf:id="{id}" vmw:osType="{kind}">"#),
    );
    out.text(3, "Info", "The operating system of the guest");
    out.line(2, "</OperatingSystemSection>");
    out.line(2, "<VirtualHardwareSection>");
    out.text(3, "Info", "Virtual hardware");
    out.line(3, "<System>");
    out.text(4, "vssd:ElementName", "Virtual Hardware Family");
    out.text(4, "vssd:InstanceID", "0");
    out.text(4, "vssd:VirtualSystemIdentifier", name);
    let hardware = format!("vmx-{:02}", options.hardware());
    out.text(4, "vssd:VirtualSystemType", &hardware);
    out.line(3, "</System>");
    let cpus = options.cpus.to_string();
    out.item(&[
        ("AllocationUnits", "hertz * 10^6"),
        ("Description", "Number of virtual CPUs"),
        ("ElementName", &format!("{cpus} virtual CPU(s)")),
        ("InstanceID", "1"),
        ("ResourceType", "3"),
        ("VirtualQuantity", &cpus),
    ]);
    let memory = (options.memory >> 20).to_string();
    out.item(&[
        ("AllocationUnits", "byte * 2^20"),
        ("Description", "Memory size"),
        ("ElementName", &format!("{memory}MB of memory")),
        ("InstanceID", "2"),
        ("ResourceType", "4"),
        ("VirtualQuantity", &memory),
    ]);
    let (kind, model) = options.controller.resource();
    let words = options.controller.kind();
    out.item(&[
        ("Address", "0"),
        ("Description", &format!("{words} controller")),
        ("ElementName", &format!("{words} controller 0")),
        ("InstanceID", "3"),
        ("ResourceSubType", model),
        ("ResourceType", &kind.to_string()),
    ]);
    out.item(&[
        ("AddressOnParent", "0"),
        ("ElementName", "Hard disk 1"),
        ("HostResource", "ovf:/disk/vmdisk1"),
        ("InstanceID", "4"),
        ("Parent", "3"),
        ("ResourceType", "17"),
    ]);
    if let Some(network) = &options.network {
        out.item(&[
            ("AddressOnParent", "7"),
            ("AutomaticAllocation", "true"),
            ("Connection", &escaped(network)),
            ("ElementName", "Network adapter 1"),
            ("InstanceID", "5"),
            ("ResourceSubType", "E1000"),
            ("ResourceType", "10"),
        ]);
    }
    let mut config = |key, value| {
        let config =
            format!(r#"<vmw:Config ovf:required="false" vmw:key="{key}" vmw:value="{value}"/>"#);
        out.line(3, &config);
    };
    config("firmware", if options.efi { "efi" } else { "bios" });
    if options.secure_boot {
        config("bootOptions.efiSecureBootEnabled", "true");
    }
    out.line(2, "</VirtualHardwareSection>");
    out.line(1, "</VirtualSystem>");
}

/// Text, line by line.
#[derive(Debug, Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, depth: usize, text: &str) {
        self.0.extend(std::iter::repeat_n("  ", depth));
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn text(&mut self, depth: usize, name: &str, text: &str) {
        self.line(depth, &format!("<{name}>{text}</{name}>"));
    }

    fn item(&mut self, fields: &[(&str, &str)]) {
        self.line(3, "<Item>");
        for (name, text) in fields {
            self.text(4, &format!("rasd:{name}"), text);
        }
        self.line(3, "</Item>");
    }
}
