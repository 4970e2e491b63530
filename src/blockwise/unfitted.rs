//! Layers that were not fitted to those before them, and why.

use std::fmt;

use serde::Serialize;

use crate::plan::Plan;

/// Rows for each element of a row, below which an input's second moment says too little.
pub const ROWS_PER_ELEMENT: usize = 2;

/// Weights that read one input and were compressed as calibration alone knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unfitted {
    /// Their names.
    pub weights: Vec<String>,
    /// Elements of a row of the input.
    pub width: usize,
    /// Why.
    #[serde(flatten)]
    pub reason: Reason,
}

/// Why layers were not fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// The text has too few tokens for inputs so wide.
    TooFewTokens {
        /// Tokens that the layers read.
        tokens: usize,
        /// The fewest that say enough.
        needed: usize,
        /// Whether calibration measured the input. Otherwise the weights alone counted.
        measured: bool,
    },
    /// They stand for several matrices, each of which reads an input of its own.
    Stacked,
    /// llama.cpp shows no input of theirs.
    Unseen,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::TooFewTokens {
                tokens,
                needed,
                measured,
            } => {
                write!(
                    f,
                    "they read {tokens} tokens of the text, expected at least {needed}"
                )?;
                if *measured {
                    Ok(())
                } else {
                    write!(f, ", and no statistics know their whole input")
                }
            }
            Reason::Stacked => write!(f, "they are stacks, whose parts read different inputs"),
            Reason::Unseen => write!(f, "llama.cpp shows no input of theirs"),
        }
    }
}

/// Notes in a plan, and so in the file that is made by it, which tensors were not fitted.
pub fn describe(unfitted: &[Unfitted], plan: &mut Plan) {
    for unfitted in unfitted {
        let reason = unfitted.reason.to_string();
        for step in &mut plan.steps {
            if unfitted.weights.contains(&step.stored.name) {
                let parameters = &mut step.stored.parameters;
                parameters.insert("unfitted".into(), reason.clone().into());
            }
        }
    }
}
