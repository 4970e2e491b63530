//! Measures a running model: the inputs of its layers, and what compressing each tensor costs.

mod calibrate;
mod compare;
pub mod corpus;
mod diagnosis;
mod experiment;
mod predictions;

pub use calibrate::{
    CalibrateError, CalibrateOptions, Calibration, CalibrationText, MAX_GRAM_WIDTH, Outputs,
    Progress, calibrate,
};
pub use compare::{TensorDifference, compare};
pub use diagnosis::{DiagnoseError, activations, divergences, tensors};
pub use experiment::{Experiment, ExperimentError};
pub use predictions::Predictions;
