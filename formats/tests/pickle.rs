//! Files of weights that PyTorch saved: what is refused, and that no damage harms.

use std::path::Path;

use dwindle_formats::pickle::{Elements, PickleError, read};
use proptest::prelude::*;

fn seed(name: &str) -> Vec<u8> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/pickle");
    std::fs::read(corpus.join(name)).unwrap()
}

const SEEDS: [&str; 3] = ["archive.bin", "legacy.bin", "training.bin"];

#[test]
fn both_formats_hold_the_same_tensors() {
    let facts = |name| {
        let bytes = seed(name);
        let tensors = read(&bytes).unwrap();
        let fact = |t: dwindle_formats::pickle::PickledTensor| {
            (t.name, t.elements, t.shape, bytes[t.range].to_vec())
        };
        tensors.into_iter().map(fact).collect::<Vec<_>>()
    };
    let archive = facts("archive.bin");
    assert_eq!(archive[0].0, "0.weight");
    assert_eq!(
        (archive[0].1, &archive[0].2[..]),
        (Elements::BF16, &[4, 8][..])
    );
    assert_eq!(archive, facts("legacy.bin"));
    assert_eq!(archive, facts("training.bin"));
}

/// A file of PyTorch's old format around some instructions.
fn around(instructions: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    bytes.extend_from_slice(b"\x80\x02M\xe9\x03.\x80\x02}.");
    bytes.extend_from_slice(instructions);
    bytes.extend_from_slice(b"\x80\x02].");
    bytes
}

#[test]
fn calls_are_refused_and_never_made() {
    for (instructions, name) in [
        (
            &b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."[..],
            "os.system",
        ),
        (
            b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
            "builtins.eval",
        ),
        (
            b"\x80\x02}X\x01\x00\x00\x00acsubprocess\nPopen\n)\x81s.",
            "subprocess.Popen",
        ),
        (b"\x80\x04\x8c\x02os\x8c\x05popen\x93)R.", "os.popen"),
    ] {
        assert_eq!(
            read(&around(instructions)),
            Err(PickleError::Calls(name.into()))
        );
    }
}

#[test]
fn other_files_are_refused() {
    assert_eq!(read(b""), Err(PickleError::NoTensors));
    assert_eq!(read(b"x"), Err(PickleError::NoTensors));
    assert!(matches!(read(b"PK\x03\x04"), Err(PickleError::Archive(_))));
    assert_eq!(read(&around(b"\x80\x02}.")), Err(PickleError::NoTensors));
    assert_eq!(
        read(&around(b"\x80\x02K\x01.")),
        Err(PickleError::NoTensors)
    );
}

/// What each file's tensors must keep, however it was damaged.
fn holds(bytes: &[u8]) {
    let Ok(tensors) = read(bytes) else {
        return;
    };
    for tensor in tensors {
        assert!(tensor.range.start <= tensor.range.end && tensor.range.end <= bytes.len());
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(tensor.range.len(), elements * tensor.elements.bytes());
    }
}

#[test]
fn files_that_end_early_are_refused() {
    for name in SEEDS {
        let bytes = seed(name);
        for len in 0..bytes.len() - 1 {
            holds(&bytes[..len]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_files_stay_within_themselves(
        which in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = seed(SEEDS[which]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        holds(&bytes);
    }

    #[test]
    fn any_instructions_end(instructions in prop::collection::vec(any::<u8>(), 0..200)) {
        holds(&around(&instructions));
    }

    #[test]
    fn instructions_of_the_machine_end(
        instructions in prop::collection::vec(prop::sample::select(&b"(0123NJKMqhjra]}tsuedblR.Q)\x85\x86\x87\x88\x89\x93\x94X\x01\x00K"[..]), 0..200),
    ) {
        holds(&around(&instructions));
    }
}
