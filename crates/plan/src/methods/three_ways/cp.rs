//! `cp`: a sum of outer products.

use std::sync::Arc;

use dwindle_formats::container::{Form, Over};
use dwindle_method::cp::{self, Settings};
use dwindle_method::fitting_type::fitting_type;
use dwindle_method::tensor::{Ranks as MethodRanks, transpose};
use serde::Deserialize;

use super::ranks::{Ranks, wrong_count};
use super::{Decomposed, Decomposition, Stack, Wanted, checked, stack_has_meaning};
use crate::methods::keys::RankWish;
use crate::methods::{Make, Method, keys, registered};
use crate::operand::{Operand, TransformError};
use crate::resolver::Resolver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::methods) struct Keys {
    #[serde(rename = "type")]
    ty: Option<String>,
    rank: Option<RankWish>,
    keep: Option<f64>,
    tolerance: Option<f64>,
    over: Option<Over>,
    stack: Option<u64>,
}

impl registered::Keys for Keys {
    fn check(self, name: &'static str) -> Result<Arc<dyn Method>, String> {
        stack_has_meaning(name, self.over, self.stack)?;
        let ty = keys::factor_type(self.ty.as_deref())?;
        let one = match self.rank {
            None => None,
            Some(RankWish::Number(rank)) => Some(vec![rank]),
            Some(RankWish::Word(word)) => {
                return Err(format!("`rank` is `{word}`, expected a number"));
            }
        };
        let ranks = Ranks::read(one, self.keep, self.tolerance)?;
        checked(Cp, self.over, self.stack, Wanted { ranks, ty })
    }
}

#[derive(Debug)]
struct Cp;

impl Cp {
    fn rank(
        &self,
        resolver: &Resolver<'_>,
        stack: &Stack,
        wanted: &Wanted,
    ) -> Result<usize, TransformError> {
        let dims = stack.dims;
        let limit = cp::most_ranks(dims);
        let rank = match &wanted.ranks {
            Ranks::Keep(keep) => cp::rank_of_keep(dims, *keep).clamp(1, limit),
            Ranks::Fixed(ranks) => match ranks[..] {
                [rank] => rank as usize,
                _ => return Err(wrong_count(ranks.len(), 1)),
            },
            Ranks::Tolerance(t) => {
                let operand = stack.operand(resolver)?;
                let whitening = operand.whitening()?;
                let (wish, settings) = (MethodRanks::Tolerance(*t), Settings::default());
                cp::decompose(&operand.w, dims, wish, whitening.as_ref(), &settings)?.rank
            }
        };
        Ok(wanted.ranks.in_blocks(&[rank], &[limit], wanted.ty)[0])
    }
}

impl Decomposition for Cp {
    fn name(&self) -> &'static str {
        "cp"
    }

    fn decompose(
        &self,
        resolver: &Resolver<'_>,
        stack: &Stack,
        wanted: &Wanted,
    ) -> Result<Decomposed, TransformError> {
        let rank = self.rank(resolver, stack, wanted)?;
        let (r, [d0, d1, d2]) = (rank as u64, stack.dims.map(|d| d as u64));
        let part = |suffix: &str, shape: Vec<u64>| {
            let ty = fitting_type(wanted.ty, shape[0]);
            (suffix.to_string(), ty, shape)
        };
        Ok(Decomposed {
            ranks: vec![rank],
            parts: vec![
                part("a", vec![d2, r]),
                part("b", vec![r, d1]),
                part("s", vec![r, d0]),
            ],
            form: Form::Cp {
                over: stack.over,
                slices: d0,
            },
            by: Arc::new(Parts {
                dims: stack.dims,
                rank,
            }),
        })
    }
}

/// A, B and S.
#[derive(Debug)]
struct Parts {
    dims: [usize; 3],
    rank: usize,
}

impl Make for Parts {
    fn parts(&self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError> {
        let (w, whitening) = (&operands[0].w, operands[0].whitening()?);
        let (fixed, settings) = (MethodRanks::Fixed(self.rank), Settings::default());
        let c = cp::decompose(w, self.dims, fixed, whitening.as_ref(), &settings)?;
        let [s, b, a] = c.factors;
        Ok(vec![transpose(&a, self.dims[2], self.rank), b, s])
    }

    fn uses_input(&self) -> bool {
        true
    }
}
