//! From wishes to a plan: every output tensor's name, shape, type and byte size, fixed before the
//! first byte is written.

mod auto;
mod base;
mod fingerprint;
mod layers;
mod low_rank;
mod multilinear;
mod operand;
mod preset;
mod recipe;
mod resolve;
mod resolver;
mod rule;
mod rule_index;
mod structure;
mod subject;
mod treatment;

pub use fingerprint::Fingerprint;
pub use layers::LayerRange;
pub use operand::{Operand, TransformError};
pub use preset::{PRESETS, Preset, preset};
pub use recipe::{Base, Recipe, RecipeError, Rounding, Rule};
pub use resolve::{Plan, PlanError, resolve};
pub use rule::{Decomposition, Method, Rank, Ranks};
pub use structure::{Dropped, Structure};
pub use subject::Subject;
pub use treatment::{Fallback, Multilinear, Stack, Step, Treatment};
