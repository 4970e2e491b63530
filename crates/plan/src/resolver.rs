//! One tensor's rule, or one rule's tensors, resolved into steps.

use std::collections::BTreeMap;

use dwindle_architecture::{ModelTensor, role};
use dwindle_formats::container::{Form, Part, StoredTensor};
use dwindle_formats::gguf::TensorType;
use dwindle_method::fitting_type::fitting_type;

use super::operand::TransformError;
use super::recipe::Rounding;
use super::resolve::PlanError;
use super::subject::Subject;
use super::tensor_error::TensorError;
use super::treatment::{Fallback, Step, Treatment};

/// A step, and what was wished where that could not be.
pub(crate) type Resolved = (Step, Option<Fallback>);

/// What rules are resolved against.
pub(crate) struct Resolver<'a> {
    pub subject: Subject<'a>,
    /// The type of each tensor that no rule names.
    pub base: &'a [TensorType],
}

/// What the parts of a factored tensor are, and how they are made.
pub(crate) struct Factored {
    pub method: &'static str,
    pub parameters: BTreeMap<String, serde_json::Value>,
    pub form: Form,
    /// Suffix, type and shape.
    pub parts: Vec<(String, TensorType, Vec<u64>)>,
    pub treatment: Treatment,
}

/// Factors as a rule wants them.
pub(crate) struct Wish {
    /// In words.
    pub text: String,
    pub method: &'static str,
    /// The factors' element type.
    pub ty: TensorType,
}

impl Wish {
    pub fn factors(method: &'static str, ty: TensorType) -> Wish {
        Wish {
            text: format!("{method} with {ty} factors"),
            method,
            ty,
        }
    }
}

