//! Description of an appliance.

use crate::image::Value;
use crate::name::ImageName;

use super::appliance::Appliance;
use super::ovf::{PackageDisk, PackageFile, VirtualSystem};

/// The appliance as a tree of values.
pub(super) fn details(appliance: &Appliance) -> Value {
    let package = appliance.package();
    let mut map = Value::map();
    if !appliance.descriptor().is_empty() {
        map.insert("descriptor", appliance.descriptor().clone());
    }
    let disks: Vec<Value> = package.disks.iter().map(disk).collect();
    map.insert("disks", disks);
    let is_disk = |file: &&PackageFile| {
        let mut disks = package.disks.iter();
        disks.any(|disk| disk.file.as_ref() == Some(file))
    };
    let others = package.files.iter().filter(|file| !is_disk(file));
    let others: Vec<Value> = others.map(|other| file(other, Value::map())).collect();
    if !others.is_empty() {
        map.insert("files", others);
    }
    let systems: Vec<Value> = package.systems.iter().map(system).collect();
    if !systems.is_empty() {
        map.insert("systems", systems);
    }
    map
}

fn name(map: &mut Value, key: &'static str, value: &Option<ImageName>) {
    if let Some(value) = value {
        map.insert(key, value.clone());
    }
}

fn number(map: &mut Value, key: &'static str, value: Option<u64>) {
    if let Some(value) = value {
        map.insert(key, value);
    }
}

fn file(file: &PackageFile, mut map: Value) -> Value {
    map.insert("filename", file.href.clone());
    number(&mut map, "file-size", file.size);
    name(&mut map, "compression", &file.compression);
    number(&mut map, "chunk-size", file.chunk_size);
    map
}

fn disk(disk: &PackageDisk) -> Value {
    let mut map = Value::map();
    map.insert("id", disk.id.clone());
    number(&mut map, "virtual-size", disk.capacity);
    number(&mut map, "populated-size", disk.populated_size);
    if let Some(format) = disk.format {
        map.insert("format", format.as_str());
    }
    name(&mut map, "format-uri", &disk.format_uri);
    name(&mut map, "parent", &disk.parent);
    if let Some(own) = &disk.file {
        map = file(own, map);
    }
    if let Some(place) = &disk.attachment {
        map.insert("system", place.system.clone());
        if let Some(bus) = place.bus {
            map.insert("bus", bus);
        }
        name(&mut map, "controller", &place.controller);
        number(&mut map, "controller-address", place.controller_address);
        number(&mut map, "unit", place.unit);
    }
    map
}

fn system(system: &VirtualSystem) -> Value {
    let mut map = Value::map();
    map.insert("id", system.id.clone());
    name(&mut map, "name", &system.name);
    number(&mut map, "os-id", system.os_id);
    name(&mut map, "os-type", &system.os_type);
    name(&mut map, "os-description", &system.os_description);
    name(&mut map, "hardware", &system.hardware);
    number(&mut map, "cpus", system.cpus);
    number(&mut map, "memory", system.memory);
    map.insert("firmware", if system.efi { "efi" } else { "bios" });
    if system.secure_boot {
        map.insert("secure-boot", true);
    }
    name(&mut map, "product", &system.product);
    name(&mut map, "vendor", &system.vendor);
    name(&mut map, "version", &system.version);
    if !system.properties.is_empty() {
        let properties = system.properties.iter().cloned().map(Value::from);
        map.insert("properties", properties.collect::<Vec<_>>());
    }
    map
}
