//! A checkpoint of some gigabytes, to see how much memory its conversion takes.

use serde_json::Value;

use super::checkpoints::{Sizes, write};
use super::{Bench, Result};

impl Bench {
    /// A Llama of 4 GB with the fixture's tokenizer and random weights.
    pub fn synthetic(&self) -> Result<()> {
        let folder = self.path("synthetic");
        let sizes = Sizes {
            hidden: 4096,
            ffn: 14336,
            heads: 32,
            kv_heads: 8,
            layers: 9,
        };
        let bytes = write(&folder, &sizes)?;
        let out = self.path("synthetic.gguf");
        for preset in ["f16", "q8_0"] {
            let output = self
                .compress(&folder, preset, &out)
                .args(["--memory", "512M", "--json"])
                .output()?;
            let report: Value = serde_json::from_slice(&output.stdout)?;
            let peak = report["peak_memory"].as_u64().unwrap_or(0);
            println!(
                "{:<54} {:>10.0} MiB peak memory",
                format!(
                    "{:.1} GB to {preset} with --memory 512M",
                    bytes as f64 / 1e9
                ),
                peak as f64 / f64::from(1 << 20)
            );
        }
        Ok(())
    }
}
