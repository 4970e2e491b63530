//! `tensor-train`: a chain of cores; for a plain matrix, an operator.

use std::collections::BTreeMap;
use std::sync::Arc;

use dwindle_formats::container::{Form, Over};
use dwindle_formats::gguf::TensorType;
use dwindle_method::fitting_type::fitting_type;
use dwindle_method::tensor::Ranks as MethodRanks;
use dwindle_method::tensor_train::{self, mode_sizes};
use serde::Deserialize;

use super::ranks::Ranks;
use super::{Decomposed, Decomposition, Stack, Wanted, checked, if_smaller, stack_has_meaning};
use crate::methods::{Make, Method, keys, registered};
use crate::operand::{Operand, TransformError};
use crate::resolve::PlanError;
use crate::resolver::{Factored, Resolved, Resolver, Wish};
use crate::treatment::{Operands, Treatment};

const NAME: &str = "tensor-train";

/// Cores of one matrix where a rule does not say.
const MODES: u64 = 2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::methods) struct Keys {
    #[serde(rename = "type")]
    ty: Option<String>,
    ranks: Option<Vec<u64>>,
    keep: Option<f64>,
    tolerance: Option<f64>,
    over: Option<Over>,
    stack: Option<u64>,
    modes: Option<u64>,
}

impl registered::Keys for Keys {
    fn check(self, name: &'static str) -> Result<Arc<dyn Method>, String> {
        stack_has_meaning(name, self.over, self.stack)?;
        if self.modes.is_some() && self.over.is_some() {
            return Err(format!("`modes` has no meaning for `{name}`"));
        }
        let ty = keys::factor_type(self.ty.as_deref())?;
        let ranks = Ranks::read(self.ranks, self.keep, self.tolerance)?;
        let modes = self.modes.unwrap_or(MODES);
        if !(2..=16).contains(&modes) {
            return Err(format!("`modes` is {modes}, expected 2 to 16"));
        }
        let train = TensorTrain {
            modes: modes as usize,
        };
        checked(train, self.over, self.stack, Wanted { ranks, ty })
    }
}

#[derive(Debug)]
struct TensorTrain {
    /// Cores of one matrix.
    modes: usize,
}

impl Decomposition for TensorTrain {
    fn name(&self) -> &'static str {
        NAME
    }

    fn decompose(
        &self,
        resolver: &Resolver<'_>,
        stack: &Stack,
        wanted: &Wanted,
    ) -> Result<Decomposed, TransformError> {
        let (dims, [d0, d1, d2]) = (stack.dims, stack.dims);
        let operand = stack.operand(resolver)?;
        let (fixed, whitening) = (wanted.ranks.fixed(), operand.whitening()?);
        let wish = wanted.ranks.wish(&fixed);
        let found = tensor_train::decompose(&operand.w, &dims, wish, whitening.as_ref())?.ranks;
        let limits = [d0.min(d1 * d2), d2.min(d0 * d1)];
        let rounded = wanted.ranks.in_blocks(&found, &limits, wanted.ty);
        let ranks = tensor_train::usable_ranks(&dims, rounded);
        let shape = Shape {
            over: Some(stack.over),
            rows: vec![d0, d1, 1],
            cols: vec![1, 1, d2],
        };
        Ok(Decomposed {
            parts: shape.parts(&ranks, wanted.ty),
            form: shape.form(),
            by: Arc::new(Cores {
                dims,
                ranks: ranks.clone(),
            }),
            ranks,
        })
    }

    /// A matrix as an operator.
    fn matrix(
        &self,
        resolver: &Resolver<'_>,
        index: usize,
        wanted: &Wanted,
    ) -> Result<Resolved, PlanError> {
        let tensor = resolver.tensor(index);
        let [n, m] = [0, 1].map(|way| mode_sizes(tensor.shape[way] as usize, self.modes));
        let failed = resolver.transform_failed(index);
        let w = Operand::slice(&resolver.subject, tensor, 0)
            .map_err(&failed)?
            .w;
        let fixed = wanted.ranks.fixed();
        let found = tensor_train::decompose_matrix(&w, &m, &n, wanted.ranks.wish(&fixed))
            .map_err(|e| failed(e.into()))?;
        let limits = vec![usize::MAX; self.modes - 1];
        let chosen = wanted
            .ranks
            .in_blocks(&found.train.ranks, &limits, wanted.ty);
        // Blocks may have made a rank larger than its neighbours can use.
        let ranks = tensor_train::usable_ranks(&found.train.dims, chosen);
        let shape = Shape {
            over: None,
            rows: m,
            cols: n,
        };
        let what = Factored {
            method: NAME,
            parameters: BTreeMap::from([("ranks".to_string(), ranks.clone().into())]),
            form: shape.form(),
            parts: shape.parts(&ranks, wanted.ty),
            treatment: Treatment::made(
                Operands::Matrices,
                Operator {
                    rows: shape.rows,
                    cols: shape.cols,
                    ranks,
                },
            ),
        };
        let steps = vec![resolver.factored(index, what)];
        let wish = Wish::factors(NAME, wanted.ty);
        Ok(if_smaller(resolver, steps, &[index], &wish).remove(0).1)
    }
}

/// How many values each core's row and column have.
struct Shape {
    over: Option<Over>,
    rows: Vec<usize>,
    cols: Vec<usize>,
}

impl Shape {
    fn form(&self) -> Form {
        Form::TensorTrain {
            over: self.over,
            rows: self.rows.iter().map(|n| *n as u64).collect(),
            cols: self.cols.iter().map(|n| *n as u64).collect(),
        }
    }

    /// The cores.
    fn parts(&self, ranks: &[usize], wanted: TensorType) -> Vec<(String, TensorType, Vec<u64>)> {
        let rank = |k: Option<usize>| k.and_then(|k| ranks.get(k)).map_or(1, |r| *r);
        (0..self.rows.len())
            .map(|k| {
                let row = (self.cols[k] * rank(Some(k))) as u64;
                let height = (rank(k.checked_sub(1)) * self.rows[k]) as u64;
                let ty = fitting_type(wanted, row);
                (format!("core{k}"), ty, vec![row, height])
            })
            .collect()
    }
}

/// The three cores of a tensor of three ways.
#[derive(Debug)]
struct Cores {
    dims: [usize; 3],
    ranks: Vec<usize>,
}

impl Make for Cores {
    fn parts(&self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError> {
        let (w, whitening) = (&operands[0].w, operands[0].whitening()?);
        let fixed = MethodRanks::Fixed(&self.ranks[..]);
        Ok(tensor_train::decompose(w, &self.dims, fixed, whitening.as_ref())?.cores)
    }

    fn uses_input(&self) -> bool {
        true
    }
}

/// The cores of one matrix.
#[derive(Debug)]
struct Operator {
    rows: Vec<usize>,
    cols: Vec<usize>,
    ranks: Vec<usize>,
}

impl Make for Operator {
    fn parts(&self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError> {
        let fixed = MethodRanks::Fixed(&self.ranks[..]);
        let operator =
            tensor_train::decompose_matrix(&operands[0].w, &self.rows, &self.cols, fixed)?;
        Ok(operator.train.cores)
    }
}
