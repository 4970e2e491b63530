//! Arbitrary bytes as a packed state, and as payloads of one whose checksums are right. Unpacking gives a state or an error.

#![no_main]

use dwindle_formats::packed::{Packed, PackedWriter};
use dwindle_kv::{Target, Unpacker};
use libfuzzer_sys::fuzz_target;

/// A small packed state, as the tests write them.
const SEED: &[u8] = include_bytes!("../corpus/packed/lossless.dwkv");

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
    let seed = Packed::read(SEED).expect("the seed is whole");
    let out = Vec::new();
    let Ok(mut writer) = PackedWriter::new(out, seed.settings, &seed.description) else {
        return;
    };
    for record in &seed.records {
        writer
            .record(record.place, bytes)
            .expect("memory takes what is written");
    }
    let (signed, _) = writer.finish().expect("memory takes what is written");
    unpack(&signed);
});
