//! `sparse-low-rank`: a pruned matrix, and two factors of what it lacks.

use std::sync::Arc;

use dwindle_formats::container::Form;
use dwindle_formats::gguf::TensorType;
use dwindle_method::error::MethodError;
use dwindle_method::fitting_type::fitting_type;
use dwindle_method::prune::Pruning;
use dwindle_method::sparse_low_rank;
use dwindle_method::sparsity::Pattern;
use dwindle_method::whitened::DAMPING;
use serde::Deserialize;

use super::keys::{Rank, RankWish};
use super::svd::{counted, parameters};
use super::{Make, Method, keys, registered};
use crate::operand::{Operand, TransformError};
use crate::resolve::PlanError;
use crate::resolver::{Factored, Resolved, Resolver, Wish};
use crate::treatment::{Operands, Treatment};

const NAME: &str = "sparse-low-rank";

/// Sweeps at most: nearly all of the gain is in the first ones.
const SWEEPS: usize = 6;

/// What SparseGPT's authors add to the diagonal, as a fraction of its mean.
const SPARSEGPT_DAMPING: f64 = 0.01;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    #[serde(rename = "type")]
    ty: Option<String>,
    rank: Option<RankWish>,
    keep: Option<f64>,
    sparsity: Option<f64>,
    pattern: Option<String>,
    pruning: Option<String>,
}

impl registered::Keys for Keys {
    fn check(self, name: &'static str) -> Result<Arc<dyn Method>, String> {
        let ty = keys::factor_type(self.ty.as_deref())?;
        let pruning = match self.pruning.as_deref() {
            None | Some("wanda") => Pruning::Wanda,
            Some("sparsegpt") => Pruning::SparseGpt,
            Some(other) => {
                return Err(format!(
                    "`pruning` is `{other}`, expected `wanda` or `sparsegpt`"
                ));
            }
        };
        let pattern = keys::zeros(name, self.sparsity, self.pattern.as_deref())?;
        let rank = keys::one_rank(self.rank.as_ref(), self.keep, None)?;
        Ok(Arc::new(SparseLowRank {
            pruning,
            pattern,
            rank,
            ty,
        }))
    }
}

#[derive(Debug)]
struct SparseLowRank {
    pruning: Pruning,
    pattern: Pattern,
    rank: Rank,
    /// The factors' element type; the pruned matrix keeps the source's.
    ty: TensorType,
}

impl SparseLowRank {
    /// The factors' rank for rows of n elements and m rows, or why there is none.
    fn rank_for(&self, n: u64, m: u64, zeros: u64, block: u64) -> Result<u64, String> {
        let rank = match self.rank {
            // What the sparse part keeps is no longer the factors' to keep.
            Rank::Keep(keep) => {
                let left = keep - 1.0 + zeros as f64 / (n * m) as f64;
                if left <= 0.0 {
                    return Err(format!(
                        "its sparse part alone keeps {:.3}, and `keep` is {keep}",
                        1.0 - zeros as f64 / (n * m) as f64
                    ));
                }
                counted(Rank::Keep(left), n, m, block)
            }
            rank => counted(rank, n, m, block),
        };
        if rank > n.min(m) {
            return Err(format!(
                "rank {rank} is above the smaller side of {n} x {m}"
            ));
        }
        Ok(rank)
    }
}

impl Method for SparseLowRank {
    fn resolve(&self, resolver: &Resolver<'_>, index: usize) -> Result<Resolved, PlanError> {
        let wish = Wish::factors(NAME, self.ty);
        let [n, m] = resolver.tensor(index).shape[..] else {
            let reason = "it is no matrix".to_string();
            return Ok(resolver.unmet(index, &wish.text, reason));
        };
        resolver.require_statistics(index, NAME)?;
        let zeros = self.pattern.zeros((n * m) as usize) as u64;
        let ty = fitting_type(self.ty, n);
        let rank = match self.rank_for(n, m, zeros, ty.block_len()) {
            Ok(rank) => rank,
            Err(reason) => return Ok(resolver.unmet(index, &wish.text, reason)),
        };
        let mut parameters = parameters(resolver, index, rank);
        parameters.insert("zeros".into(), zeros.into());
        parameters.insert("pruning".into(), self.pruning.name().into());
        let step = resolver.factored(
            index,
            Factored {
                method: NAME,
                parameters,
                form: Form::SparseLowRank,
                parts: vec![
                    ("s".into(), resolver.source_type(index), vec![n, m]),
                    ("a".into(), ty, vec![n, rank]),
                    ("b".into(), ty, vec![rank, m]),
                ],
                treatment: Treatment::made(
                    Operands::Matrices,
                    Parts {
                        pruning: self.pruning,
                        pattern: self.pattern,
                        rank: rank as usize,
                    },
                ),
            },
        );
        Ok((step, resolver.other_type(index, &wish, n, ty)))
    }
}

/// S, A, B.
#[derive(Debug)]
struct Parts {
    pruning: Pruning,
    pattern: Pattern,
    rank: usize,
}

impl Make for Parts {
    fn parts(&self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError> {
        let operand = &operands[0];
        let gram = operand.gram().ok_or(MethodError::GramWidth {
            expected: operand.cols,
            found: 0,
        })?;
        let settings = sparse_low_rank::Settings {
            pattern: self.pattern,
            pruning: match self.pruning {
                Pruning::SparseGpt => sparse_low_rank::Pruning::SparseGpt(SPARSEGPT_DAMPING),
                _ => sparse_low_rank::Pruning::Wanda,
            },
            rank: self.rank,
            sweeps: SWEEPS,
            damping: DAMPING,
        };
        let d = sparse_low_rank::decompose(&operand.w, operand.rows(), gram, &settings)?;
        Ok(vec![d.sparse, d.factors.a, d.factors.b])
    }
}
