//! How the ranks of more than two factors are chosen.

use dwindle_formats::gguf::TensorType;
use dwindle_method::error::MethodError;
use dwindle_method::tensor::Ranks as Wish;

use crate::methods::keys::fraction;
use crate::operand::TransformError;

/// How a rule wants the ranks.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ranks {
    /// These, one a way or a bond.
    Fixed(Vec<u64>),
    /// The best that keep this fraction of the parameters, factors counted.
    Keep(f64),
    /// The smallest with at most this relative error.
    Tolerance(f64),
}

impl Ranks {
    /// Reads the one of `ranks`, `keep` and `tolerance` that is given.
    pub fn read(
        ranks: Option<Vec<u64>>,
        keep: Option<f64>,
        tolerance: Option<f64>,
    ) -> Result<Ranks, String> {
        match (ranks, keep, tolerance) {
            (Some(ranks), None, None) if ranks.contains(&0) || ranks.is_empty() => {
                Err(format!("the ranks {ranks:?} are not all at least 1"))
            }
            (Some(ranks), None, None) => Ok(Ranks::Fixed(ranks)),
            (None, Some(keep), None) => Ok(Ranks::Keep(fraction("keep", keep)?)),
            (None, None, Some(t)) if (0.0..1.0).contains(&t) => Ok(Ranks::Tolerance(t)),
            (None, None, Some(t)) => Err(format!(
                "`tolerance` is {t}, expected 0 or more and below 1"
            )),
            _ => Err("it needs exactly one of `ranks`, `keep` and `tolerance`".into()),
        }
    }

    /// The ranks that are given, if they are.
    pub fn fixed(&self) -> Vec<usize> {
        match self {
            Ranks::Fixed(ranks) => ranks.iter().map(|r| *r as usize).collect(),
            _ => Vec::new(),
        }
    }

    /// In the terms of the methods.
    pub fn wish<'a>(&self, fixed: &'a [usize]) -> Wish<&'a [usize]> {
        match self {
            Ranks::Fixed(_) => Wish::Fixed(fixed),
            Ranks::Keep(keep) => Wish::Keep(*keep),
            Ranks::Tolerance(t) => Wish::Tolerance(*t),
        }
    }

    /// Ranks in whole blocks of the factors' type, where they have that many: fewer where a fraction is
    /// to be kept, more where an error is to be met.
    pub fn in_blocks(&self, ranks: &[usize], limits: &[usize], ty: TensorType) -> Vec<usize> {
        let block = ty.block_len() as usize;
        let round = |(rank, limit): (&usize, &usize)| match self {
            _ if rank >= limit => *limit,
            Ranks::Keep(_) if *rank >= block => rank / block * block,
            Ranks::Keep(_) => *rank,
            _ => rank.next_multiple_of(block).min(*limit),
        };
        ranks.iter().zip(limits).map(round).collect()
    }
}

/// A rule has so many ranks, and should have others.
pub(super) fn wrong_count(found: usize, expected: usize) -> TransformError {
    MethodError::Length { expected, found }.into()
}
