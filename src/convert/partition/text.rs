//! A plan as JSON.

use serde::{Deserialize, Serialize};

use crate::convert::options::ConvertOptions;
use crate::convert::partition::cut::{ALIGNMENT, MAX_PARTS, Part};
use crate::convert::partition::layout::Layout;
use crate::convert::partition::{Plan, SourceFacts};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::name::ImageName;

/// The version of the text. A change to what a plan means makes it another one.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanText {
    version: u32,
    source: SourceFacts,
    target: TargetText,
    parts: Vec<PartText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetText {
    format: String,
    options: Vec<(String, String)>,
    virtual_size: u64,
    sparse_size: u64,
    target_is_zero: bool,
    sync: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartText {
    start: u64,
    len: u64,
    data: u64,
    sample: String,
}

pub(super) fn write(plan: &Plan) -> Result<String> {
    let text = PlanText {
        version: VERSION,
        source: plan.source.clone(),
        target: TargetText {
            format: plan.options.image.format.clone(),
            options: plan.options.image.create.options.clone(),
            virtual_size: plan.size,
            sparse_size: plan.options.image.sparse_size,
            target_is_zero: plan.options.image.target_is_zero,
            sync: plan.options.job.sync,
        },
        parts: plan
            .parts
            .iter()
            .map(|part| PartText {
                start: part.start,
                len: part.len,
                data: part.data,
                sample: part.sample.to_hex(),
            })
            .collect(),
    };
    let mut text = serde_json::to_string_pretty(&text)
        .map_err(|e| Error::invalid(format!("the plan cannot be written: {e}")))?;
    text.push('\n');
    Ok(text)
}

pub(super) fn parse(text: &str, limits: &Limits) -> Result<Plan> {
    limits.check_metadata("the length of the plan", text.len() as u64)?;
    let text: PlanText = serde_json::from_str(text).map_err(|e| {
        let problem = ImageName::from(e.to_string().as_str());
        Error::invalid(format!("this is not a plan: {}", problem.escaped()))
    })?;
    if text.version != VERSION {
        return Err(Error::invalid(format!(
            "the plan is of version {}, and {VERSION} is known",
            text.version
        )));
    }
    limits.check_virtual_size(text.source.virtual_size)?;
    limits.check_virtual_size(text.target.virtual_size)?;
    // No disk is as large as the largest offset, and so rounding cannot overflow.
    if i64::try_from(text.target.sparse_size).is_err() {
        return Err(wrong("a hole that is longer than any disk"));
    }
    let mut options = ConvertOptions::to(
        crate::formats::Formats::all()
            .named(&text.target.format)?
            .id()
            .as_str(),
    )
    .sparse_size(text.target.sparse_size)
    .target_is_zero(text.target.target_is_zero)
    .sync(text.target.sync);
    options.image.create.options = text.target.options;
    let layout = Layout::of(&options, text.source.virtual_size, None)?;
    let size = layout.shape.virtual_size;
    if size != text.target.virtual_size {
        return Err(wrong("a target of another size than its options lead to"));
    }
    let parts = parts(text.parts, size, layout.shape.unit)?;
    Ok(Plan {
        source: text.source,
        options,
        size,
        parts,
        folder: None,
    })
}

/// The parts, if they cover the disk, each byte once, and begin where parts may.
fn parts(texts: Vec<PartText>, size: u64, unit: u64) -> Result<Vec<Part>> {
    if texts.is_empty() || texts.len() > MAX_PARTS {
        return Err(wrong("no parts, or too many"));
    }
    let is_one = texts.len() == 1;
    let mut parts = Vec::new();
    let mut end = 0_u64;
    for text in texts {
        if text.start != end {
            return Err(wrong("parts that overlap or leave gaps"));
        }
        if text.start % ALIGNMENT.max(unit) != 0 {
            return Err(wrong("parts that begin where none may"));
        }
        if (text.len == 0 && !is_one) || text.data > text.len {
            return Err(wrong("a part of a length that it cannot have"));
        }
        end = text
            .start
            .checked_add(text.len)
            .filter(|end| *end <= size)
            .ok_or_else(|| wrong("a part that reaches beyond the disk"))?;
        parts.push(Part {
            start: text.start,
            len: text.len,
            data: text.data,
            sample: Digest::from_hex(Algorithm::Md5, &text.sample)?,
        });
    }
    match end == size {
        true => Ok(parts),
        false => Err(wrong("parts that do not reach the end of the disk")),
    }
}

fn wrong(what: &str) -> Error {
    Error::invalid(format!("the plan has {what}"))
}
