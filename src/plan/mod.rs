//! From wishes to a plan: every output tensor's name, shape, type and byte size, fixed before the
//! first byte is written.

mod base;
mod preset;
mod recipe;
mod resolve;

pub use preset::{PRESETS, Preset, preset};
pub use recipe::{Base, LayerRange, Method, Rank, Recipe, RecipeError, Rule};
pub use resolve::{Fallback, Plan, PlanError, Step, Treatment, resolve};
