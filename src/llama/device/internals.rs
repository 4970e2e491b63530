//! ggml's internal types, as the sources of the linked library define them.
#![allow(
    missing_docs,
    non_camel_case_types,
    dead_code,
    clippy::all,
    unused_imports
)]

include!(concat!(env!("OUT_DIR"), "/internals.rs"));
