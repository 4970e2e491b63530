//! dwindle converts a checkpoint, tensor by tensor, into a smaller file that runs under llama.cpp,
//! and proves what the smaller file costs in quality.

pub use dwindle_architecture as architecture;
pub use dwindle_checkpoint as checkpoint;
pub use dwindle_ggml as ggml;
pub use dwindle_mapped as mapped;
pub use dwindle_method as method;
pub use dwindle_plan as plan;
pub use dwindle_statistics as statistics;

#[cfg(feature = "cli")]
pub mod cli;
pub mod eval;
pub mod fitting;
pub mod llama;
pub mod measure;
pub mod progress;
pub mod runtime;
#[cfg(feature = "serve")]
pub mod serve;
pub mod structure;
pub mod target;
pub mod workbench;
pub mod writing;
