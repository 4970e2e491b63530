//! Arbitrary bytes as a container, under digests that hold, so that what lies behind them is
//! reached.

#![no_main]

#[path = "../../formats/tests/common/sign.rs"]
mod sign;

use dwindle_formats::container::{Container, verify};
use libfuzzer_sys::fuzz_target;

/// Decoded bytes of a part, above which decoding it only costs time.
const PART_BYTES: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    sign::sign(&mut bytes);
    let Ok(container) = Container::read(&bytes) else {
        return;
    };
    for damage in verify(&container, &bytes, |_| (), |_| ()) {
        // Only padding can be wrong where every digest holds.
        assert!(damage.to_string().contains("padding"), "{damage}");
    }
    for (index, part) in container.plan.parts().enumerate() {
        if part.bytes() <= PART_BYTES
            && let Ok(decoded) = container.decode(&bytes, index)
        {
            assert_eq!(decoded.len() as u64, part.bytes());
        }
    }
});
