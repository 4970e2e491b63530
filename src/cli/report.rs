//! Reports of `compress` on its plan and its file.

use std::collections::HashMap;
use std::path::Path;

use dwindle_formats::container::StoredTensor;
use serde::Serialize;

use super::Failure;
use super::output::{json, line, ranks, shape, size, table, types};
use crate::architecture::role;
use crate::blockwise::Unfitted;
use crate::eval::peak_memory;
use crate::plan::{self, Plan};
use crate::workbench::{Compressed, Outcome, StructureReport};
use crate::writing::{OutputFile, Summary};

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

/// What a file would be.
#[derive(Serialize)]
struct PlannedFile {
    tensors: usize,
    bytes: u64,
}

/// Prints the plan.
pub fn print_plan(done: &Compressed, as_json: bool) -> Result<(), Failure> {
    let plan = &done.plan;
    let planned = done.files.iter().map(|file| PlannedFile {
        tensors: file.steps.len(),
        bytes: file.bytes,
    });
    let files: Vec<PlannedFile> = planned.collect();
    if as_json {
        #[derive(Serialize)]
        struct Report<'a> {
            tensors: Vec<StoredTensor>,
            bytes: u64,
            files: Vec<PlannedFile>,
            fallbacks: &'a [plan::Fallback],
        }
        return json(&Report {
            files,
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
        "{} tensors, {total} bytes ({})",
        plan.steps.len(),
        size(total)
    ))?;
    if files.len() == 1 {
        return Ok(());
    }
    for (i, file) in files.iter().enumerate() {
        let PlannedFile { tensors, bytes } = file;
        line(format!("part {}: {tensors} tensors, {bytes} bytes", i + 1))?;
    }
    Ok(())
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
            files: Vec<&'a Path>,
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
            files: done.files.iter().map(|f| f.path.as_path()).collect(),
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
        "{}: {} bytes ({}), {bpw:.3} bits per weight with metadata, {:.1} % of the checkpoint's weights, in {}",
        files(&done.files),
        summary.bytes,
        size(summary.bytes),
        100.0 * summary.bytes as f64 / done.source_bytes.max(1) as f64,
        indicatif::HumanDuration(done.time)
    ))?;
    for text in done.outcome.iter().flat_map(outcome_lines) {
        line(text)?;
    }
    Ok(())
}

/// The files of an output.
fn files(all: &[OutputFile]) -> String {
    match all {
        [] => String::new(),
        [file] => file.path.display().to_string(),
        [first, others @ ..] => format!("{} and {} more", first.path.display(), others.len()),
    }
}

/// The tensors of a role.
#[derive(Default)]
struct Role {
    tensors: usize,
    /// Method and type, with the number of tensors.
    kinds: Vec<(String, usize)>,
    error: f32,
    bytes: u64,
}

/// Prints a table of the written tensors by role.
fn print_roles(plan: &Plan, summary: &Summary) -> Result<(), Failure> {
    let mut roles: Vec<(&str, Role)> = Vec::new();
    let mut known = HashMap::new();
    let steps = plan.steps.iter().map(|s| (s.stored.name.as_str(), s));
    let steps: HashMap<&str, &plan::Step> = steps.collect();
    for t in &summary.tensors {
        let Some(step) = steps.get(t.name.as_str()) else {
            continue;
        };
        let name = role(&t.name).1;
        let at = *known.entry(name).or_insert(roles.len());
        if at == roles.len() {
            roles.push((name, Role::default()));
        }
        let found = &mut roles[at].1;
        found.tensors += 1;
        found.error = found.error.max(t.relative_error);
        found.bytes += t.bytes;
        let kind = match step.stored.method.as_str() {
            "quantize" | "copy" | "convert" => types(&step.stored),
            method => format!("{method} {}", types(&step.stored)),
        };
        match found.kinds.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, count)) => *count += 1,
            None => found.kinds.push((kind, 1)),
        }
    }
    let rows = roles.into_iter().map(|(name, mut found)| {
        found
            .kinds
            .sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let kind = |(kind, count): &(String, usize)| match found.kinds.len() {
            1 => kind.clone(),
            _ => format!("{count} {kind}"),
        };
        let kinds: Vec<String> = found.kinds.iter().map(kind).collect();
        let error = format!("{:.5}", found.error);
        [
            name.to_string(),
            found.tensors.to_string(),
            kinds.join(", "),
            error,
            size(found.bytes),
        ]
    });
    let columns = [
        "role",
        ">tensors",
        "types",
        ">weights' largest error",
        ">size",
    ];
    line(table(columns, rows).to_string())
}

/// The measured result of a target.
fn outcome_lines(outcome: &Outcome) -> Vec<String> {
    let whose = match outcome.held_out {
        true => "a text that nothing was chosen by",
        false => "the text that types were chosen by",
    };
    let mut lines = vec![format!(
        "On {whose} ({}, {} chunks): mean KL divergence {:.5} ± {:.5}, predicted {:.5}",
        outcome.text,
        outcome.measured.perplexity.chunks,
        outcome.measured_kld,
        outcome.error,
        outcome.predicted_kld
    )];
    if let Some(found) = &outcome.measured.divergence {
        lines.push(format!(
            "median {:.5}, 99 % {:.4}; same most likely token {:.1} %; perplexity {:.3}, of the checkpoint {:.3}",
            found.kld_median,
            found.kld_99,
            100.0 * found.same_top.value,
            outcome.measured.perplexity.perplexity.value,
            found.reference_perplexity.value
        ));
    }
    if let Some(gate) = &outcome.gate {
        lines.push(format!(
            "On the second text: mean KL divergence {:.5}; that of {}, of {} bytes, is {:.5}",
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
