//! What decides the bytes of a file, as one digest: a run that was killed is gone on with only by one
//! that would write the same.
//!
//! It covers what is *done* and not only what the file says of it: `sparsity = 0.5` and
//! `pattern = "2:4"` are described alike and give other zeros; models that lost one block or another
//! have the same names and shapes. Every enum is matched and every struct taken apart without `..`, so
//! that what is added to one does not compile before it is added here; a method shows all its fields by
//! its derived `Debug`.

use dwindle_architecture::{Assembly, Model, ModelTensor};
use dwindle_formats::container::Digest;
use dwindle_formats::gguf::{Metadata, encode_header};
use dwindle_statistics::Measured;
use sha2::{Digest as _, Sha256};

use super::resolve::Plan;
use super::treatment::{Operands, Step, Treatment};

/// A fingerprint that is being made. Every field goes in with its length or as a fixed number of bytes,
/// so that no two sequences of fields give the same bytes.
#[derive(Debug, Clone)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// The fingerprint of a plan that is carried out on a model, out of a source with this content,
    /// by what was measured.
    pub fn of_plan(
        plan: &Plan,
        model: &Model,
        measured: &Measured<'_>,
        content: &Digest,
    ) -> Fingerprint {
        let mut print = Fingerprint::of_version(env!("CARGO_PKG_VERSION"));
        print.bytes(content);
        print.text(&model.architecture);
        print.metadata(&plan.metadata);
        print.number(plan.steps.len());
        for (step, tensor) in plan.steps.iter().zip(&model.tensors) {
            print.step(step);
            print.tensor(tensor);
        }
        print.measured(measured);
        print
    }

    /// The fingerprint of a file that is made of another, whose content has this digest.
    pub fn of_copy(metadata: &Metadata, content: &Digest) -> Fingerprint {
        let mut print = Fingerprint::of_version(env!("CARGO_PKG_VERSION"));
        print.bytes(content);
        print.metadata(metadata);
        print
    }

    fn of_version(version: &str) -> Fingerprint {
        let mut print = Fingerprint(Sha256::new());
        print.text(version);
        print
    }

    /// Adds what else decides the bytes.
    #[must_use]
    pub fn with(mut self, bytes: &[u8]) -> Fingerprint {
        self.bytes(bytes);
        self
    }

    /// The digest.
    pub fn finish(self) -> Digest {
        self.0.finalize().into()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, number: usize) {
        self.long(number as u64);
    }

    fn long(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn numbers(&mut self, numbers: &[usize]) {
        self.number(numbers.len());
        numbers.iter().for_each(|n| self.number(*n));
    }

    fn longs(&mut self, numbers: &[u64]) {
        self.number(numbers.len());
        numbers.iter().for_each(|n| self.long(*n));
    }

    fn metadata(&mut self, metadata: &Metadata) {
        self.bytes(&encode_header(metadata, &[], 8));
    }

    fn measured(&mut self, measured: &Measured<'_>) {
        let Measured {
            importance,
            statistics,
            // It decides ranks, which the plan has.
            diagnosis: _,
            // What it changes, the treatments say.
            walked: _,
        } = measured;
        self.bytes(importance.map_or([0; 32], |i| i.digest()).as_slice());
        self.bytes(statistics.map_or([0; 32], |s| s.digest()).as_slice());
    }

    fn step(&mut self, step: &Step) {
        let Step { stored, treatment } = step;
        // Its keys are sorted, and it holds nothing that JSON can't.
        self.bytes(&serde_json::to_vec(stored).unwrap_or_default());
        self.treatment(treatment);
    }

    fn treatment(&mut self, treatment: &Treatment) {
        match treatment {
            Treatment::Store => self.number(0),
            Treatment::Round => self.number(1),
            Treatment::Slice => self.number(2),
            Treatment::Made { of, by } => {
                self.number(3);
                self.operands(of);
                // Derived, so that it names each of the method's fields; floats are written so that they
                // read back as they were.
                self.text(&format!("{by:?}"));
            }
        }
    }

    fn operands(&mut self, operands: &Operands) {
        match operands {
            Operands::Matrices => self.number(0),
            Operands::Stack { over, members } => {
                self.number(1);
                self.text(&over.to_string());
                self.numbers(members);
            }
            Operands::Joint(members) => {
                self.number(2);
                self.numbers(members);
            }
        }
    }

    fn tensor(&mut self, tensor: &ModelTensor) {
        let ModelTensor {
            name,
            shape,
            assembly,
            always_f32,
        } = tensor;
        self.text(name);
        self.longs(shape);
        self.number(usize::from(*always_f32));
        self.assembly(assembly);
    }

    fn assembly(&mut self, assembly: &Assembly) {
        match assembly {
            Assembly::Copy(tensor) => {
                self.number(0);
                self.number(*tensor);
            }
            Assembly::PermuteRotary { tensor, heads } => {
                self.number(1);
                self.number(*tensor);
                self.long(*heads);
            }
            Assembly::Stack(tensors) => {
                self.number(2);
                self.numbers(tensors);
            }
            Assembly::Select { of, rows } => {
                self.number(3);
                self.tensor(of);
                self.longs(rows);
            }
            Assembly::Made { ty, bytes } => {
                self.number(4);
                self.long(u64::from(ty.id()));
                self.bytes(bytes);
            }
            Assembly::Transpose(of) => {
                self.number(5);
                self.tensor(of);
            }
            Assembly::PlusOne(tensor) => {
                self.number(6);
                self.number(*tensor);
            }
            Assembly::Fused { parts, scale } => {
                self.number(7);
                self.numbers(parts);
                self.long(u64::from(scale.to_bits()));
            }
            Assembly::Columns { of, each, blocks } => {
                self.number(9);
                self.tensor(of);
                self.long(*each);
                self.longs(blocks);
            }
            Assembly::Decay(tensor) => {
                self.number(10);
                self.number(*tensor);
            }
            Assembly::Alternate { of, first } => {
                self.number(8);
                self.tensor(of);
                self.long(*first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Make, Operand, TransformError};
    use dwindle_formats::container::Over;
    use dwindle_statistics::Importance;

    fn digest_of(add: impl FnOnce(&mut Fingerprint)) -> Digest {
        let mut print = Fingerprint::of_version("1");
        add(&mut print);
        print.finish()
    }

    fn all_differ(digests: &[Digest]) {
        for (i, digest) in digests.iter().enumerate() {
            assert!(!digests[..i].contains(digest), "the one at {i}");
        }
    }

    #[test]
    fn every_version_has_its_own() {
        let of = |version: &str| Fingerprint::of_version(version).finish();
        assert_eq!(of("0.1.0"), of("0.1.0"));
        assert_ne!(of("0.1.0"), of("0.1.1"));
    }

    #[test]
    fn every_treatment_has_its_own() {
        #[derive(Debug)]
        struct Method {
            rank: usize,
            weights: Option<Vec<f64>>,
        }
        impl Make for Method {
            fn parts(&self, _: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError> {
                Ok(vec![
                    vec![self.rank as f32],
                    vec![self.weights.iter().count() as f32],
                ])
            }
        }
        let weighted = |of: &Operands, rank, weights: Option<&[f64]>| {
            let weights = weights.map(<[f64]>::to_vec);
            Treatment::made(of.clone(), Method { rank, weights })
        };
        let made = |of: &Operands, rank| weighted(of, rank, None);
        let stack = |over| Operands::Stack {
            over,
            members: vec![1, 2],
        };
        let joint = Operands::Joint(vec![1, 2]);
        let all = [
            Treatment::Store,
            Treatment::Round,
            Treatment::Slice,
            made(&Operands::Matrices, 3),
            made(&Operands::Matrices, 4),
            made(&stack(Over::Layers), 3),
            made(&stack(Over::Heads), 3),
            made(&joint, 3),
            made(&Operands::Joint(vec![1, 3]), 3),
            weighted(&joint, 3, Some(&[])),
            weighted(&joint, 3, Some(&[1.0, 2.0])),
            weighted(&joint, 3, Some(&[1.0, 2.0 + f64::EPSILON * 2.0])),
        ];
        let digests: Vec<Digest> = all.iter().map(|t| digest_of(|p| p.treatment(t))).collect();
        all_differ(&digests);
    }

    #[test]
    fn every_assembly_has_its_own() {
        let tensor = |index| ModelTensor {
            name: "w".into(),
            shape: vec![4, 4],
            assembly: Assembly::Copy(index),
            always_f32: false,
        };
        let select = |index, rows: &[u64]| Assembly::Select {
            of: Box::new(tensor(index)),
            rows: rows.to_vec(),
        };
        let alternate = |index, first| Assembly::Alternate {
            of: Box::new(tensor(index)),
            first,
        };
        let columns = |each, blocks: &[u64]| Assembly::Columns {
            of: Box::new(tensor(1)),
            each,
            blocks: blocks.to_vec(),
        };
        let permuted = |tensor, heads| Assembly::PermuteRotary { tensor, heads };
        let all = [
            Assembly::Copy(1),
            Assembly::Copy(2),
            permuted(1, 2),
            permuted(1, 4),
            Assembly::Transpose(Box::new(tensor(1))),
            Assembly::Decay(1),
            alternate(1, 0),
            alternate(1, 1),
            columns(2, &[0, 1]),
            columns(2, &[1, 0]),
            columns(1, &[1, 0]),
            Assembly::PlusOne(1),
            Assembly::Fused {
                parts: [1, 2, 3],
                scale: 1.0,
            },
            Assembly::Fused {
                parts: [1, 2, 3],
                scale: 8.0,
            },
            Assembly::Stack(vec![1, 2]),
            Assembly::Stack(vec![2, 1]),
            select(1, &[0, 1]),
            select(2, &[0, 1]),
            select(1, &[0, 2]),
            Assembly::of_floats(&[1.0]),
            Assembly::of_floats(&[2.0]),
        ];
        let digests: Vec<Digest> = all.iter().map(|a| digest_of(|p| p.assembly(a))).collect();
        all_differ(&digests);
    }

    #[test]
    fn importance_weights_count() {
        let of = |importance: Option<&Importance>| {
            let measured = Measured {
                importance,
                ..Measured::default()
            };
            digest_of(|p| p.measured(&measured))
        };
        assert_ne!(of(None), of(Some(&Importance::default())));
    }
}
