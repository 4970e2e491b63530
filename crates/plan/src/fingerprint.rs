//! What decides the bytes of a file, as one digest: a run that was killed is gone on with only by one
//! that would write the same.
//!
//! It covers what is *done* and not only what the file says of it: `sparsity = 0.5` and
//! `pattern = "2:4"` are described alike and give other zeros; models that lost one block or another
//! have the same names and shapes. Every enum is matched and every struct taken apart without `..`, so
//! that what is added to one does not compile before it is added here.

use dwindle_architecture::{Assembly, Model, ModelTensor};
use dwindle_formats::container::Digest;
use dwindle_formats::gguf::{Metadata, encode_header};
use dwindle_method::prune::Pruning;
use dwindle_method::sparsity::Pattern;
use dwindle_statistics::Measured;
use sha2::{Digest as _, Sha256};

use super::resolve::Plan;
use super::treatment::{Multilinear, Stack, Step, Treatment};

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

    fn float(&mut self, value: f64) {
        self.long(value.to_bits());
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
            Treatment::Prune { pruning, pattern } => {
                self.number(2);
                self.pruning(*pruning, *pattern);
            }
            Treatment::LowRank { rank } => {
                self.number(3);
                self.number(*rank);
            }
            Treatment::Joint {
                members,
                rank,
                weights,
            } => {
                self.number(4);
                self.numbers(members);
                self.number(*rank);
                self.number(usize::from(weights.is_some()));
                let weights = weights.as_deref().unwrap_or_default();
                self.number(weights.len());
                weights.iter().for_each(|w| self.float(*w));
            }
            Treatment::SparseLowRank {
                pruning,
                pattern,
                rank,
            } => {
                self.number(5);
                self.pruning(*pruning, *pattern);
                self.number(*rank);
            }
            Treatment::Multilinear { factors, stack } => {
                self.number(6);
                self.multilinear(factors, stack);
            }
            Treatment::Operator { rows, cols, ranks } => {
                self.number(7);
                [rows, cols, ranks]
                    .into_iter()
                    .for_each(|n| self.numbers(n));
            }
            Treatment::Slice => self.number(8),
        }
    }

    fn pruning(&mut self, pruning: Pruning, pattern: Pattern) {
        self.text(pruning.name());
        match pattern {
            Pattern::Unstructured(sparsity) => {
                self.number(0);
                self.float(sparsity);
            }
            Pattern::Groups { keep, group } => {
                self.number(1);
                self.numbers(&[keep, group]);
            }
        }
    }

    fn multilinear(&mut self, factors: &Multilinear, stack: &Stack) {
        match factors {
            Multilinear::Tucker(ranks) => {
                self.number(0);
                self.numbers(ranks);
            }
            Multilinear::Cp(rank) => {
                self.number(1);
                self.number(*rank);
            }
            Multilinear::TensorTrain(ranks) => {
                self.number(2);
                self.numbers(ranks);
            }
        }
        let Stack {
            over,
            members,
            dims,
        } = stack;
        self.text(&over.to_string());
        self.numbers(members);
        self.numbers(dims);
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let half = Pattern::Unstructured(0.5);
        let two_of_four = Pattern::Groups { keep: 2, group: 4 };
        let prune = |pruning, pattern| Treatment::Prune { pruning, pattern };
        let joint = |members: &[usize], weights: Option<&[f64]>| Treatment::Joint {
            members: members.to_vec(),
            rank: 3,
            weights: weights.map(<[f64]>::to_vec),
        };
        let all = [
            Treatment::Store,
            Treatment::Round,
            Treatment::Slice,
            prune(Pruning::Wanda, half),
            prune(Pruning::Wanda, two_of_four),
            prune(Pruning::Magnitude, half),
            Treatment::LowRank { rank: 3 },
            Treatment::LowRank { rank: 4 },
            joint(&[1, 2], None),
            joint(&[1, 3], None),
            joint(&[1, 2], Some(&[])),
            joint(&[1, 2], Some(&[1.0, 2.0])),
            joint(&[1, 2], Some(&[1.0, 3.0])),
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
        let permuted = |tensor, heads| Assembly::PermuteRotary { tensor, heads };
        let all = [
            Assembly::Copy(1),
            Assembly::Copy(2),
            permuted(1, 2),
            permuted(1, 4),
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