impl<'a> Resolver<'a> {
    pub fn tensor(&self, index: usize) -> &'a ModelTensor {
        &self.subject.model.tensors[index]
    }

    pub fn source_type(&self, index: usize) -> TensorType {
        self.tensor(index).source_type(self.subject.source)
    }

    pub fn transform_failed(&self, index: usize) -> impl Fn(TransformError) -> PlanError {
        let tensor = self.tensor(index).name.clone();
        move |source| PlanError::Spectrum(TensorError::of(&tensor)(source))
    }

    /// Whether the input of a tensor was measured whole.
    pub fn is_measured(&self, index: usize) -> bool {
        let name = &self.tensor(index).name;
        self.subject
            .measured
            .statistics
            .is_some_and(|s| s.group(name).is_some_and(|g| g.blocks.len() == 1))
    }

    /// The width of a tensor's input, if it was too wide to be measured whole.
    fn width_in_blocks(&self, index: usize) -> Option<usize> {
        let group = self
            .subject
            .measured
            .statistics?
            .group(&self.tensor(index).name)?;
        (group.blocks.len() > 1).then_some(group.width)
    }

    /// What a tensor's step would do by its input, had that been measured whole.
    pub fn unseen(&self, index: usize, step: &Step, rounding: Rounding) -> Option<Fallback> {
        let width = self.width_in_blocks(index)?;
        let (wanted, done) = match &step.treatment {
            Treatment::Store => {
                let ty = step.stored.parts[0].ty;
                let is_rounded = ty.is_quantized() && ty != step.stored.ty;
                if rounding != Rounding::Output || !is_rounded {
                    return None;
                }
                (
                    format!("{ty} rounded for its output"),
                    format!("{ty} rounded as ggml does"),
                )
            }
            Treatment::Made { by, .. } if by.uses_input() => {
                let method = &step.stored.method;
                (
                    format!("{method} of its output"),
                    format!("{method} of its weights"),
                )
            }
            _ => return None,
        };
        Some(Fallback {
            tensor: self.tensor(index).name.clone(),
            wanted,
            done,
            reason: format!("its input of {width} elements was measured in blocks and not whole"),
        })
    }

    pub fn require_statistics(&self, index: usize, method: &'static str) -> Result<(), PlanError> {
        if self.is_measured(index) {
            return Ok(());
        }
        if let Some(width) = self.width_in_blocks(index) {
            return Err(PlanError::StatisticsInBlocks {
                tensor: self.tensor(index).name.clone(),
                method,
                width,
            });
        }
        Err(PlanError::StatisticsMissing {
            tensor: self.tensor(index).name.clone(),
            method,
        })
    }

    /// Every element in a type, or in the nearest that the rows divide into.
    pub fn fitting(&self, index: usize, wanted: TensorType) -> Resolved {
        let row = self.tensor(index).shape[0];
        let fitting = fitting_type(wanted, row);
        let reason = format!(
            "rows of {row} elements are no multiple of {wanted}'s block of {}",
            wanted.block_len()
        );
        self.dense(
            index,
            fitting,
            (fitting != wanted).then(|| (wanted.to_string(), reason)),
        )
    }

    /// Marks a tensor that becomes a quantized type to be rounded for its layer's output, where its
    /// input was measured.
    pub fn round_for_output(&self, index: usize, step: &mut Step) {
        let part = &step.stored.parts;
        let becomes = |ty: TensorType| ty.is_quantized() && ty != step.stored.ty;
        let walked = self.subject.measured.walked && role(&self.tensor(index).name).0.is_some();
        if step.treatment.is_store() && becomes(part[0].ty) && (walked || self.is_measured(index)) {
            step.treatment = Treatment::Round;
            let parameters = &mut step.stored.parameters;
            parameters.insert("rounding".into(), "output".into());
        }
    }

    /// What a rule wanted of factors, and the type that took the place of its own.
    pub fn other_type(
        &self,
        index: usize,
        wish: &Wish,
        row: u64,
        ty: TensorType,
    ) -> Option<Fallback> {
        (ty != wish.ty).then(|| Fallback {
            tensor: self.tensor(index).name.clone(),
            wanted: wish.text.clone(),
            done: format!("{} with {ty} factors", wish.method),
            reason: format!("rows of {row} elements don't fit {}", wish.ty),
        })
    }

    pub fn dense(&self, index: usize, ty: TensorType, unmet: Option<(String, String)>) -> Resolved {
        let tensor = self.tensor(index);
        let source_ty = self.source_type(index);
        let step = Step {
            stored: StoredTensor {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                ty: source_ty,
                method: dense_method(source_ty, ty).into(),
                parameters: BTreeMap::new(),
                form: Form::Dense,
                parts: vec![Part {
                    name: tensor.name.clone(),
                    ty,
                    shape: tensor.shape.clone(),
                }],
            },
            treatment: Treatment::Store,
        };
        let fallback = unmet.map(|(wanted, reason)| Fallback {
            tensor: tensor.name.clone(),
            wanted,
            done: ty.to_string(),
            reason,
        });
        (step, fallback)
    }

    /// A tensor as its rule's exception: in the base type, and why.
    pub fn unmet(&self, index: usize, wish: &str, reason: String) -> Resolved {
        self.dense(index, self.base[index], Some((wish.to_string(), reason)))
    }

    pub fn factored(&self, index: usize, what: Factored) -> Step {
        let tensor = self.tensor(index);
        let parts = what.parts.into_iter().map(|(suffix, ty, shape)| Part {
            name: format!("{}.{suffix}", tensor.name),
            ty,
            shape,
        });
        Step {
            stored: StoredTensor {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                ty: self.source_type(index),
                method: what.method.into(),
                parameters: what.parameters,
                form: what.form,
                parts: parts.collect(),
            },
            treatment: what.treatment,
        }
    }

    /// What tensors take in their base types.
    pub fn dense_bytes(&self, members: &[usize]) -> u64 {
        members
            .iter()
            .map(|i| {
                self.base[*i]
                    .bytes(&self.tensor(*i).shape)
                    .unwrap_or(u64::MAX)
            })
            .fold(0, u64::saturating_add)
    }
}

fn dense_method(from: TensorType, to: TensorType) -> &'static str {
    match to {
        _ if from == to => "copy",
        ty if ty.is_quantized() => "quantize",
        _ => "convert",
    }
}
