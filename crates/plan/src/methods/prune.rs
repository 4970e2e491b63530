//! `magnitude`, `wanda` and `sparsegpt`: some elements become zero.

use std::sync::Arc;

use dwindle_formats::gguf::TensorType;
use dwindle_method::prune::Pruning;
use dwindle_method::sparsity::Pattern;
use serde::Deserialize;

use super::{Make, Method, keys, registered};
use crate::operand::{Operand, TransformError};
use crate::resolve::PlanError;
use crate::resolver::{Resolved, Resolver};
use crate::treatment::{Operands, Treatment};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    #[serde(rename = "type")]
    ty: Option<String>,
    sparsity: Option<f64>,
    pattern: Option<String>,
}

impl registered::Keys for Keys {
    fn check(self, name: &'static str) -> Result<Arc<dyn Method>, String> {
        let pruning = Pruning::from_name(name)
            .ok_or_else(|| format!("`{name}` is listed as a pruning and is none"))?;
        let ty = keys::element_type(self.ty.as_deref())?;
        let pattern = keys::zeros(name, self.sparsity, self.pattern.as_deref())?;
        Ok(Arc::new(Prune {
            zeros: Zeros { pruning, pattern },
            ty,
        }))
    }
}

#[derive(Debug)]
struct Prune {
    zeros: Zeros,
    /// The element type of the rest; `None` keeps the source's.
    ty: Option<TensorType>,
}

/// Which elements become zero.
#[derive(Debug, Clone, Copy)]
struct Zeros {
    pruning: Pruning,
    pattern: Pattern,
}

impl Method for Prune {
    fn resolve(&self, resolver: &Resolver<'_>, index: usize) -> Result<Resolved, PlanError> {
        let Zeros { pruning, pattern } = self.zeros;
        if pruning.needs_gram() {
            resolver.require_statistics(index, pruning.name())?;
        }
        let ty = self.ty.unwrap_or(resolver.source_type(index));
        let (mut step, fallback) = resolver.fitting(index, ty);
        let zeros = pattern.zeros(resolver.tensor(index).elements() as usize) as u64;
        step.stored.method = pruning.name().into();
        step.stored.parameters.insert("zeros".into(), zeros.into());
        step.treatment = Treatment::made(Operands::Matrices, self.zeros);
        Ok((step, fallback))
    }
}

impl Make for Zeros {
    fn parts(&self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError> {
        let mut pruned = Vec::new();
        for o in operands {
            let (rows, gram) = (o.rows(), o.gram());
            pruned.extend(self.pruning.prune(&o.w, rows, o.cols, gram, self.pattern)?);
        }
        Ok(vec![pruned])
    }
}
