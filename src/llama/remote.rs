//! Devices of other processes and machines, by llama.cpp's RPC.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::error::LlamaError;
use super::guard::{Failure, guarded};
use super::placement::Placement;
use super::start::init;

/// Adds the devices of a server that listens at `HOST:PORT` to those that llama.cpp sees. A server that has
/// been added is not added again. When one is lost later, the process ends.
///
/// # Errors
/// No server of llama.cpp's version answers, or this build has no RPC.
pub fn add_server(endpoint: &str) -> Result<(), LlamaError> {
    init();
    let failed = |reason: String| LlamaError::Server {
        endpoint: endpoint.to_string(),
        reason,
    };
    let name = CString::new(endpoint).map_err(|e| failed(e.to_string()))?;
    let add = function(c"ggml_backend_rpc_add_server").ok_or(LlamaError::NoRpc)?;
    let mut registry = std::ptr::null_mut();
    // SAFETY: the name is a C string, and the function is the one that has this name.
    let added = guarded(|failure| unsafe {
        dwindle_add_server(add, name.as_ptr(), &mut registry, failure)
    });
    added.map_err(|stopped| failed(stopped.reason.trim().to_string()))?;
    if registry.is_null() {
        return Err(failed("it has no devices".into()));
    }
    Ok(())
}

/// Lends devices to whoever connects to `HOST:PORT`, until the process ends. Clients are neither checked nor
/// kept from anything: the address must be one that only friends reach.
///
/// # Errors
/// The address can't be listened at (llama.cpp's words are on stderr), a device that is not there, or this
/// build has no RPC.
pub fn lend(endpoint: &str, threads: u32, placement: &Placement) -> Result<Infallible, LlamaError> {
    init();
    let failed = |reason: &str| LlamaError::Lend {
        endpoint: endpoint.to_string(),
        reason: reason.to_string(),
    };
    let name = CString::new(endpoint).map_err(|_| failed("the address holds a zero byte"))?;
    let serve = function(c"ggml_backend_rpc_start_server").ok_or(LlamaError::NoRpc)?;
    let mut devices = placement.used()?;
    if devices.is_empty() {
        // SAFETY: gives a device of the registry, or null.
        devices.push(unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) });
    }
    // SAFETY: the name is a C string, the function is the one that has this name, and the devices are those
    // of the registry.
    let ended = guarded(|failure| unsafe {
        dwindle_lend(
            serve,
            name.as_ptr(),
            threads as usize,
            devices.len(),
            devices.as_mut_ptr(),
            failure,
        )
    });
    let reason = ended.err().map_or(String::new(), |stopped| stopped.reason);
    Err(failed(if reason.is_empty() {
        "llama.cpp's server has ended"
    } else {
        &reason
    }))
}

/// A function of llama.cpp's RPC, which a build may lack.
fn function(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the names are C strings; the registry lives as long as the process.
    unsafe {
        let registry = sys::ggml_backend_reg_by_name(c"RPC".as_ptr());
        if registry.is_null() {
            return None;
        }
        NonNull::new(sys::ggml_backend_reg_get_proc_address(
            registry,
            name.as_ptr(),
        ))
    }
}

unsafe extern "C" {
    fn dwindle_add_server(
        add: NonNull<c_void>,
        endpoint: *const c_char,
        registry: *mut sys::ggml_backend_reg_t,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_lend(
        serve: NonNull<c_void>,
        endpoint: *const c_char,
        threads: usize,
        count: usize,
        devices: *mut sys::ggml_backend_dev_t,
        failure: *mut Failure,
    ) -> c_int;
}
