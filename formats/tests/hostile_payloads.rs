//! Payloads that decode to something else than their tensor, each under valid digests.

#[path = "common/spoilt.rs"]
mod spoilt;

use dwindle_formats::container::{Codec, Container, ContainerError};
use spoilt::{File, good_but};

/// What decoding and verifying say of a chunk that reading can't judge.
fn decoding_refusal(part: usize, spoil: impl FnOnce(&mut File)) -> ContainerError {
    let bytes = good_but(spoil);
    let container = Container::read(&bytes).unwrap();
    match container.decode(&bytes, part) {
        Err(e) => e,
        Ok(_) => panic!("decoded"),
    }
}

/// The good file with another payload for `z`, of 2,048 decoded bytes.
fn with_payload(file: &mut File, codec: Codec, stored: Vec<u8>) {
    file.tensors[3].shape[0] = stored.len() as u64;
    file.chunks[3] = (codec as u8, stored);
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

fn two_frames(first: &[u8], second: &[u8]) -> Vec<u8> {
    let first = frame(first);
    [
        &(first.len() as u32).to_le_bytes(),
        &first[..],
        &frame(second),
    ]
    .concat()
}

fn assert_undecodable(codec: Codec, stored: Vec<u8>) {
    let error = decoding_refusal(3, |f| with_payload(f, codec, stored));
    assert!(matches!(error, ContainerError::Codec { .. }), "{error}");
}

#[test]
fn zstd_frames_that_decode_to_more_or_less_are_refused() {
    for len in [0, 2047, 2049, 1 << 24] {
        assert_undecodable(Codec::Zstd, frame(&vec![0; len]));
    }
    assert_undecodable(Codec::Zstd, b"no frame at all".to_vec());
    assert_undecodable(Codec::Zstd, frame(&[7; 2048])[..10].to_vec());
}

#[test]
fn planes_that_decode_to_more_or_less_are_refused() {
    for (high, low) in [
        (1023, 1024),
        (1024, 1023),
        (1025, 1024),
        (1 << 24, 1024),
        (0, 0),
    ] {
        assert_undecodable(Codec::Planes, two_frames(&vec![0; high], &vec![0; low]));
    }
    let mut length = two_frames(&[0; 1024], &[0; 1024]);
    length[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_undecodable(Codec::Planes, length);
    assert_undecodable(Codec::Planes, vec![0; 3]);
}

#[test]
fn bitmaps_that_decode_to_more_or_less_are_refused() {
    let bitmap = |bits: &[u8], values: &[u8]| {
        let first = frame(bits);
        [&(first.len() as u32).to_le_bytes(), &first[..], values].concat()
    };
    let none = two_frames(&[], &[]);
    for len in [0, 127, 129, 1 << 24] {
        assert_undecodable(Codec::Bitmap, bitmap(&vec![0; len], &none));
    }
    // Values for more and for fewer elements than are set.
    assert_undecodable(Codec::Bitmap, bitmap(&[0; 128], &two_frames(&[1], &[1])));
    let mut one = [0; 128];
    one[5] = 1;
    assert_undecodable(Codec::Bitmap, bitmap(&one, &none));
}
