//! A text with its name.

use std::path::{Path, PathBuf};

use dwindle_formats::bounded::{self, limits};

use super::Error;
use crate::eval::EvalError;

/// A text that a model is run on.
#[derive(Debug, Clone)]
pub struct Text {
    /// Where it is.
    pub path: PathBuf,
    /// The words.
    pub words: String,
}

impl Text {
    /// Reads a file of UTF-8.
    ///
    /// # Errors
    /// A file that is not there, too long, or no text.
    pub fn read(path: &Path) -> Result<Text, Error> {
        Ok(Text {
            path: path.to_path_buf(),
            words: bounded::read_text(path, limits::TEXT)?,
        })
    }

    /// A text that comes with dwindle.
    pub(super) fn built_in(name: &str, words: &str) -> Text {
        Text {
            path: PathBuf::from(name),
            words: words.to_string(),
        }
    }

    /// The file's name, without its folder.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// An error of an evaluation, with the text's name where the text is what is wrong.
    pub(super) fn blame(&self, error: EvalError) -> Error {
        match error {
            EvalError::TextTooShort { .. } => Error::Text {
                path: self.path.clone(),
                source: Box::new(error),
            },
            error => error.into(),
        }
    }
}
