//! Appliances: those of testdata, and archives that are made here.

use std::path::PathBuf;

use serde_json::Value;

use super::testdata;

/// A list of the manifest of the appliances in testdata.
pub fn manifest(list: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(testdata("ova/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    manifest[list].as_array().unwrap().clone()
}

/// Place of an entry.
pub fn path_of(folder: &str, entry: &Value) -> PathBuf {
    testdata(&format!("ova/{folder}/{}", entry["file"].as_str().unwrap()))
}

/// A plain archive, laid out here and not by the code under test.
pub fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, bytes) in members {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = if name.ends_with('/') { b'5' } else { b'0' };
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}
