//! The check of the BAT: every cluster is in the file and has one owner, and the file ends with the last one.

use std::sync::Arc;

use crate::error::Result;
use crate::image::{Clusters, Finding, FindingKind, Findings, Request};
use crate::map::Usage;
use crate::source::BlockSource;

use super::bundle;
use super::descriptor;
use super::expandable::read_bat;
use super::extension::Extension;
use super::header::{Header, RawHeader, SECTOR};

/// Checks the image in `file`: of one file, or each of those that a descriptor lists.
pub(super) fn check(file: &Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Findings> {
    if !descriptor::is_at_start(file)? {
        return check_one(file, request);
    }
    let mut findings = Findings::default();
    bundle::each_file(file, request, |file| {
        findings.merge(check_one(file, request)?);
        Ok(())
    })?;
    Ok(findings)
}

fn check_one(file: &Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Findings> {
    let limits = request.limits;
    let header = Header::read(file)?;
    let mut findings = Findings::default();
    if header.in_use {
        findings.add(Finding::corruption("header", "the image was not closed"));
    }
    let others = header.warnings.iter().skip(usize::from(header.in_use));
    for warning in others {
        findings.add(Finding::new(FindingKind::Note, "header", warning.clone()));
    }
    let (bat, _) = read_bat(&header, file, request)?;
    let extension = findings.sound(Extension::read(&header, file, limits))?;
    let (cluster_size, file_size) = (header.cluster_size(), file.size());
    let unit = u64::from(header.multiplier) * SECTOR;
    let mut usage = Usage::new(file_size, cluster_size, limits);
    let bat_end = RawHeader::LEN as u64 + bat.len() as u64 * 4;
    usage.structure("header and BAT", 0, bat_end, &mut findings)?;
    let own = extension
        .map(|extension| extension.clusters)
        .unwrap_or_default();
    for cluster in &own {
        let start = u64::from(*cluster) * unit;
        usage.structure("format extension", start, cluster_size, &mut findings)?;
    }
    usage.settle(&mut findings);

    let mut clusters = Clusters {
        total: header.entries,
        ..Clusters::default()
    };
    let ends = own.iter().map(|own| u64::from(*own) * unit + cluster_size);
    let mut end = ends.max().unwrap_or(0).max(header.data_start);
    let mut before = None;
    for (entry, index) in bat.iter().zip(0_u64..) {
        if *entry == 0 {
            before = None;
            continue;
        }
        let start = u64::from(*entry) * unit;
        let place = (RawHeader::LEN as u64 + index * 4, index * cluster_size);
        if start < header.data_start {
            let problem = format!("entry {index} is {entry:#x}, before the data area");
            let finding = Finding::corruption("BAT", problem);
            findings.add(finding.at(place.0).guest(place.1));
            before = None;
            continue;
        }
        // Of the disk's last cluster only the disk's part has to be there.
        let needed = cluster_size.min(header.size.saturating_sub(place.1));
        if !usage.unit("BAT", start, needed, place, &mut findings)? {
            before = None;
            continue;
        }
        clusters.allocated += 1;
        if before.is_some_and(|before| before + cluster_size != start) {
            clusters.fragmented += 1;
        }
        before = Some(start);
        end = end.max(start + cluster_size);
    }
    usage.finish("cluster", &mut findings);
    let behind = file_size.saturating_sub(end).div_ceil(cluster_size);
    if behind > 0 {
        let problem = format!("{behind} clusters behind the last one that is in use");
        let leak = Finding::new(FindingKind::Leak, "data area", problem);
        findings.add(leak.at(end).times(behind));
    }
    findings.clusters = Some(clusters);
    findings.image_end = Some(end);
    Ok(findings)
}
