//! Reports of `compress` on its plan and its file.

use std::collections::HashMap;

use dwindle_formats::container::StoredTensor;
use serde::Serialize;

use super::Failure;
use super::output::{json, line, ranks, shape, size, table, types};
use crate::architecture::role;
use crate::eval::peak_memory;
use crate::blockwise::Unfitted;
use crate::plan::{self, Plan};
use crate::workbench::{Compressed, Outcome, StructureReport};
use crate::writing::Summary;

/// Reports fallbacks, once for those that differ only in the tensor's name.
pub fn report_fallbacks(plan: &Plan) {
    let mut groups: Vec<(&plan::Fallback, usize)> = Vec::new();
    let mut known = HashMap::new();
    for fallback in &plan.fallbacks {
        let kind = (&fallback.wanted, &fallback.done, &fallback.reason);
        let group = *known
            .entry((kind, role(&fallback.tensor).1))
            .or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.1 += 1,
            None => groups.push((fallback, 1)),
        }
    }
    for (f, count) in groups {
        let others = match count {
            1 => String::new(),
            n => format!(" and {} more of its role", n - 1),
        };
        eprintln!(
            "note: `{}`{others}: {} became {}, because {}",
            f.tensor, f.wanted, f.done, f.reason
        );
    }
}

/// Says that zeros bring no speed.
pub fn report_zeros(plan: &Plan, is_stock: bool) {
    let has_zeros = |step: &&plan::Step| step.stored.parameters.contains_key("zeros");
    let count = plan.steps.iter().filter(has_zeros).count();
    if count > 0 {
        let bytes = if is_stock {
            "take as many bytes in a `.gguf` as other weights"
        } else {
            "are stored as a bitmap"
        };
        eprintln!("note: the zeros in {count} tensors {bytes}; they make llama.cpp no faster");
    }
}

/// Prints the plan.
pub fn print_plan(plan: &Plan, as_json: bool) -> Result<(), Failure> {
    if as_json {
        #[derive(Serialize)]
        struct Report<'a> {
            tensors: Vec<StoredTensor>,
            bytes: u64,
            fallbacks: &'a [plan::Fallback],
        }
        return json(&Report {
            tensors: plan.stored().tensors,
            bytes: plan.bytes(),
            fallbacks: &plan.fallbacks,
        });
    }
    let total = plan.bytes();
    let rows = plan.steps.iter().map(|step| {
        let s = &step.stored;
        let bytes: u64 = s.parts.iter().map(|p| p.bytes()).sum();
        [
            s.name.clone(),
            shape(&s.shape),
            s.ty.to_string(),
            s.method.clone(),
            types(s),
            shape(&ranks(s)),
            bytes.to_string(),
        ]
    });
    line(
        table(
            [
                "tensor", ">shape", "source", "method", "type", ">rank", ">bytes",
            ],
            rows,
        )
        .to_string(),
    )?;
    line(format!(
        "{} tensors, {total} bytes ({}) before compression",
        plan.steps.len(),
        size(total)
    ))
}

/// Prints what was written.
pub fn print_summary(done: &Compressed, summary: &Summary, as_json: bool) -> Result<(), Failure> {
    let bpw = summary.bytes as f64 * 8.0 / done.parameters as f64;
    if let Some(warning) = done.outcome.as_ref().and_then(warning) {
        eprintln!("warning: {warning}");
    }
    if as_json {
        #[derive(Serialize)]
        struct Report<'a> {
            #[serde(flatten)]
            summary: &'a Summary,
            parameters: u64,
            bits_per_weight: f64,
            peak_memory: Option<u64>,
            fallbacks: &'a [plan::Fallback],
            structure: Option<&'a StructureReport>,
            target: Option<&'a Outcome>,
            unfitted: &'a [Unfitted],
        }
        return json(&Report {
            unfitted: &done.unfitted,
            structure: done.structure.as_ref(),
            target: done.outcome.as_ref(),
            peak_memory: peak_memory(),
            summary,
            parameters: done.parameters,
            bits_per_weight: bpw,
            fallbacks: &done.plan.fallbacks,
        });
    }
    print_roles(&done.plan, summary)?;
    line(format!(
        "{} bytes ({}), {bpw:.3} bits per weight",
        summary.bytes,
        size(summary.bytes)
    ))?;
    for text in done.outcome.iter().flat_map(outcome_lines) {
        line(text)?;
    }
    Ok(())
}

/// Prints a table of the written tensors by role, method and type.
fn print_roles(plan: &Plan, summary: &Summary) -> Result<(), Failure> {
    let mut groups: Vec<([String; 3], usize, f32, u64)> = Vec::new();
    let mut known = HashMap::new();
    let steps = plan.steps.iter().map(|s| (s.stored.name.as_str(), s));
    let steps: HashMap<&str, &plan::Step> = steps.collect();
    for t in &summary.tensors {
        let Some(step) = steps.get(t.name.as_str()) else {
            continue;
        };
        let key = [
            role(&t.name).1.to_string(),
            step.stored.method.clone(),
            types(&step.stored),
        ];
        let error = t.relative_error;
        let group = *known.entry(key.clone()).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(g) => {
                g.1 += 1;
                g.2 = g.2.max(error);
                g.3 += t.bytes;
            }
            None => groups.push((key, 1, error, t.bytes)),
        }
    }
    let rows = groups
        .into_iter()
        .map(|([role, method, ty], n, error, bytes)| {
            let error = format!("{error:.5}");
            [role, n.to_string(), method, ty, error, size(bytes)]
        });
    let columns = [
        "role",
        ">tensors",
        "method",
        "type",
        ">largest error",
        ">size",
    ];
    line(table(columns, rows).to_string())
}

/// The measured result of a target.
fn outcome_lines(outcome: &Outcome) -> Vec<String> {
    let mut lines = vec![format!(
        "mean KL divergence {:.5} ± {:.5}, predicted {:.5}",
        outcome.measured_kld, outcome.error, outcome.predicted_kld
    )];
    if let Some(gate) = &outcome.gate {
        lines.push(format!(
            "on the second text {:.5}; {} of {} bytes has {:.5} there",
            gate.own_kld, gate.file_type, gate.bytes, gate.kld
        ));
    }
    lines
}

/// A warning if a plain file type is better on the second text.
fn warning(outcome: &Outcome) -> Option<String> {
    let gate = outcome.gate.as_ref().filter(|g| g.own_kld > g.kld)?;
    Some(format!(
        "plain {} is better on the text of `--gate`: {:.5} against {:.5}; calibrate and measure on \
         texts more like it",
        gate.file_type, gate.kld, gate.own_kld
    ))
}
