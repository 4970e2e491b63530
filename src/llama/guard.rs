//! Calls llama.cpp without letting exceptions or aborts escape. C++ exceptions that unwind into
//! Rust are undefined behaviour, and a failed assertion would end the process. The shim (`guard.h`,
//! `calls.cpp`) catches both, and this module makes errors of them.
//!
//! An assertion that fails on a worker thread of a computation can't be caught: the process ends.
//! What is known to lead there is refused before loading (`admission`); for the rest,
//! [`end_quietly`] chooses how.

use std::ffi::{CStr, c_char, c_int};

use super::log::with_log;
use super::start::init;

/// How a call ended that did not return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stopped {
    /// What llama.cpp says.
    pub reason: String,
    /// Whether an assertion has failed: then what the call worked on may be in any state, and is
    /// neither used nor freed.
    pub is_assertion: bool,
}

/// Mirrors `dwindle_failure` in guard.h.
#[repr(C)]
pub(super) struct Failure {
    text: [c_char; 1024],
}

const DONE: c_int = 0;
const FAILED: c_int = 2;

/// Runs a function of the shim, which fills the failure in where it does not return 0. Gives what
/// llama.cpp logged meanwhile as well.
pub(super) fn logged(call: impl FnOnce(*mut Failure) -> c_int) -> (Result<(), Stopped>, String) {
    let mut failure = Failure { text: [0; 1024] };
    init();
    let (ended, log) = with_log(|| call(&mut failure));
    if ended == DONE {
        return (Ok(()), log);
    }
    // SAFETY: the text lies in `failure`, and its last byte is zero in any case: the shim writes
    // with snprintf.
    let text = unsafe { CStr::from_ptr(failure.text.as_ptr()) };
    let stopped = Stopped {
        reason: text.to_string_lossy().into_owned(),
        is_assertion: ended == FAILED,
    };
    (Err(stopped), log)
}

/// As [`logged`], without the log.
pub(super) fn guarded(call: impl FnOnce(*mut Failure) -> c_int) -> Result<(), Stopped> {
    logged(call).0
}

/// From now on, where llama.cpp can only end the process, the process ends with this exit code and
/// one sentence on stderr, instead of by a signal. For programs; a library's caller may want the
/// core dump.
pub fn end_quietly(code: u8) {
    // SAFETY: stores a number.
    unsafe { dwindle_end_with(code.into()) };
}

/// Lives in each function that llama.cpp calls back: no exception may cross it, so that an
/// assertion which fails inside is not thrown.
pub(super) struct CalledBack(());

impl CalledBack {
    pub(super) fn begin() -> CalledBack {
        // SAFETY: counts on this thread.
        unsafe { dwindle_foreign(1) };
        CalledBack(())
    }
}

impl Drop for CalledBack {
    fn drop(&mut self) {
        // SAFETY: as above; it was counted once.
        unsafe { dwindle_foreign(-1) };
    }
}

unsafe extern "C" {
    fn dwindle_end_with(code: c_int);
    fn dwindle_foreign(by: c_int);
    #[cfg(test)]
    fn dwindle_provoke(how: c_int, failure: *mut Failure) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provoke(how: c_int) -> Result<(), Stopped> {
        // SAFETY: the failure is valid during the call.
        guarded(|failure| unsafe { dwindle_provoke(how, failure) })
    }

    #[test]
    fn exceptions_and_failed_assertions_become_errors() {
        assert_eq!(provoke(0), Ok(()));
        let thrown = provoke(1).unwrap_err();
        assert!(!thrown.is_assertion && thrown.reason.contains("bad_alloc"));
        let failed = provoke(FAILED).unwrap_err();
        assert!(failed.is_assertion);
        assert!(failed.reason.starts_with("guard.cpp:"), "{}", failed.reason);
        assert!(failed.reason.ends_with("provoked"), "{}", failed.reason);
        assert_eq!(provoke(0), Ok(()), "the next call is not affected");
    }

    #[test]
    fn a_guard_inside_of_a_callback_catches_too() {
        let _called = CalledBack::begin();
        assert!(provoke(FAILED).unwrap_err().is_assertion);
    }

    #[test]
    fn other_threads_are_guarded_too() {
        let failed = std::thread::spawn(|| provoke(FAILED)).join().unwrap();
        assert!(failed.unwrap_err().is_assertion);
    }
}
