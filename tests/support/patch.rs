//! Numbers in the bytes of an image, and where the structures are that are patched.

use std::process::Command;

use super::{Rng, run, sample_disk};

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn put_be64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

pub fn put_be32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub fn put_le64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub fn put_le32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A number in a file as an index of its bytes.
pub fn place(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

/// An image of a disk, made by qemu-img.
pub fn made(disk: &[u8], format: &str, options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (raw, image) = (folder.path().join("disk"), folder.path().join("image"));
    std::fs::write(&raw, disk).unwrap();
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", format]);
    run(convert.args(options).arg(&raw).arg(&image));
    std::fs::read(&image).unwrap()
}

/// A disk of which no byte is zero, so that what is lost shows.
pub fn full_disk(seed: u64, len: usize) -> Vec<u8> {
    let mut disk = sample_disk(seed, len);
    disk.iter_mut().for_each(|byte| *byte |= 1);
    disk
}

/// Places of the grain directory of a sparse VMDK, the redundant one, and the first table of each.
pub fn grain_tables(vmdk: &[u8]) -> [usize; 4] {
    let [main, other] = [56, 48].map(|at| place(le64(vmdk, at)) * 512);
    let table = |at: usize| place(le32(vmdk, at).into()) * 512;
    [main, other, table(main), table(other)]
}

/// A number below `end`, if that is not 0, to take something by.
pub fn pick(random: &mut Rng, end: u64) -> usize {
    place(random.below(end.max(1)))
}
