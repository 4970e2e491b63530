//! Models that have learned a row for each position, and have none for others.

use super::model::Model;

/// llama.cpp's names of them.
const LEARNED: [&str; 3] = ["bert", "gpt2", "starcoder"];

impl Model {
    /// The most tokens of a text, where positions are learned. llama.cpp asserts that there are no others.
    pub fn learned_positions(&self) -> Option<u32> {
        let architecture = self.architecture()?;
        LEARNED
            .contains(&architecture.as_str())
            .then(|| self.n_ctx_train())
    }
}
