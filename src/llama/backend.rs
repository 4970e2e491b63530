//! llama.cpp's process-wide state: started once, its log kept quiet and at hand for errors, its
//! devices listed.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;

use llama_cpp_sys_2 as sys;

/// Lines of warnings and errors that are kept while something is being captured.
const KEPT_LINES: usize = 32;

thread_local! {
    static LINES: RefCell<Vec<(sys::ggml_log_level, String)>> = const { RefCell::new(Vec::new()) };
}

/// Starts llama.cpp if it has not been started, with its log silenced, and makes it the library of
/// [`dwindle_ggml`].
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        dwindle_ggml::install(&super::ggml::Linked);
        // SAFETY: called once; the callback is a static function that needs no user data.
        unsafe {
            sys::llama_log_set(Some(on_log), std::ptr::null_mut());
            sys::llama_backend_init();
        }
        super::guard::catch_aborts();
    });
}

/// llama.cpp logs on the thread that calls it, so the lines are kept per thread.
unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
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
    init();
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

/// A device that llama.cpp can run models on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Device {
    /// llama.cpp's name (`CUDA0`, `CPU`).
    pub name: String,
    /// What the driver calls it.
    pub description: String,
    /// Whether layers can be offloaded to it.
    pub offload: bool,
    /// Bytes of memory, free.
    pub memory_free: u64,
    /// Bytes of memory, in total.
    pub memory_total: u64,
}

/// Every device that this build of llama.cpp sees.
pub fn devices() -> Vec<Device> {
    raw_devices().map(describe).collect()
}

pub(super) fn raw_devices() -> impl Iterator<Item = sys::ggml_backend_dev_t> {
    init();
    // SAFETY: the registry is filled when llama.cpp is started and never shrinks.
    let count = unsafe { sys::ggml_backend_dev_count() };
    // SAFETY: the index is below the count.
    (0..count).map(|i| unsafe { sys::ggml_backend_dev_get(i) })
}

pub(super) fn describe(dev: sys::ggml_backend_dev_t) -> Device {
    let text = |p: *const c_char| {
        if p.is_null() {
            return String::new();
        }
        // SAFETY: device names are NUL-terminated and live as long as the device.
        unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned()
    };
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: `dev` comes from the registry and is never freed.
    let kind = unsafe {
        sys::ggml_backend_dev_memory(dev, &mut free, &mut total);
        sys::ggml_backend_dev_type(dev)
    };
    Device {
        // SAFETY: as above.
        name: text(unsafe { sys::ggml_backend_dev_name(dev) }),
        // SAFETY: as above.
        description: text(unsafe { sys::ggml_backend_dev_description(dev) }),
        offload: kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU
            || kind == sys::GGML_BACKEND_DEVICE_TYPE_IGPU,
        memory_free: free as u64,
        memory_total: total as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_a_device() {
        assert!(devices().iter().any(|d| d.name == "CPU" && !d.offload));
    }

    #[test]
    fn function_names_are_dropped() {
        assert_eq!(without_function("llama_load: bad: x\n"), "bad: x");
        assert_eq!(without_function("tensor 'a b': y"), "tensor 'a b': y");
    }
}
