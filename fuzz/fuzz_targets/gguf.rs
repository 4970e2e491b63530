//! Arbitrary bytes as a GGUF file. What is accepted must be written again to the same header.

#![no_main]

use dwindle_formats::gguf::{encode_header, join, read_part};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = read_part(bytes) else {
        return;
    };
    // With a copy of itself: never two parts of one model.
    let twice = [("a".into(), &header), ("b".into(), &header)];
    assert!(join(&twice).is_err());
    for tensor in &header.tensors {
        let range = header.data_range(tensor);
        assert!(range.start <= range.end && range.end <= bytes.len());
    }
    let again = encode_header(&header.metadata, &header.tensors, header.alignment);
    let end = header.header_end as usize;
    assert_eq!(again[..end], bytes[..end]);
});
