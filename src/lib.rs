//! Compresses a Hugging Face checkpoint, or a GGUF file, into the best file of a given size that
//! runs under llama.cpp, and measures the loss.
//!
//! [`Compress`] writes a stock `.gguf` that any llama.cpp loads, or a `.dwn` container, which may
//! hold factors and has a checksum for every byte. What it needs to know of a model it measures, and
//! keeps in a workspace. [`verify`] says whether a file is whole, and [`evaluate`] how far its predictions are
//! from the checkpoint's.
//!
//! # Example
//!
//! A checkpoint as a file of 45 % of its bytes, with the progress on stderr:
//!
//! ```
//! use dwindle::{Choosing, Compress, Effort, Goal, Progress};
//!
//! struct Stages;
//! impl Progress for Stages {
//!     fn begin(&self, stage: &'static str, total: u64, _: dwindle::Unit) {
//!         eprintln!("{stage}: {total}");
//!     }
//! }
//!
//! # let folder = tempfile::tempdir()?;
//! # let [measured, file] = ["measured", "m.gguf"].map(|f| folder.path().join(f));
//! let done = Compress::checkpoint("fixtures/kjv-llama")
//!     .goal(Goal::Part(0.45))
//!     .choosing(Choosing { effort: Effort::Fast, chunks: Some(4), ..Choosing::default() })
//!     .workspaces(measured)
//!     .progress(&Stages)
//!     .write(&file)?;
//! println!("{:?}, predicted and measured", done.outcome);
//! assert!(dwindle::verify(&file, &Stages)?.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! `cli` (the `dwindle` command) and `serve` (its OpenAI-compatible server) are on by default; a
//! library that turns them off depends on neither clap nor an HTTP server. `cuda` and `vulkan` run
//! models on GPUs.
//!
//! The modules that are not shown here are the program's own and change without notice.

pub use dwindle_plan::{Plan, Recipe, RecipeError};
pub use eval::{EvalOptions, Evaluation};
pub use fitting::FitOptions;
pub use llama::placement::{Placement, Split};
pub use measure::{CalibrateOptions, Calibration};
pub use progress::{Progress, Unit};
pub use workbench::{
    Choosing, Compress, Compressed, Effort, Error, Gate, Goal, Outcome, StructureReport, calibrate,
    evaluate, verify,
};
pub use writing::Summary;

#[doc(hidden)]
pub use dwindle_architecture as architecture;
#[doc(hidden)]
pub use dwindle_checkpoint as checkpoint;
#[doc(hidden)]
pub use dwindle_ggml as ggml;
#[doc(hidden)]
pub use dwindle_kv as kv;
#[doc(hidden)]
pub use dwindle_mapped as mapped;
#[doc(hidden)]
pub use dwindle_method as method;
#[doc(hidden)]
pub use dwindle_plan as plan;
#[doc(hidden)]
pub use dwindle_statistics as statistics;

#[doc(hidden)]
pub mod blockwise;
#[doc(hidden)]
pub mod cache;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod eval;
#[doc(hidden)]
pub mod fitting;
#[doc(hidden)]
pub mod llama;
#[doc(hidden)]
pub mod measure;
#[doc(hidden)]
pub mod progress;
#[doc(hidden)]
pub mod runtime;
#[cfg(feature = "serve")]
#[doc(hidden)]
pub mod serve;
#[doc(hidden)]
pub mod structure;
#[doc(hidden)]
pub mod target;
#[doc(hidden)]
pub mod workbench;
#[doc(hidden)]
pub mod writing;
