//! What a loaded model's file says of it.

use std::ffi::CString;

use super::metadata::words;
use super::model::Model;

impl Model {
    /// llama.cpp's name of the model's family.
    pub fn architecture(&self) -> Option<String> {
        // SAFETY: the model lives.
        unsafe { words(self.raw(), c"general.architecture").ok()? }
    }

    /// A key of the architecture's.
    pub(super) fn own_words(&self, key: &str) -> Option<String> {
        let key = CString::new(format!("{}.{key}", self.architecture()?)).ok()?;
        // SAFETY: the model lives.
        unsafe { words(self.raw(), &key).ok()? }
    }
}
