//! Tensors that were made before the file is written, because they were fitted to one another.

use sha2::{Digest as _, Sha256};

use super::transform::ErrorSums;

/// The parts of fitted tensors, as the file will hold them.
#[derive(Debug)]
pub struct Fitted {
    steps: Vec<Option<(Vec<Vec<u8>>, ErrorSums)>>,
    digest: [u8; 32],
}

impl Fitted {
    /// The parts of each step that was fitted, and what they lost.
    pub(crate) fn new(steps: Vec<Option<(Vec<Vec<u8>>, ErrorSums)>>) -> Fitted {
        let mut hash = Sha256::new();
        for (step, made) in steps.iter().enumerate() {
            for part in made.iter().flat_map(|(parts, _)| parts) {
                hash.update((step as u64).to_le_bytes());
                hash.update(part);
            }
        }
        Fitted {
            steps,
            digest: hash.finalize().into(),
        }
    }

    /// The parts of a step and what they lost, if the step was fitted.
    pub(crate) fn get(&self, step: usize) -> Option<(&[Vec<u8>], ErrorSums)> {
        let (parts, sums) = self.steps.get(step)?.as_ref()?;
        Some((parts, *sums))
    }

    /// A digest of all parts.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }
}
