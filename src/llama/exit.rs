//! Ending the process while llama.cpp computes.

/// Ends the process at once, without what else runs at an exit: destructors of C++ statics take
/// away what threads of llama.cpp that still compute are using, and the process would crash.
/// Buffered output is lost.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` runs no code of this process.
    unsafe { libc::_exit(code) }
}
