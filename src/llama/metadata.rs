//! Keys of a loaded model's metadata.

use std::ffi::{CStr, c_char, c_int};

use llama_cpp_sys_2 as sys;

use super::guard::{Failure, Stopped, guarded};

/// Bytes of a value that are read.
const MOST: usize = 64;

/// The beginning of a value as words, or nothing where there is no such key.
///
/// # Safety
/// The model is one that llama.cpp has loaded.
pub(super) unsafe fn words(
    model: *const sys::llama_model,
    key: &CStr,
) -> Result<Option<String>, Stopped> {
    let mut text = [0u8; MOST];
    let mut count = 0;
    // SAFETY: the model is valid by contract; the key is a C string and the buffer has the length that is passed.
    guarded(|failure| unsafe {
        let out = text.as_mut_ptr().cast();
        dwindle_metadata(model, key.as_ptr(), out, text.len(), &mut count, failure)
    })?;
    let end = text.iter().position(|b| *b == 0).unwrap_or(0);
    let words = String::from_utf8_lossy(&text[..end]).into_owned();
    Ok((count >= 0).then_some(words))
}

unsafe extern "C" {
    fn dwindle_metadata(
        model: *const sys::llama_model,
        key: *const c_char,
        text: *mut c_char,
        len: usize,
        count: *mut i32,
        failure: *mut Failure,
    ) -> c_int;
}
