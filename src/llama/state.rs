//! What a context remembers, as bytes: to go on later, or elsewhere.

use llama_cpp_sys_2 as sys;

use super::context::Context;
use super::model::LlamaError;

impl Context<'_> {
    /// Keys, values and recurrent states of every sequence, as llama.cpp writes them.
    pub fn state(&mut self) -> Vec<u8> {
        // SAFETY: the context lives.
        let len = unsafe { sys::llama_state_get_size(self.raw()) };
        let mut state = vec![0; len];
        // SAFETY: the buffer has the length that is passed.
        let written = unsafe { sys::llama_state_get_data(self.raw(), state.as_mut_ptr(), len) };
        state.truncate(written);
        state
    }

    /// Goes on from a state that a context of the same model and options has given.
    ///
    /// # Errors
    /// llama.cpp refuses it; its memory is empty then.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), LlamaError> {
        let set = || {
            // SAFETY: the state has the length that is passed, and llama.cpp reads within it.
            unsafe { sys::llama_state_set_data(self.raw(), state.as_ptr(), state.len()) }
        };
        let (read, reason) = super::backend::with_log(set);
        if read == state.len() && read > 0 {
            return Ok(());
        }
        self.clear();
        Err(LlamaError::State { reason })
    }
}
