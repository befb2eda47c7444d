//! The count of cases by their ending, and the table of it that is kept.

use std::collections::BTreeMap;

use crate::support::faults::thorough;
use crate::support::root;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    Refused,
    Same,
    /// The same, with a warning.
    Warned,
    /// Something else, with a warning.
    Told,
    /// The same but for the rest of the unit in which a cut file ends, which reads as zero.
    Tail,
    AnotherSize,
    Wrong,
}

/// Count of cases by their ending.
pub(crate) type Table = BTreeMap<(String, String), BTreeMap<Ending, u64>>;

const HEAD: &str = "\
# What becomes of the images of testdata with one bit of their metadata flipped, or cut short.
# told: something else is read, and a warning says why. tail: the rest of the unit in which a cut file
# ends reads as zero. size: a disk of another size. wrong: other bytes, and nothing tells.
#extent\twhat\tformat\trefused\tsame\twarned\ttold\ttail\tsize\twrong";

const ENDINGS: [Ending; 7] = [
    Ending::Refused,
    Ending::Same,
    Ending::Warned,
    Ending::Told,
    Ending::Tail,
    Ending::AnotherSize,
    Ending::Wrong,
];

fn lines(table: &Table) -> Vec<String> {
    let extent = if thorough() { "all" } else { "sample" };
    let lines = table.iter().map(|((what, format), counts)| {
        let count = |ending| counts.get(ending).copied().unwrap_or(0).to_string();
        let counts: Vec<String> = ENDINGS.iter().map(count).collect();
        format!("{extent}\t{what}\t{format}\t{}", counts.join("\t"))
    });
    lines.collect()
}

/// Compares what was found with the table that is kept. Of a sample only what must not be is compared:
/// where a format checks more than before, that is well.
pub(crate) fn compare(table: &Table) {
    let path = root().join("tests/damage.tsv");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let mine = |line: &&str| {
        let all = line.starts_with("all\t");
        !line.starts_with('#')
            && all == thorough()
            && table
                .keys()
                .any(|(what, format)| line.contains(&format!("\t{what}\t{format}\t")))
    };
    let found = lines(table);
    if std::env::var_os("BLOCKFORM_RENEW").is_some() {
        let kept = text.lines().filter(|line| !mine(line));
        let mut kept: Vec<String> = kept.map(str::to_owned).chain(found).collect();
        kept.retain(|line| !line.starts_with('#'));
        kept.sort();
        kept.insert(0, HEAD.to_owned());
        std::fs::write(&path, kept.join("\n") + "\n").unwrap();
        return;
    }
    let expected: Vec<&str> = text.lines().filter(mine).collect();
    let matter = |line: &str| {
        let words: Vec<&str> = line.split('\t').collect();
        let what_must_not_be = words[..3].iter().chain(&words[7..]);
        what_must_not_be.map(|w| w.to_string()).collect::<Vec<_>>()
    };
    let (found, expected) = match thorough() {
        true => (
            found,
            expected.iter().map(|line| line.to_string()).collect(),
        ),
        false => (
            found.iter().map(|line| matter(line).join("\t")).collect(),
            expected
                .iter()
                .map(|line| matter(line).join("\t"))
                .collect::<Vec<_>>(),
        ),
    };
    assert_eq!(
        found, expected,
        "see the head of this file on how to renew it"
    );
}

pub(crate) fn total(table: &Table) -> u64 {
    table.values().flat_map(|counts| counts.values()).sum()
}
