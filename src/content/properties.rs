//! Findings in the vocabulary of OpenStack.

use crate::content::{Architecture, Confidence, Contents, Fact, Firmware};

/// The properties that are clear, sorted by name.
pub(super) fn of(contents: &Contents) -> Vec<(&'static str, String)> {
    let mut properties = Vec::new();
    let mut add = |name, value: Option<String>| {
        properties.extend(value.map(|value| (name, value)));
    };
    let firmware = firmware(contents);
    add("architecture", architecture(contents));
    add(
        "hw_firmware_type",
        firmware.map(|firmware| firmware.as_str().to_owned()),
    );
    add(
        "os_distro",
        clear(contents, "os-distro").map(|id| distro(&id)),
    );
    add(
        "os_secure_boot",
        (firmware == Some(Firmware::Uefi) && is_signed(contents)).then(|| "optional".to_owned()),
    );
    add("os_type", clear(contents, "os-type"));
    add("os_version", clear(contents, "os-version"));
    properties
}

/// The firmware, if there are good reasons for one and not for the other.
fn firmware(contents: &Contents) -> Option<Firmware> {
    let mut found = None;
    for finding in &contents.findings {
        if let (Fact::Firmware(firmware), true) =
            (&finding.fact, finding.confidence >= Confidence::Medium)
        {
            if found.is_some_and(|other| other != *firmware) {
                return None;
            }
            found = Some(*firmware);
        }
    }
    found
}

/// The processor. What has programs for both kinds of PCs is for the larger one, and starts where the
/// firmware is of the smaller.
fn architecture(contents: &Contents) -> Option<String> {
    clear(contents, "architecture").or_else(|| {
        let mut all: Vec<Architecture> = contents
            .findings
            .iter()
            .filter(|finding| finding.confidence == Confidence::High)
            .filter_map(|finding| match &finding.fact {
                Fact::Architecture(architecture) => Some(*architecture),
                _ => None,
            })
            .collect();
        all.sort();
        all.dedup();
        let both = [Architecture::I686, Architecture::X86_64];
        (all == both).then(|| Architecture::X86_64.as_str().to_owned())
    })
}

/// Value on which the surest findings about a subject agree, if they are more than a hint.
fn clear(contents: &Contents, subject: &str) -> Option<String> {
    let about = |finding: &&crate::content::Finding| finding.fact.subject() == subject;
    let mut findings = contents.findings.iter().filter(about);
    let first = findings.clone().max_by_key(|f| f.confidence)?;
    let agree =
        findings.all(|f| f.confidence < first.confidence || f.fact.value() == first.fact.value());
    (agree && first.confidence >= Confidence::Medium).then(|| first.fact.value().to_owned())
}

/// Returns whether UEFI starts signed programs only.
fn is_signed(contents: &Contents) -> bool {
    let mut loaders = contents.findings.iter().filter_map(|f| match f.fact {
        Fact::SignedLoader(is_signed) => Some(is_signed),
        _ => None,
    });
    loaders.clone().next().is_some() && loaders.all(|is_signed| is_signed)
}

/// The name of a distribution for OpenStack, which has one for all of openSUSE.
fn distro(id: &str) -> String {
    match id.split_once('-') {
        Some(("opensuse", _)) => "opensuse".to_owned(),
        _ => id.to_owned(),
    }
}
