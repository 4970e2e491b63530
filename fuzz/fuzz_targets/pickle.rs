//! Arbitrary bytes as a file of weights that PyTorch saved. What is accepted lies within the file.

#![no_main]

use dwindle_formats::pickle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(tensors) = pickle::read(bytes) else {
        return;
    };
    assert!(!tensors.is_empty());
    for tensor in tensors {
        assert!(tensor.range.end <= bytes.len());
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(tensor.range.len(), elements * tensor.elements.bytes());
    }
});
