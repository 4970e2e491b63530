//! `quantize`: every element in another type.

use std::sync::Arc;

use dwindle_formats::gguf::TensorType;
use serde::Deserialize;

use super::{Method, keys, registered};
use crate::resolve::PlanError;
use crate::resolver::{Resolved, Resolver};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    #[serde(rename = "type")]
    ty: Option<String>,
}

impl registered::Keys for Keys {
    fn check(self, _name: &'static str) -> Result<Arc<dyn Method>, String> {
        let ty = keys::element_type(self.ty.as_deref())?;
        if self.ty.is_none() {
            return Err("`quantize` needs `type`, such as `type = \"q8_0\"`".into());
        }
        Ok(Arc::new(Quantize(ty)))
    }
}

/// Every element in this type, or in the source's.
#[derive(Debug)]
pub(crate) struct Quantize(pub Option<TensorType>);

impl Method for Quantize {
    fn resolve(&self, resolver: &Resolver<'_>, index: usize) -> Result<Resolved, PlanError> {
        let ty = self.0.unwrap_or(resolver.source_type(index));
        Ok(resolver.fitting(index, ty))
    }

    fn follows_structure(&self) -> bool {
        true
    }
}
