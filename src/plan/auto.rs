//! One budget for all tensors of a rule.

use dwindle_formats::gguf::TensorType;

use super::resolve::PlanError;
use super::resolver::{Resolved, Resolver};

impl Resolver<'_> {
    pub fn auto(
        &self,
        members: &[usize],
        keep: f64,
        joint: bool,
        ty: TensorType,
        rule: usize,
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        let _ = (members, keep, joint, ty, rule);
        Ok(Vec::new())
    }
}
