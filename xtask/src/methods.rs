//! Every method on one model: what each costs at the same kept parameters.

use crate::shell::{json, number};
use crate::subject::Subject;

const ALL: &str =
    r#"["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]"#;
const QKV: &str = r#"["attn_q", "attn_k", "attn_v"]"#;
const K: &str = r#"["attn_k"]"#;

/// Roles, what a rule says beside them, and whether layers are fitted one after the other.
const ROWS: &[(&str, &str, bool)] = &[
    (ALL, "method = 'svd', keep = 0.9", false),
    (ALL, "method = 'svd', keep = 0.8", false),
    (ALL, "method = 'svd', keep = 0.6", false),
    (ALL, "method = 'svd', joint = true, keep = 0.9", false),
    (ALL, "method = 'svd', joint = true, keep = 0.8", false),
    (
        ALL,
        "method = 'svd', joint = true, rank = 'auto', keep = 0.9",
        false,
    ),
    (
        ALL,
        "method = 'svd', joint = true, rank = 'auto', keep = 0.8",
        false,
    ),
    (
        ALL,
        "method = 'svd', joint = true, rank = 'auto', keep = 0.9",
        true,
    ),
    (
        ALL,
        "method = 'svd', joint = true, rank = 'auto', keep = 0.8",
        true,
    ),
    (ALL, "method = 'wanda', sparsity = 0.3", false),
    (ALL, "method = 'wanda', sparsity = 0.5", false),
    (ALL, "method = 'magnitude', sparsity = 0.5", false),
    (ALL, "method = 'sparsegpt', sparsity = 0.5", false),
    (ALL, "method = 'sparsegpt', sparsity = 0.5", true),
    (
        ALL,
        "method = 'sparse-low-rank', sparsity = 0.5, keep = 0.6",
        false,
    ),
    (QKV, "method = 'svd', keep = 0.8", false),
    (QKV, "method = 'svd', joint = true, keep = 0.8", false),
    (QKV, "method = 'tucker', over = 'heads', keep = 0.8", false),
    (
        QKV,
        "method = 'tensor-train', over = 'heads', keep = 0.8",
        false,
    ),
    (K, "method = 'svd', keep = 0.5", false),
    (K, "method = 'svd', keep = 0.8", false),
    (K, "method = 'tucker', over = 'heads', keep = 0.8", false),
    (
        K,
        "method = 'tensor-train', over = 'heads', keep = 0.8",
        false,
    ),
    (K, "method = 'cp', over = 'heads', keep = 0.8", false),
    (
        K,
        "method = 'tucker', over = 'layers', stack = 5, keep = 0.8",
        false,
    ),
    (
        K,
        "method = 'tensor-train', over = 'layers', stack = 5, keep = 0.8",
        false,
    ),
    (K, "method = 'tensor-train', modes = 2, keep = 0.8", false),
];

pub fn main(args: &[&str]) -> Result<(), String> {
    let subject = Subject::prepare(args)?;
    println!("| roles | rule | bytes | perplexity | mean KLD |\n|---|---|---|---|---|");
    for (roles, rule, sequential) in ROWS {
        row(&subject, roles, rule, *sequential)?;
    }
    Ok(())
}

/// Compresses by one rule over f16, measures, prints.
fn row(subject: &Subject, roles: &str, rule: &str, sequential: bool) -> Result<(), String> {
    let recipe = subject.file("recipe.toml");
    let lines = rule.replace(", ", "\n");
    let prunes = ["wanda", "magnitude", "sparsegpt"]
        .iter()
        .any(|m| rule.contains(&format!("'{m}'")));
    let ty = if prunes { "" } else { "type = \"f16\"\n" };
    let text = format!("type = \"f16\"\n[[rule]]\nroles = {roles}\n{ty}{lines}\n");
    std::fs::write(&recipe, text).map_err(|e| e.to_string())?;
    let file = subject.file("model.dwn");
    let compressed = json(subject.compress(&recipe, sequential).arg("-o").arg(&file))?;
    let evaluated = subject.evaluate(&file)?;
    let roles = match roles {
        ALL => "all",
        QKV => "`attn_q`, `attn_k`, `attn_v`",
        _ => "`attn_k`",
    };
    println!(
        "| {roles} | `{}`{} | {} | {:.2} | {:.3} |",
        rule.replace('\'', "\"").replace(", ", "`, `"),
        if sequential { ", `--sequential`" } else { "" },
        number(&compressed, "/bytes")? as u64,
        number(&evaluated, "/perplexity/perplexity/value")?,
        number(&evaluated, "/divergence/kld/value")?,
    );
    Ok(())
}
