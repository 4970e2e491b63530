//! Tensors that were made before the file is written, because they were fitted to one another.

use std::ops::{Deref, Range};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::transform::ErrorSums;
use crate::mapped::Mapping;

/// Bytes of a part, in memory or in a file.
#[derive(Debug, Clone)]
pub enum Payload {
    /// In memory.
    Memory(Vec<u8>),
    /// A range of a mapped file, whose memory the system can take back.
    Mapped(Arc<Mapping>, Range<usize>),
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Payload::Memory(bytes) => bytes,
            Payload::Mapped(file, range) => &file[range.clone()],
        }
    }
}

impl Payload {
    /// Lets go of pages that were read.
    fn release(&self) {
        if let Payload::Mapped(file, range) = self {
            file.release(range.clone());
        }
    }
}

/// The parts of a step, and what they lost.
pub type FittedStep = (Vec<Payload>, ErrorSums);

/// The parts of fitted tensors, as the file will hold them.
#[derive(Debug)]
pub struct Fitted {
    steps: Vec<Option<FittedStep>>,
    digest: [u8; 32],
}

impl Fitted {
    /// The parts of each step that was fitted, and what they lost.
    pub(crate) fn new(steps: Vec<Option<FittedStep>>) -> Fitted {
        let mut hash = Sha256::new();
        for (step, made) in steps.iter().enumerate() {
            for part in made.iter().flat_map(|(parts, _)| parts) {
                hash.update((step as u64).to_le_bytes());
                hash.update(&**part);
                part.release();
            }
        }
        Fitted {
            steps,
            digest: hash.finalize().into(),
        }
    }

    /// The parts of a step and what they lost, if the step was fitted.
    pub(crate) fn get(&self, step: usize) -> Option<(&[Payload], ErrorSums)> {
        let (parts, sums) = self.steps.get(step)?.as_ref()?;
        Some((parts, *sums))
    }

    /// A digest of all parts.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }
}
