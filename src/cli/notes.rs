//! What `compress` says on stderr of a model that became smaller, and of layers that were not fitted.

use crate::fitting::{Reason, Unfitted};
use crate::workbench::StructureReport;

/// What became of the blocks, in one line.
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
        "{} of {} parameters of the blocks stay ({:.1} %): feed-forward columns {}, key and value \
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
        line += &format!("; blocks {} leave", numbers.join(", "));
    }
    if let (Some(before), Some(after)) = (
        report.source_cache_bytes_per_token,
        report.cache_bytes_per_token,
    ) && before != after
    {
        line += &format!("; a token's keys and values take {after} bytes of {before} in F16");
    }
    if report.architecture != report.source_architecture {
        line += &format!("; as a `{}`, which has such a form", report.architecture);
    }
    if report.output_copied {
        line += ", but wants an output of its own, a copy of the embedding";
    }
    line
}

/// Says what was not fitted, of layers that differ only in their number once.
pub fn warn_of_unfitted(unfitted: &[Unfitted]) {
    let mut told: Vec<(&Unfitted, usize)> = Vec::new();
    for one in unfitted {
        match told
            .iter_mut()
            .find(|(o, _)| (o.width, o.reason) == (one.width, one.reason))
        {
            Some((_, weights)) => *weights += one.weights.len(),
            None => told.push((one, one.weights.len())),
        }
    }
    for (one, weights) in told {
        let others = match weights - 1 {
            0 => String::new(),
            n => format!(" and {n} more with inputs of {} elements", one.width),
        };
        let advice = match one.reason {
            Reason::TooFewTokens { .. } => "; name a longer text, or evaluate more chunks of it",
            _ => "",
        };
        eprintln!(
            "warning: `{}`{others}: not fitted to the layers before, because {}{advice}",
            one.weights.first().map_or("", String::as_str),
            one.reason,
        );
    }
}
