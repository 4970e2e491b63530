//! `tucker`: a core, and a factor for each way but perhaps the first.

use std::sync::Arc;

use dwindle_formats::container::{Form, Over};
use dwindle_method::fitting_type::fitting_type;
use dwindle_method::tensor::{Ranks as MethodRanks, transpose};
use dwindle_method::tucker::{self, Ways};
use serde::Deserialize;

use super::ranks::{Ranks, wrong_count};
use super::{Decomposed, Decomposition, Stack, Wanted, checked, stack_has_meaning};
use crate::methods::{Make, Method, keys, registered};
use crate::operand::{Operand, TransformError};
use crate::resolver::Resolver;

/// Sweeps of alternating least squares at most; most end earlier, when nothing is gained any more.
const SWEEPS: usize = 30;

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
    all_ways: Option<bool>,
}

impl registered::Keys for Keys {
    fn check(self, name: &'static str) -> Result<Arc<dyn Method>, String> {
        stack_has_meaning(name, self.over, self.stack)?;
        let ty = keys::factor_type(self.ty.as_deref())?;
        let ranks = Ranks::read(self.ranks, self.keep, self.tolerance)?;
        let ways = if self.all_ways.unwrap_or(false) {
            Ways::Three
        } else {
            Ways::Two
        };
        checked(Tucker(ways), self.over, self.stack, Wanted { ranks, ty })
    }
}

/// Over the last two ways, or all three.
#[derive(Debug)]
struct Tucker(Ways);

impl Tucker {
    /// Ranks of all three ways; one that equals its dimension means no factor there.
    fn ranks(
        &self,
        resolver: &Resolver<'_>,
        stack: &Stack,
        wanted: &Wanted,
    ) -> Result<[usize; 3], TransformError> {
        let (ways, dims) = (self.0, stack.dims);
        let fixed = wanted.ranks.fixed();
        let wished = match (&wanted.ranks, ways, &fixed[..]) {
            (Ranks::Keep(keep), ..) => MethodRanks::Keep(*keep),
            (Ranks::Tolerance(t), ..) => MethodRanks::Tolerance(*t),
            (_, Ways::Three, &[r0, r1, r2]) => MethodRanks::Fixed([r0, r1, r2]),
            (_, Ways::Two, &[r1, r2]) => MethodRanks::Fixed([dims[0], r1, r2]),
            (_, Ways::Three, ranks) => return Err(wrong_count(ranks.len(), 3)),
            (_, Ways::Two, ranks) => return Err(wrong_count(ranks.len(), 2)),
        };
        let operand = stack.operand(resolver)?;
        let whitening = operand.whitening()?;
        let found = tucker::decompose(&operand.w, dims, ways, wished, whitening.as_ref(), 0)?.ranks;
        let rounded = wanted.ranks.in_blocks(&found[1..], &dims[1..], wanted.ty);
        let ranks = [found[0], rounded[0], rounded[1]];
        Ok(tucker::usable_ranks(dims, ways, ranks))
    }
}

impl Decomposition for Tucker {
    fn name(&self) -> &'static str {
        "tucker"
    }

    fn decompose(
        &self,
        resolver: &Resolver<'_>,
        stack: &Stack,
        wanted: &Wanted,
    ) -> Result<Decomposed, TransformError> {
        let ranks = self.ranks(resolver, stack, wanted)?;
        let [d0, d1, d2] = stack.dims.map(|d| d as u64);
        let [r0, r1, r2] = ranks.map(|r| r as u64);
        let part = |suffix: &str, shape: Vec<u64>| {
            let ty = fitting_type(wanted.ty, shape[0]);
            (suffix.to_string(), ty, shape)
        };
        let parts = [
            (r2 != d2).then(|| part("a", vec![d2, r2])),
            Some(part("core", vec![r2, r1, r0])),
            (r1 != d1).then(|| part("b", vec![r1, d1])),
            (r0 != d0).then(|| part("s", vec![r0, d0])),
        ];
        Ok(Decomposed {
            ranks: ranks.to_vec(),
            parts: parts.into_iter().flatten().collect(),
            form: Form::Tucker {
                over: stack.over,
                slices: d0,
            },
            by: Arc::new(Parts {
                dims: stack.dims,
                ranks,
            }),
        })
    }
}

/// A, the core, B and S, without those that a way does not have.
#[derive(Debug)]
struct Parts {
    dims: [usize; 3],
    ranks: [usize; 3],
}

impl Make for Parts {
    fn parts(&self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError> {
        let (dims, ranks) = (self.dims, self.ranks);
        let ways = if ranks[0] == dims[0] {
            Ways::Two
        } else {
            Ways::Three
        };
        let (w, whitening) = (&operands[0].w, operands[0].whitening()?);
        let fixed = MethodRanks::Fixed(ranks);
        let t = tucker::decompose(w, dims, ways, fixed, whitening.as_ref(), SWEEPS)?;
        let [s, b, a] = t.factors;
        let a = a.map(|a| transpose(&a, dims[2], ranks[2]));
        Ok([a, Some(t.core), b, s].into_iter().flatten().collect())
    }

    fn uses_input(&self) -> bool {
        true
    }
}
