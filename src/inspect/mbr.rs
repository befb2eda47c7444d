//! The partition table of a master boot record, as far as its safety goes.

use crate::content::{PartitionRecord, Record};
use crate::error::Result;
use crate::image::SafetyCheck;
use crate::source::BlockSource;

/// `OSType` of the record that keeps old tools away from a GPT (section 5.2.3).
const GPT_PROTECTIVE: u8 = 0xee;

/// The check `mbr`, of a file that begins with a boot sector; `None` if it begins with none.
pub(super) fn check(source: &dyn BlockSource, is_table: bool) -> Result<Option<SafetyCheck>> {
    let mut bytes = [0; Record::LEN];
    let n = source.read_at(&mut bytes, 0)?;
    let record = Record::at_start(bytes.get(..n).unwrap_or_default());
    Ok(record.filter(|_| is_table).map(|record| {
        let records: Vec<PartitionRecord> = record.partition_records().collect();
        SafetyCheck::unless("mbr", problem(&records))
    }))
}

/// The first fault of a table.
fn problem(records: &[PartitionRecord]) -> Option<String> {
    let mut used = 0;
    let mut protective = None;
    for (record, number) in records.iter().zip(1..) {
        if !matches!(record.boot_indicator, 0 | 0x80) {
            let flag = record.boot_indicator;
            return Some(format!(
                "partition {number} has the boot indicator {flag:#04x}"
            ));
        }
        used += usize::from(record.os_type != 0);
        if record.os_type == GPT_PROTECTIVE {
            if record.starting_lba != 1 || record.starting_chs != [0, 2, 0] {
                return Some("the protective partition of a GPT does not start at sector 1".into());
            }
            protective.get_or_insert(number);
        }
    }
    match protective {
        _ if used == 0 => Some("the partition table has no partition".into()),
        Some(number) if used > 1 || number != 1 => {
            Some("a GPT and other partitions are in one partition table".into())
        }
        _ => None,
    }
}
