//! From wishes to a plan: every output tensor's name, shape, type and byte size, fixed before the
//! first byte is written.

mod base;
mod fingerprint;
mod layers;
mod methods;
mod operand;
mod preset;
mod recipe;
mod resolve;
mod resolver;
mod rule;
mod rule_index;
mod structure;
mod subject;
mod tensor_error;
mod treatment;

pub use fingerprint::Fingerprint;
pub use layers::LayerRange;
pub use methods::Make;
pub use operand::{Operand, TransformError};
pub use preset::{PRESETS, Preset, preset};
pub use recipe::{Base, Recipe, RecipeError, Rounding, Rule, UnknownBase};
pub use resolve::{Plan, PlanError, resolve};
pub use structure::{Dropped, Structure};
pub use subject::Subject;
pub use tensor_error::TensorError;
pub use treatment::{Fallback, Operands, Step, Treatment};
