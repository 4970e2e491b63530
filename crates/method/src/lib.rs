//! Ways to make a tensor smaller: one file each, pure functions of matrices and statistics that
//! know no file and no model.

pub mod allocate;
pub mod cp;
pub mod drift;
pub mod eigen;
pub mod error;
pub mod fitting_type;
pub mod gram;
pub mod joint;
pub mod linear;
pub mod low_rank;
pub mod magnitude;
pub mod nystrom;
pub mod projection;
pub mod prune;
pub mod refit;
pub mod rotary_pairs;
pub mod rounding;
#[cfg(test)]
mod sample;
pub mod sparse_low_rank;
pub mod sparsegpt;
pub mod sparsity;
pub mod svd;
pub mod tensor;
pub mod tensor_train;
pub mod tucker;
pub mod value_output;
pub mod wanda;
pub mod whitened;
