//! Arbitrary bytes as a state that llama.cpp saved, and as a description of one. What is accepted is written again.

#![no_main]

use dwindle_formats::state::{Section, State, describe, described, read};
use libfuzzer_sys::fuzz_target;

fn lies_within(state: &State, len: usize) -> bool {
    state.sections.iter().all(|section| match section {
        Section::Recurrent { range, .. } => range.end <= len,
        Section::Attention(attention) => attention.streams.iter().all(|stream| {
            let rows = stream.rows.iter();
            let mut parts = rows.flat_map(|r| r.keys.iter().chain(&r.values));
            parts.all(|p| p.at + p.row_bytes() * stream.positions.len() <= len)
        }),
    })
}

fuzz_target!(|bytes: &[u8]| {
    let _ = described(bytes);
    let Ok(state) = read(bytes) else {
        return;
    };
    assert!(lies_within(&state, bytes.len()));
    let mut again = state.clone();
    let frame = again.lay_out();
    assert_eq!((&again, frame.len), (&state, bytes.len()));
    let description = describe(&state, bytes);
    assert_eq!(described(&description).map(|(found, _)| found), Ok(state));
});
