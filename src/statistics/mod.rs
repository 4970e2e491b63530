//! What calibration measured of each linear layer's input.

mod imatrix;

pub use imatrix::{Importance, ImportanceError};
