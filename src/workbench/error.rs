//! Why work on a checkpoint failed.

use std::path::PathBuf;

use crate::eval::EvalError;

/// Why work on a checkpoint failed. Existing files are untouched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum Error {
    #[error("`{}`: {source}", path.display())]
    Text {
        path: PathBuf,
        source: Box<EvalError>,
    },
    #[error(
        "`{key}` in `[structure]` is decided by what the model does with a text, and none was given"
    )]
    TextMissing { key: &'static str },
    #[error(
        "there is nothing to measure in parts: neither a size nor a quality is asked for, and no layer is rounded for its output"
    )]
    NothingToMeasure,
    #[error(
        "`{}` and `{}` are not the same; delete the one that is wrong", found.display(), there.display()
    )]
    TwoMeasurements { found: PathBuf, there: PathBuf },
    #[error("the adapter in `{}` does not say which checkpoint it was trained on", .0.display())]
    NoBase(PathBuf),
    #[error("`{}` has no workspace of a model", .0.display())]
    NoWorkspace(PathBuf),
    #[error(
        "neither `XDG_CACHE_HOME` nor `HOME` is set, so there is no cache folder for measured sensitivities"
    )]
    NoCacheFolder,
    #[error("the comparison gave no divergence")]
    NothingCompared,
    #[error("a `.gguf` file can't hold the factors of {count} tensors ({shown})")]
    NotStock { count: usize, shown: String },
    #[error("`{}` ends neither in `.gguf` (for any llama.cpp) nor in `.dwn` (compressed container)", .0.display())]
    Extension(PathBuf),
    #[error("`{}`: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error(transparent)]
    Calibrate(#[from] crate::measure::CalibrateError),
    #[error(transparent)]
    Llama(#[from] crate::llama::model::LlamaError),
    #[error(transparent)]
    Claims(#[from] dwindle_formats::output::ClaimError),
    #[error(transparent)]
    Importance(#[from] crate::statistics::ImportanceError),
    #[error(transparent)]
    Diagnosis(#[from] crate::statistics::DiagnosisError),
    #[error(transparent)]
    Checkpoint(#[from] crate::architecture::Error),
    #[error(transparent)]
    Target(#[from] crate::target::BudgetError),
    #[error(transparent)]
    Recipe(#[from] crate::plan::RecipeError),
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    #[error(transparent)]
    Write(#[from] crate::writing::PipelineError),
    #[error(transparent)]
    Division(#[from] crate::writing::DivisionError),
    #[error("a container is one file; only a `.gguf` is written in parts")]
    SplitContainer,
    #[error(transparent)]
    Fit(#[from] crate::fitting::FitError),
    #[error(transparent)]
    Blockwise(#[from] crate::blockwise::BlockwiseError),
    #[error(transparent)]
    Load(#[from] crate::runtime::LoadError),
    #[error(transparent)]
    Structure(#[from] crate::structure::StructureError),
    #[error(transparent)]
    Statistics(#[from] crate::statistics::StatisticsError),
    #[error(transparent)]
    Survey(#[from] crate::statistics::SurveyError),
    #[error(transparent)]
    Ggml(#[from] crate::ggml::GgmlError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
