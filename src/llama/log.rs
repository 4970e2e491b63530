//! llama.cpp's log: kept quiet, and at hand for errors.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};

use llama_cpp_sys_2 as sys;

/// Lines of warnings and errors that are kept while something is being captured.
const KEPT_LINES: usize = 32;

thread_local! {
    static LINES: RefCell<Vec<(sys::ggml_log_level, String)>> = const { RefCell::new(Vec::new()) };
}

/// What llama.cpp calls with each line of its log. It logs on the thread that calls it, so the lines
/// are kept per thread.
///
/// # Safety
/// The text is null or a C string.
pub(super) unsafe extern "C" fn on_log(
    level: sys::ggml_log_level,
    text: *const c_char,
    _: *mut c_void,
) {
    let wanted = matches!(
        level,
        sys::GGML_LOG_LEVEL_WARN | sys::GGML_LOG_LEVEL_ERROR | sys::GGML_LOG_LEVEL_CONT
    );
    if !wanted || text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives as long as the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // A thread that is ending has no lines any more; what it logs then is nobody's error.
    let _ = LINES.try_with(|lines| {
        let Ok(mut lines) = lines.try_borrow_mut() else {
            return;
        };
        if level != sys::GGML_LOG_LEVEL_CONT {
            if lines.len() == KEPT_LINES {
                lines.remove(0);
            }
            lines.push((level, text.into_owned()));
        } else if let Some((_, last)) = lines.last_mut()
            && last.len() < 4096
        {
            last.push_str(&text);
        }
    });
}

/// Runs a call into llama.cpp, and returns its result with what llama.cpp logged as errors
/// (as warnings, if there was no error), in one sentence.
pub(super) fn with_log<T>(call: impl FnOnce() -> T) -> (T, String) {
    LINES.with_borrow_mut(Vec::clear);
    let result = call();
    let lines = LINES.with_borrow_mut(std::mem::take);
    let of_level = |wanted| -> Vec<String> {
        let lines = lines.iter().filter(|(level, _)| *level == wanted);
        lines.map(|(_, text)| without_function(text)).collect()
    };
    let mut text = of_level(sys::GGML_LOG_LEVEL_ERROR);
    if text.is_empty() {
        text = of_level(sys::GGML_LOG_LEVEL_WARN);
    }
    text.retain(|line| !line.is_empty());
    text.dedup();
    // The first line says what went wrong, later ones who else noticed.
    text.truncate(2);
    let text = if text.is_empty() {
        "llama.cpp gave no reason".to_string()
    } else {
        text.join("; ")
    };
    (result, text)
}

/// `llama_model_load: error loading model: x` -> `error loading model: x`.
fn without_function(line: &str) -> String {
    let line = line.trim();
    match line.split_once(": ") {
        Some((function, rest))
            if !function.is_empty()
                && function
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '_') =>
        {
            rest.trim().to_string()
        }
        _ => line.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_names_are_dropped() {
        assert_eq!(without_function("llama_load: bad: x\n"), "bad: x");
        assert_eq!(without_function("tensor 'a b': y"), "tensor 'a b': y");
    }
}
