//! What llama.cpp knows of a model's vocabulary.

use std::ffi::c_int;

use llama_cpp_sys_2 as sys;

use super::guard::{Failure, Stopped, guarded};
use super::metadata::words;

/// A token's number.
pub type Token = i32;

/// What llama.cpp knows of a vocabulary, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vocabulary {
    pub facts: Facts,
    /// Whether texts are split by expressions before they are tokenized.
    pub splits_texts: bool,
    /// The name of those expressions.
    pub pre_tokenizer: String,
}

/// Mirrors `dwindle_vocabulary` in calls.cpp.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Facts {
    pub kind: i32,
    pub n_tokens: i32,
    pub bos: Token,
    pub eos: Token,
    pub eot: Token,
    pub add_bos: bool,
    pub add_eos: bool,
}

impl Vocabulary {
    /// # Safety
    /// The model is one that llama.cpp has loaded.
    pub(super) unsafe fn of(model: *const sys::llama_model) -> Result<Vocabulary, Stopped> {
        let mut facts = Facts::default();
        // SAFETY: the model is valid by contract.
        guarded(|failure| unsafe { dwindle_vocabulary_of(model, &mut facts, failure) })?;
        // SAFETY: as above.
        let name = unsafe { words(model, c"tokenizer.ggml.pre")? };
        Ok(Vocabulary {
            facts,
            splits_texts: facts.kind as sys::llama_vocab_type == sys::LLAMA_VOCAB_TYPE_BPE,
            pre_tokenizer: name.unwrap_or_default(),
        })
    }
}

unsafe extern "C" {
    fn dwindle_vocabulary_of(
        model: *const sys::llama_model,
        out: *mut Facts,
        failure: *mut Failure,
    ) -> c_int;
}
