//! What calibration measured of each linear layer's input.

mod accumulate;
mod calibrate;
mod identity;
mod imatrix;
mod layout;
mod reader;
mod writer;

pub use accumulate::{Accumulator, add_panels};
pub use calibrate::{
    CalibrateError, CalibrateOptions, Calibration, MAX_GRAM_WIDTH, Outputs, Progress, calibrate,
};
pub use identity::{Identity, is_norm};
pub use imatrix::{Importance, ImportanceError};
pub use layout::{Group, Provenance};
pub use reader::{Gram, Statistics, StatisticsError};
