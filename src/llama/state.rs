//! A context's state as bytes, to continue later or elsewhere.

use std::ffi::c_int;

use llama_cpp_sys_2 as sys;

use super::context::Context;
use super::error::LlamaError;
use super::guard::{Failure, guarded, logged};

impl Context<'_> {
    /// Keys, values and recurrent states of every sequence, as llama.cpp writes them; nothing where
    /// llama.cpp fails.
    pub fn state(&mut self) -> Vec<u8> {
        if self.is_broken() {
            return Vec::new();
        }
        let mut len = 0;
        // SAFETY: the context lives.
        let sized = guarded(|failure| unsafe { dwindle_state_size(self.raw(), &mut len, failure) });
        if sized.is_err() {
            self.break_off();
            return Vec::new();
        }
        let mut state = vec![0; len];
        // SAFETY: the buffer has the length that is passed.
        let got = guarded(|failure| unsafe {
            dwindle_state_get(self.raw(), state.as_mut_ptr(), &mut len, failure)
        });
        if got.is_err() {
            self.break_off();
            return Vec::new();
        }
        state.truncate(len);
        state
    }

    /// Goes on from a state that a context of the same model and options has given.
    ///
    /// # Errors
    /// llama.cpp refuses it; its memory is empty then.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), LlamaError> {
        if self.is_broken() {
            return Err(LlamaError::Broken);
        }
        let mut len = state.len();
        // SAFETY: the state has the length that is passed, and llama.cpp reads within it.
        let (set, log) = logged(|failure| unsafe {
            dwindle_state_set(self.raw(), state.as_ptr(), &mut len, failure)
        });
        let reason = match set {
            Ok(()) if len == state.len() && len > 0 => return Ok(()),
            Ok(()) => log,
            Err(stopped) => {
                self.break_off();
                stopped.reason
            }
        };
        self.clear();
        Err(LlamaError::State { reason })
    }

    /// Bytes of what the context keeps of one sequence; 0 where llama.cpp fails.
    pub fn sequence_bytes(&mut self, sequence: usize) -> usize {
        let Some(sequence) = self.known(sequence) else {
            return 0;
        };
        let mut len = 0;
        // SAFETY: the context lives and has the sequence.
        let sized = guarded(|failure| unsafe {
            dwindle_sequence_size(self.raw(), sequence, &mut len, failure)
        });
        if sized.is_err() {
            self.break_off();
            return 0;
        }
        len
    }

    /// What the context keeps of one sequence, as llama.cpp writes it; nothing where llama.cpp fails.
    pub fn sequence_state(&mut self, sequence: usize) -> Vec<u8> {
        let mut len = self.sequence_bytes(sequence);
        let Some(sequence) = self.known(sequence).filter(|_| len > 0) else {
            return Vec::new();
        };
        let mut state = vec![0; len];
        // SAFETY: the buffer has the length that is passed.
        let got = guarded(|failure| unsafe {
            let bytes = state.as_mut_ptr();
            dwindle_sequence_get(self.raw(), sequence, bytes, &mut len, failure)
        });
        if got.is_err() {
            self.break_off();
            return Vec::new();
        }
        state.truncate(len);
        state
    }

    /// Puts a state of one sequence in the place of what the context has of it. llama.cpp reads rows of the layers that the
    /// context has, and refuses others; the caller has held the state against the format.
    ///
    /// # Errors
    /// llama.cpp refuses it; the sequence is empty then.
    pub fn restore_sequence(&mut self, sequence: usize, state: &[u8]) -> Result<(), LlamaError> {
        let unknown = || LlamaError::State {
            reason: format!("the context has no sequence {sequence}"),
        };
        let id = self.known(sequence).ok_or_else(unknown)?;
        self.forget(sequence);
        let mut len = state.len();
        // SAFETY: the state has the length that is passed, and llama.cpp reads within it.
        let (set, log) = logged(|failure| unsafe {
            dwindle_sequence_set(self.raw(), id, state.as_ptr(), &mut len, failure)
        });
        let reason = match set {
            Ok(()) if len == state.len() && len > 0 => return Ok(()),
            Ok(()) => log,
            Err(stopped) => {
                self.break_off();
                stopped.reason
            }
        };
        self.forget(sequence);
        Err(LlamaError::State { reason })
    }

    /// Forgets what a sequence has from a position on. Whether that could be done: recurrent states can't go back.
    pub fn forget_from(&mut self, sequence: usize, position: usize) -> bool {
        let (Some(sequence), Ok(position)) = (self.known(sequence), i32::try_from(position)) else {
            return false;
        };
        let mut is_done = false;
        // SAFETY: the context lives and has the sequence.
        let asked = guarded(|failure| unsafe {
            dwindle_forget_from(self.raw(), sequence, position, &mut is_done, failure)
        });
        if asked.is_err() {
            self.break_off();
        }
        is_done
    }

    fn known(&self, sequence: usize) -> Option<i32> {
        let sequence = i32::try_from(sequence).ok()?;
        (!self.is_broken() && (sequence as usize) < self.n_sequences()).then_some(sequence)
    }
}

unsafe extern "C" {
    fn dwindle_forget_from(
        context: *mut sys::llama_context,
        sequence: i32,
        position: i32,
        is_done: *mut bool,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_sequence_size(
        context: *mut sys::llama_context,
        sequence: i32,
        size: *mut usize,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_sequence_get(
        context: *mut sys::llama_context,
        sequence: i32,
        bytes: *mut u8,
        size: *mut usize,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_sequence_set(
        context: *mut sys::llama_context,
        sequence: i32,
        bytes: *const u8,
        size: *mut usize,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_state_size(
        context: *mut sys::llama_context,
        size: *mut usize,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_state_get(
        context: *mut sys::llama_context,
        bytes: *mut u8,
        size: *mut usize,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_state_set(
        context: *mut sys::llama_context,
        bytes: *const u8,
        size: *mut usize,
        failure: *mut Failure,
    ) -> c_int;
}
