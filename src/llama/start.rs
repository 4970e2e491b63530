//! llama.cpp's process-wide state, which is started once.

use std::sync::Once;

use llama_cpp_sys_2 as sys;

use super::ggml::Linked;
use super::log::on_log;

/// Starts llama.cpp if it has not been started, with its log silenced, and makes it the library of
/// [`dwindle_ggml`].
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: called once; the callback is a static function that needs no user data, and the
        // shim hands ggml a function that lives as long as the process.
        unsafe {
            sys::llama_log_set(Some(on_log), std::ptr::null_mut());
            sys::llama_backend_init();
            dwindle_catch_aborts();
        }
        // Last, as whoever has the library takes it for started.
        dwindle_ggml::install(&Linked);
    });
}

unsafe extern "C" {
    fn dwindle_catch_aborts();
}
