//! Arbitrary bytes as a packed state, and as payloads of packed ones whose checksums are right. Unpacking gives a state or an
//! error.

#![no_main]

use dwindle_formats::packed::{Packed, PackedWriter};
use dwindle_kv::{Target, Unpacker};
use libfuzzer_sys::fuzz_target;

/// Small packed states, as the tests write them: each way that needs no codebook.
const SEEDS: [&[u8]; 4] = [
    include_bytes!("../corpus/packed/lossless.dwkv"),
    include_bytes!("../corpus/packed/window-hybrid.dwkv"),
    include_bytes!("../corpus/packed/chunked-svd.dwkv"),
    include_bytes!("../corpus/packed/quantize.dwkv"),
];

fn unpack(bytes: &[u8]) {
    let Ok(packed) = Packed::read(bytes) else {
        return;
    };
    if let Ok(unpacker) = Unpacker::new(&packed, None) {
        let target = Target::default();
        let _ = unpacker.unpack(&target, &mut |_| Ok(()), &mut |_, _| Ok(()), &mut |_| ());
    }
}

fuzz_target!(|bytes: &[u8]| {
    unpack(bytes);
    for seed in SEEDS {
        let seed = Packed::read(seed).expect("the seed is whole");
        let Ok(mut writer) = PackedWriter::new(Vec::new(), seed.settings, &seed.description) else {
            return;
        };
        for record in &seed.records {
            writer
                .record(record.place, bytes)
                .expect("memory takes what is written");
        }
        let (signed, _) = writer.finish().expect("memory takes what is written");
        unpack(&signed);
    }
});
