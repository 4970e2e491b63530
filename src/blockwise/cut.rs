//! How a text is cut into sequences, and these into batches.

use std::ops::Range;

use super::stream::Stream;
use crate::llama::context::{BatchToken, ContextOptions};
use crate::llama::placement::Placement;

/// Tokens that are evaluated at once, where a sequence is not longer.
const BATCH: usize = 2048;

/// How a text is cut, and what it is run with.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// Tokens of a sequence.
    pub ctx: usize,
    /// Threads.
    pub threads: u32,
    /// Devices.
    pub placement: Placement,
}

/// Sequences that are evaluated at once.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The rows of their tokens.
    pub rows: Range<usize>,
    pub(super) tokens: Vec<BatchToken>,
}

impl Cut {
    /// Batches of a range of sequences.
    pub fn batches(&self, sequences: Range<usize>) -> Vec<Batch> {
        let most = (BATCH / self.ctx).max(1);
        let token = |i: usize| BatchToken {
            token: 0,
            position: (i % self.ctx) as i32,
            sequence: (i / self.ctx) as i32,
            logits: true,
        };
        let starts = sequences.clone().step_by(most);
        let batch = |first: usize| {
            let last = (first + most).min(sequences.end);
            Batch {
                tokens: (0..(last - first) * self.ctx).map(token).collect(),
                rows: first * self.ctx..last * self.ctx,
            }
        };
        starts.map(batch).collect()
    }

    /// Sequences that a stream has.
    pub fn sequences(&self, stream: &Stream) -> usize {
        stream.rows() / self.ctx
    }

    pub(super) fn context(&self) -> ContextOptions {
        let sequences = (BATCH / self.ctx).max(1);
        let batch = (sequences * self.ctx) as u32;
        ContextOptions {
            ctx: self.ctx as u32,
            sequences: sequences as u32,
            batch,
            ubatch: batch,
            threads: Some(self.threads),
            ..ContextOptions::default()
        }
    }
}
