//! Ways to make a tensor smaller: one file each, pure functions of matrices and statistics that
//! know no file and no model.

pub mod quantize;
pub mod svd;
