//! What to do on the command line about an error of the library, whose own sentences name no
//! options.

use crate::cache::CacheError;
use crate::eval::EvalError;
use crate::fitting::FitError;
use crate::llama::model::LlamaError;
use crate::measure::{CalibrateError, DiagnoseError};
use crate::plan::PlanError;
use crate::runtime::LoadError;
use crate::statistics::{DiagnosisError, ImportanceError, StatisticsError};
use crate::structure::StructureError;
use crate::target::BudgetError;
use crate::workbench::Error;

const STATISTICS: &str = "measure them with `dwindle calibrate`, and pass the file as `--stats`";
const DIAGNOSIS: &str =
    "measure it with `dwindle diagnose --text`, and pass its output as `--diagnosis`";

/// An error about which there may be something to do on the command line.
pub trait Hint {
    /// What to do, in one clause.
    fn hint(&self) -> Option<&'static str> {
        None
    }
}

macro_rules! no_hints {
    ($($error:ty),* $(,)?) => {$( impl Hint for $error {} )*};
}
no_hints!(
    crate::architecture::Error,
    crate::writing::PipelineError,
    crate::runtime::ExportError,
    crate::runtime::StockError,
    crate::plan::RecipeError,
    crate::ggml::GgmlError,
    crate::statistics::SurveyError,
    dwindle_formats::output::ClaimError,
    std::io::Error,
);

#[cfg(feature = "serve")]
no_hints!(crate::serve::ServeError);

impl Hint for StatisticsError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            StatisticsError::Format { .. } | StatisticsError::Foreign { .. } => {
                Some("`dwindle calibrate` writes statistics")
            }
            _ => None,
        }
    }
}

impl Hint for ImportanceError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            ImportanceError::Gguf { .. } => {
                Some("`dwindle calibrate` and `llama-imatrix` write importance weights")
            }
            ImportanceError::Statistics(e) => e.hint(),
            _ => None,
        }
    }
}

impl Hint for DiagnosisError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            DiagnosisError::Foreign { .. } => Some("`dwindle diagnose` writes a diagnosis"),
            DiagnosisError::NoText { .. } => Some("make it again with `dwindle diagnose --text`"),
            _ => None,
        }
    }
}

impl Hint for PlanError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            PlanError::ImportanceMissing { .. } => Some(
                "measure them with `dwindle calibrate` or `llama-imatrix`, and pass the file as \
                 `--importance`; `--size` measures for itself",
            ),
            PlanError::StatisticsMissing { .. } | PlanError::NothingToRound => Some(STATISTICS),
            PlanError::StatisticsInBlocks { .. } => {
                Some("`--max-gram-width` of `dwindle calibrate` sets the limit")
            }
            PlanError::DiagnosisMissing { .. } => Some(DIAGNOSIS),
            _ => None,
        }
    }
}

impl Hint for StructureError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            StructureError::StatisticsMissing { .. } => Some(STATISTICS),
            StructureError::DiagnosisMissing { .. } => Some(DIAGNOSIS),
            StructureError::Statistics(e) => e.hint(),
            _ => None,
        }
    }
}

impl Hint for LlamaError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            LlamaError::NoChatTemplate | LlamaError::ChatTemplate(_) => {
                Some("without `--chat` the model continues the prompt as it is")
            }
            LlamaError::Encoder => Some("`dwindle embed` embeds texts"),
            LlamaError::Server { .. } => Some(
                "`dwindle rpc-server` starts one; both must have the same version of llama.cpp",
            ),
            _ => None,
        }
    }
}

impl Hint for CacheError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            CacheError::TooLong { .. } => Some("`--ctx` sets the context"),
            CacheError::Llama(e) => e.hint(),
            CacheError::Eval(e) => e.hint(),
            _ => None,
        }
    }
}

impl Hint for EvalError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            EvalError::Ctx(_) => Some("`--ctx` sets the context"),
            EvalError::TextTooShort { .. } => {
                Some("`--ctx` sets the context, in commands that have it")
            }
            EvalError::Llama(e) => e.hint(),
            _ => None,
        }
    }
}

impl Hint for FitError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            FitError::Encoder | FitError::Stream { .. } => {
                Some("without `--sequential` each layer is compressed by itself")
            }
            FitError::Text(e) => e.hint(),
            FitError::Llama(e) => e.hint(),
            _ => None,
        }
    }
}

impl Hint for CalibrateError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            CalibrateError::Text(e) => e.hint(),
            CalibrateError::Llama(e) => e.hint(),
            _ => None,
        }
    }
}

impl Hint for DiagnoseError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            DiagnoseError::Eval(e) => e.hint(),
            DiagnoseError::Llama(e) => e.hint(),
            _ => None,
        }
    }
}

impl Hint for LoadError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            LoadError::Plan(e) => e.hint(),
            LoadError::Llama(e) => e.hint(),
            _ => None,
        }
    }
}

impl Hint for BudgetError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            BudgetError::Plan(e) => e.hint(),
            BudgetError::Eval(e) => e.hint(),
            BudgetError::Llama(e) => e.hint(),
            _ => None,
        }
    }
}

impl Hint for Error {
    fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NoBase(_) => Some("`--base` says so"),
            Error::TextMissing { .. } => Some("`--text` gives it"),
            Error::Division(_) => Some("`--split-size` says how large a file may be"),
            Error::NothingToMeasure => Some(
                "`--part` goes with a target (`--size`, `--bpw`, `--max-kld`) or `--rounding output`",
            ),
            Error::NoCacheFolder => Some("`--workspace` names a folder"),
            Error::NotStock { .. } => Some(
                "write a `.dwn` container, from which `dwindle export` makes a dense `.gguf`, or change \
                 the recipe",
            ),
            Error::Text { source, .. } => source.hint(),
            Error::Calibrate(e) => e.hint(),
            Error::Importance(e) => e.hint(),
            Error::Diagnosis(e) => e.hint(),
            Error::Target(e) => e.hint(),
            Error::Plan(e) => e.hint(),
            Error::Fit(e) => e.hint(),
            Error::Load(e) => e.hint(),
            Error::Structure(e) => e.hint(),
            Error::Statistics(e) => e.hint(),
            Error::Eval(e) => e.hint(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Sources below a folder, without the command line and tests.
    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !["cli", "tests", "target"].contains(&name) {
                sources(&path, found);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn errors_of_the_library_name_no_options() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        for room in ["src", "crates", "formats"] {
            sources(&root.join(room), &mut files);
        }
        let mut errors = 0;
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            for error in text.split("#[error(").skip(1) {
                let sentence = error.split(")]").next().unwrap();
                errors += 1;
                for option in ["`--", "`dwindle "] {
                    let found = sentence.contains(option);
                    assert!(!found, "{}: {sentence}", file.display());
                }
            }
        }
        assert!(errors > 100, "only {errors} errors found");
    }

    #[test]
    fn hints_reach_through_the_errors_around() {
        let missing = || PlanError::DiagnosisMissing { tensor: "t".into() };
        let hint = missing().hint();
        assert!(hint.is_some_and(|h| h.contains("`--diagnosis`")));
        assert_eq!(Error::from(missing()).hint(), hint);
        assert_eq!(Error::from(BudgetError::from(missing())).hint(), hint);
        assert_eq!(Error::from(LoadError::from(missing())).hint(), hint);
    }
}
