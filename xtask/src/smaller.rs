//! Smaller models side by side: what structured compression, quantization, factors and zeros cost,
//! in bytes, quality, speed and memory.

use crate::shell::{json, number};
use crate::subject::{Subject, program};

/// Type, the table `[structure]`, and whether layers are fitted one after the other.
const STRUCTURED: &[(&str, &[&str], bool)] = &[
    ("f16", &[], false),
    ("f16", &["keep = 0.92"], false),
    ("f16", &["keep = 0.92"], true),
    ("f16", &["keep = 0.81"], false),
    ("f16", &["keep = 0.81"], true),
    ("f16", &["keep = 0.6"], true),
    ("f16", &["value_length = 48"], false),
    ("f16", &["value_length = 48"], true),
    ("f16", &["value_length = 48", "key_length = 48"], false),
    ("f16", &["value_length = 48", "key_length = 48"], true),
    ("f16", &["drop = 2"], false),
    ("q8_0", &["keep = 0.8"], true),
    ("q6_k", &["keep = 0.9"], true),
    ("q8_0", &[], false),
    ("q6_k", &[], false),
    ("q5_k_m", &[], false),
];

/// What is not a stock file: a rule for all linear layers of the blocks.
const RULES: &[&str] = &[
    "method = 'svd', joint = true, rank = 'auto', keep = 0.8",
    "method = 'wanda', sparsity = 0.5",
];

const ALL: &str =
    r#"["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]"#;

pub fn main(args: &[&str]) -> Result<(), String> {
    let subject = Subject::prepare(args)?;
    println!(
        "| recipe | bytes | perplexity | mean KLD | same top | prompt, tokens/s | generation, \
         tokens/s | keys and values |\n|---|---|---|---|---|---|---|---|"
    );
    for (ty, structure, sequential) in STRUCTURED {
        let mut name = format!("`{ty}`");
        let mut recipe = format!("type = \"{ty}\"\n");
        if !structure.is_empty() {
            recipe += "[structure]\n";
        }
        for line in *structure {
            recipe += &format!("{line}\n");
            name += &format!(", `{line}`");
        }
        if *sequential {
            name += ", `--sequential`";
        }
        row(&subject, &name, &recipe, "gguf", *sequential)?;
    }
    for rule in RULES {
        let recipe = format!(
            "type = \"f16\"\n[[rule]]\nroles = {ALL}\n{}\n",
            rule.replace(", ", "\n")
        );
        let name = format!("`{}`", rule.replace('\'', "\"").replace(", ", "`, `"));
        row(&subject, &name, &recipe, "dwn", false)?;
    }
    Ok(())
}

fn row(
    subject: &Subject,
    name: &str,
    recipe: &str,
    extension: &str,
    sequential: bool,
) -> Result<(), String> {
    let path = subject.file("recipe.toml");
    std::fs::write(&path, recipe).map_err(|e| e.to_string())?;
    let file = subject.file("model").with_extension(extension);
    let mut compress = subject.compress(&path, sequential);
    let by_text = ["key_length", "drop"]
        .iter()
        .any(|key| recipe.contains(key));
    if by_text && !sequential {
        compress.arg("--text").arg(&subject.calibration);
    }
    let compressed = json(compress.arg("-o").arg(&file))?;
    let evaluated = subject.evaluate(&file)?;
    let speed = json(program("bench").arg(&file).args(["--runs", "3", "--json"]))?;
    println!(
        "| {name} | {} | {:.2} | {:.4} | {:.1} % | {:.0} | {:.1} | {:.1} MiB |",
        number(&compressed, "/bytes")? as u64,
        number(&evaluated, "/perplexity/perplexity/value")?,
        number(&evaluated, "/divergence/kld/value")?.max(0.0),
        100.0 * number(&evaluated, "/divergence/same_top/value")?,
        number(&speed, "/file/prompt_per_second")?,
        number(&speed, "/file/generated_per_second")?,
        number(&speed, "/file/context_bytes")? / f64::from(1 << 20),
    );
    Ok(())
}
