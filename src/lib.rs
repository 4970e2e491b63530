//! dwindle converts a checkpoint, tensor by tensor, into a smaller file that runs under llama.cpp,
//! and proves what the smaller file costs in quality.
//!
//! `checkpoint` reads the source, `architecture` sees it as a llama.cpp model, `structure` makes that
//! smaller where it is wanted, `plan` decides what becomes of each tensor, `pipeline` carries it out
//! with `method`s and `statistics`; `llama` runs the result, `eval` measures it. `diagnosis` finds out beforehand what
//! compressing would cost, and `budget` which types make the best file of a size.

pub mod architecture;
pub mod budget;
pub mod checkpoint;
pub mod diagnosis;
pub mod eval;
pub mod llama;
pub mod method;
pub mod pipeline;
pub mod plan;
pub mod serve;
pub mod statistics;
pub mod structure;
