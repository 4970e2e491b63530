//! What llama.cpp knows of a model's vocabulary.

use std::ffi::{c_char, c_int};

use llama_cpp_sys_2 as sys;

use super::guard::{Failure, Stopped, guarded};

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
        let mut name = [0u8; 64];
        let mut count = 0;
        // SAFETY: as above; the key is a C string and the buffer has the length that is passed.
        guarded(|failure| unsafe {
            let (key, text) = (c"tokenizer.ggml.pre".as_ptr(), name.as_mut_ptr().cast());
            dwindle_metadata(model, key, text, name.len(), &mut count, failure)
        })?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(0);
        Ok(Vocabulary {
            facts,
            splits_texts: facts.kind as sys::llama_vocab_type == sys::LLAMA_VOCAB_TYPE_BPE,
            pre_tokenizer: String::from_utf8_lossy(&name[..end]).into_owned(),
        })
    }
}

unsafe extern "C" {
    fn dwindle_vocabulary_of(
        model: *const sys::llama_model,
        out: *mut Facts,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_metadata(
        model: *const sys::llama_model,
        key: *const c_char,
        text: *mut c_char,
        len: usize,
        count: *mut i32,
        failure: *mut Failure,
    ) -> c_int;
}
