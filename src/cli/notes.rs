//! Notes of `compress` on stderr: how the model was pruned, and which layers were not fitted.

use crate::blockwise::{Reason, Unfitted};
use crate::workbench::StructureReport;

/// How the blocks were pruned, in one line.
pub fn shrunk(report: &StructureReport) -> String {
    let range = |all: &[Option<usize>]| {
        let known = || all.iter().flatten();
        match (known().min(), known().max()) {
            (Some(min), Some(max)) if min == max => min.to_string(),
            (Some(min), Some(max)) => format!("{min} to {max}"),
            _ => "none".to_string(),
        }
    };
    let mut line = format!(
        "kept {} of {} parameters of the blocks ({:.1} %): feed-forward columns {}, key and value \
         heads {} with keys of {} and values of {} elements",
        report.parameters,
        report.source_parameters,
        100.0 * report.parameters as f64 / report.source_parameters as f64,
        range(&report.feed_forward),
        range(&report.heads),
        report.key_length,
        report.value_length,
    );
    if report.experts.iter().any(Option::is_some) {
        line += &format!(", experts {}", range(&report.experts));
    }
    if !report.dropped.is_empty() {
        let numbers: Vec<String> = report.dropped.iter().map(usize::to_string).collect();
        line += &format!("; removed blocks {}", numbers.join(", "));
    }
    if let (Some(before), Some(after)) = (
        report.source_cache_bytes_per_token,
        report.cache_bytes_per_token,
    ) && before != after
    {
        line += &format!("; keys and values take {after} bytes per token in F16, before {before}");
    }
    if report.architecture != report.source_architecture {
        line += &format!(
            "; written as architecture `{}`, which allows this shape",
            report.architecture
        );
    }
    if report.output_copied {
        line += ", with a separate output matrix copied from the embedding";
    }
    line
}

/// Warns of layers that were not fitted, once for layers that differ only in their number.
pub fn warn_of_unfitted(unfitted: &[Unfitted]) {
    let mut groups: Vec<(&Unfitted, usize)> = Vec::new();
    for one in unfitted {
        match groups
            .iter_mut()
            .find(|(o, _)| (o.width, o.reason) == (one.width, one.reason))
        {
            Some((_, weights)) => *weights += one.weights.len(),
            None => groups.push((one, one.weights.len())),
        }
    }
    for (one, weights) in groups {
        let others = match weights - 1 {
            0 => String::new(),
            n => format!(" and {n} more with inputs of {} elements", one.width),
        };
        let advice = match one.reason {
            Reason::TooFewTokens { .. } => "; use a longer text, or evaluate more of its chunks",
            _ => "",
        };
        eprintln!(
            "warning: `{}`{others}: not fitted to the layers before, because {}{advice}",
            one.weights.first().map_or("", String::as_str),
            one.reason,
        );
    }
}
