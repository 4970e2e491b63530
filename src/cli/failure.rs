//! How commands fail, and the one place that prints failures.

use std::fmt;
use std::process::ExitCode;

use dwindle_formats::output::ClaimError;

use super::hints::Hint;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// A check ran and failed. Its findings are already printed.
    Check(String),
    /// The arguments contradict one another.
    Usage(String),
    /// The input, or the output's path, can't be used.
    Input(String),
    /// The reader of the output has gone away.
    BrokenPipe,
    /// A failure, and what to do about it.
    Hinted(Box<Failure>, &'static str),
}

impl Failure {
    /// A failure that concerns a file.
    pub fn file(path: &std::path::Path, error: impl fmt::Display) -> Failure {
        Failure::Input(format!("`{}`: {error}", path.display()))
    }

    /// This failure with a hint, where there is one.
    pub fn hinted(self, hint: Option<&'static str>) -> Failure {
        match hint {
            Some(hint) => Failure::Hinted(Box::new(self), hint),
            None => self,
        }
    }

    /// Prints the failure and gives its exit code.
    pub fn report(self) -> ExitCode {
        let (message, code) = match self {
            Failure::Check(message) => (message, 1),
            Failure::Usage(message) => (message, 2),
            Failure::Input(message) => (message, 3),
            Failure::BrokenPipe => return ExitCode::SUCCESS,
            Failure::Hinted(failure, hint) => {
                let code = failure.report();
                eprintln!("hint: {hint}");
                return code;
            }
        };
        eprintln!("error: {message}");
        ExitCode::from(code)
    }
}

/// An error of the library with its causes, in one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

macro_rules! input_errors {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(e: $error) -> Failure { Failure::Input(sentence(&e)).hinted(e.hint()) }
        }
    )*};
}
input_errors!(
    crate::architecture::Error,
    crate::cache::CacheError,
    crate::target::BudgetError,
    crate::llama::model::LlamaError,
    crate::writing::PipelineError,
    crate::fitting::FitError,
    crate::runtime::LoadError,
    crate::runtime::ExportError,
    crate::runtime::StockError,
    crate::plan::PlanError,
    crate::statistics::ImportanceError,
    crate::measure::CalibrateError,
    crate::statistics::DiagnosisError,
    crate::measure::DiagnoseError,
    crate::ggml::GgmlError,
    crate::statistics::StatisticsError,
    crate::statistics::SurveyError,
    crate::eval::EvalError,
    crate::structure::StructureError,
);

#[cfg(feature = "serve")]
input_errors!(crate::serve::ServeError);

impl From<crate::plan::RecipeError> for Failure {
    fn from(e: crate::plan::RecipeError) -> Failure {
        match e {
            crate::plan::RecipeError::UnknownBase(e) => e.into(),
            _ => Failure::Input(sentence(&e)),
        }
    }
}

impl From<crate::plan::UnknownBase> for Failure {
    fn from(e: crate::plan::UnknownBase) -> Failure {
        Failure::Usage(sentence(&e))
    }
}

impl From<ClaimError> for Failure {
    fn from(e: ClaimError) -> Failure {
        match e {
            ClaimError::Place(_) => Failure::Input(sentence(&e)),
            _ => Failure::Usage(sentence(&e)),
        }
    }
}

impl From<crate::workbench::Error> for Failure {
    fn from(e: crate::workbench::Error) -> Failure {
        use crate::workbench::Error;
        match e {
            Error::Recipe(e) => e.into(),
            Error::Plan(e) => e.into(),
            Error::Io(e) => e.into(),
            Error::Claims(e) => e.into(),
            Error::TextMissing { .. }
            | Error::NoCacheFolder
            | Error::NotStock { .. }
            | Error::Extension(_) => Failure::Usage(e.to_string()).hinted(e.hint()),
            e => Failure::Input(sentence(&e)).hinted(e.hint()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        match e.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Input(sentence(&e)),
        }
    }
}
