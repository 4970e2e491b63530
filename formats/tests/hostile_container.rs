//! One refusal for each check of the container reader. Every file is built here and carries valid
//! digests: they are no secret, so a hostile file has them too.

#[path = "common/sign.rs"]
mod sign;

use dwindle_formats::container::{
    Codec, Container, ContainerError, EncodedChunk, VERSION, key, verify,
};
use dwindle_formats::gguf::{Metadata, TensorInfo, TensorType, Value, encode_header};
use serde_json::json;

/// A file to be spoilt: a raw dense tensor `w`, a factored tensor `v`, a compressed tensor `z`.
struct File {
    plan: serde_json::Value,
    /// Entries that stand in for others or are added before the header's digest.
    set: Vec<(&'static str, Value)>,
    missing: Option<&'static str>,
    after_digest: bool,
    tensors: Vec<TensorInfo>,
    chunks: Vec<(u8, Vec<u8>)>,
    trailing: Vec<u8>,
    header_padding: u8,
}

fn good() -> File {
    let ty = TensorType::F16;
    let z = EncodedChunk::compressed(ty, vec![0; 2048]);
    let info = |name: &str, shape: &[u64], ty, offset| TensorInfo {
        name: name.into(),
        shape: shape.into(),
        ty,
        offset,
    };
    let tensors = vec![
        info("w", &[8, 2], TensorType::F32, 0),
        info("v.a", &[8, 2], ty, 64),
        info("v.b", &[2, 4], ty, 96),
        info("z", &[z.stored.len() as u64, 1], TensorType::I8, 128),
    ];
    let part =
        |name: &str, ty: &str, shape: &[u64]| json!({"name": name, "type": ty, "shape": shape});
    File {
        plan: json!({"tensors": [
            {"name": "w", "shape": [8, 2], "type": "F32", "method": "quantize", "form": "dense",
             "parts": [part("w", "F32", &[8, 2])]},
            {"name": "v", "shape": [8, 4], "type": "BF16", "method": "svd", "form": "low-rank",
             "parameters": {"rank": 2}, "parts": [part("v.a", "F16", &[8, 2]), part("v.b", "F16", &[2, 4])]},
            {"name": "z", "shape": [16, 64], "type": "F16", "method": "quantize", "form": "dense",
             "parts": [part("z", "F16", &[16, 64])]},
        ]}),
        set: Vec::new(),
        missing: None,
        after_digest: false,
        tensors,
        chunks: vec![
            (0, vec![1; 64]),
            (0, vec![2; 32]),
            (0, vec![3; 16]),
            (z.codec as u8, z.stored.into_owned()),
        ],
        trailing: Vec::new(),
        header_padding: 0,
    }
}

impl File {
    fn metadata(&self) -> Metadata {
        let mut m = Metadata::new();
        m.set("general.architecture", "llama");
        m.set(key::VERSION, VERSION);
        m.set(key::PRODUCER, "a test");
        m.set(key::PLAN, self.plan.to_string());
        m.set(key::ERROR, vec![0f32; 3]);
        let chunks = &self.chunks;
        m.set(key::CODEC, chunks.iter().map(|c| c.0).collect::<Vec<u8>>());
        let lengths = chunks.iter().map(|c| c.1.len() as u32);
        m.set(key::CHUNK_BYTES, lengths.collect::<Vec<u32>>());
        m.set(key::CHUNK_DIGEST, vec![0u8; 32 * chunks.len()]);
        for (key, value) in &self.set {
            m.set(*key, value.clone());
        }
        m.set(key::HEADER_DIGEST, vec![0u8; 32]);
        if self.after_digest {
            m.set("dwindle.more", 1u32);
        }
        if let Some(key) = self.missing {
            m.remove(key);
        }
        m
    }

    /// The file with the digests that it calls for.
    fn bytes(&self) -> Vec<u8> {
        let mut out = encode_header(&self.metadata(), &self.tensors, 32);
        if self.header_padding != 0 {
            assert_eq!(out.pop(), Some(0), "the header ends in padding");
            out.push(self.header_padding);
        }
        for (_, stored) in &self.chunks {
            out.extend(stored);
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out.extend(&self.trailing);
        sign::sign(&mut out);
        out
    }

    fn tensor(&mut self, index: usize) -> &mut serde_json::Value {
        &mut self.plan["tensors"][index]
    }
}

fn good_but(spoil: impl FnOnce(&mut File)) -> Vec<u8> {
    let mut file = good();
    spoil(&mut file);
    file.bytes()
}

/// What the reader says of the good file after it was spoilt.
fn refusal(spoil: impl FnOnce(&mut File)) -> ContainerError {
    match Container::read(&good_but(spoil)) {
        Err(e) => e,
        Ok(_) => panic!("accepted"),
    }
}

fn assert_refused(expected: &str, spoil: impl FnOnce(&mut File)) {
    let message = refusal(spoil).to_string();
    assert!(message.contains(expected), "{message}");
}

/// What decoding and verifying say of a chunk that reading can't judge.
fn decoding_refusal(part: usize, spoil: impl FnOnce(&mut File)) -> ContainerError {
    let bytes = good_but(spoil);
    let container = Container::read(&bytes).unwrap();
    match container.decode(&bytes, part) {
        Err(e) => e,
        Ok(_) => panic!("decoded"),
    }
}

#[test]
fn the_good_file_is_accepted() {
    let bytes = good_but(|_| ());
    let container = Container::read(&bytes).unwrap();
    assert!(verify(&container, &bytes, |_| (), |_| ()).is_empty());
    assert_eq!(container.decode(&bytes, 0).unwrap(), [1; 64]);
    assert_eq!(container.decode(&bytes, 3).unwrap(), [0; 2048]);
}

#[test]
fn a_file_of_another_program_is_told_apart() {
    let bytes = encode_header(&Metadata::new(), &[], 32);
    assert!(matches!(
        Container::read(&bytes),
        Err(ContainerError::Foreign)
    ));
}

#[test]
fn each_missing_key_is_refused() {
    for key in key::ALL {
        assert_refused(key, |f| f.missing = Some(key));
    }
}

#[test]
fn each_key_of_another_type_is_refused() {
    for key in key::ALL.into_iter().filter(|k| *k != key::HEADER_DIGEST) {
        assert_refused(key, |f| f.set.push((key, Value::I8(1))));
    }
}

#[test]
fn arrays_of_the_wrong_length_are_refused() {
    for (key, value) in [
        (key::ERROR, Value::from(vec![0f32; 2])),
        (key::CODEC, vec![0u8; 3].into()),
        (key::CODEC, vec![0u8; 5].into()),
        (key::CHUNK_BYTES, vec![64u32, 32, 16].into()),
        (key::CHUNK_BYTES, Vec::<u32>::new().into()),
        (key::CHUNK_DIGEST, vec![0u8; 127].into()),
        (key::CHUNK_DIGEST, vec![0u8; 96].into()),
    ] {
        let error = refusal(|f| f.set.push((key, value)));
        assert!(
            matches!(error, ContainerError::Key { .. }),
            "{key}: {error}"
        );
    }
}

#[test]
fn newer_versions_are_refused() {
    for found in [0, 2, u32::MAX] {
        let error = refusal(|f| f.set.push((key::VERSION, found.into())));
        assert!(matches!(error, ContainerError::Version { found: v } if v == found));
    }
}

#[test]
fn entries_after_the_digest_are_refused() {
    assert_refused(key::HEADER_DIGEST, |f| f.after_digest = true);
}

#[test]
fn a_header_digest_of_another_length_is_refused() {
    let mut file = good();
    file.missing = Some(key::HEADER_DIGEST);
    for digest in [vec![], vec![0u8; 31], vec![0; 33]] {
        let mut metadata = file.metadata();
        metadata.set(key::HEADER_DIGEST, digest);
        let mut bytes = encode_header(&metadata, &file.tensors, 32);
        bytes.resize(bytes.len() + 4096, 0);
        let message = Container::read(&bytes).unwrap_err().to_string();
        assert!(message.contains(key::HEADER_DIGEST), "{message}");
    }
}

#[test]
fn a_wrong_header_digest_is_refused() {
    let mut bytes = good_but(|_| ());
    let at = bytes.windows(6).position(|w| w == b"a test").unwrap();
    bytes[at] = b'A';
    let error = Container::read(&bytes).unwrap_err();
    assert!(matches!(error, ContainerError::HeaderDigest { .. }));
}

#[test]
fn padding_that_is_not_zero_is_refused() {
    assert_refused("padding of the header", |f| {
        // Of two lengths at least one leaves room for padding.
        f.set.push(("x", "".into()));
        if encode_header(&f.metadata(), &f.tensors, 1)
            .len()
            .is_multiple_of(32)
        {
            f.set.push(("x", "x".into()));
        }
        f.header_padding = 1;
    });
    let mut bytes = good_but(|_| ());
    let end = Container::read(&bytes).unwrap().range(2).end;
    bytes[end - 1] = 1;
    sign::sign(&mut bytes);
    let container = Container::read(&bytes).unwrap();
    let damage = verify(&container, &bytes, |_| (), |_| ());
    assert_eq!(damage.len(), 1);
    assert!(damage[0].to_string().contains("padding of part `v.b`"));
    assert!(container.decode(&bytes, 2).is_err());
}

#[test]
fn unknown_codecs_are_refused() {
    assert_refused("codec 4 is not known", |f| f.chunks[0].0 = 4);
    assert_refused("codec 255 is not known", |f| f.chunks[3].0 = 255);
}

#[test]
fn codecs_that_do_not_apply_to_the_type_are_refused() {
    assert_refused("does not apply to element type F32", |f| {
        f.chunks[0].0 = Codec::Planes as u8;
    });
    assert_refused("does not apply to element type Q8_0", |f| {
        f.plan["tensors"][0]["parts"][0] = json!({"name": "w", "type": "Q8_0", "shape": [32, 2]});
        f.tensor(0)["shape"] = json!([32, 2]);
        f.chunks[0].0 = Codec::Bitmap as u8;
    });
}

#[test]
fn a_plan_that_is_no_json_is_refused() {
    for text in [
        "",
        "{",
        "[]",
        "{\"tensors\": 1}",
        "null",
        "{\"tensors\": [{}]}",
    ] {
        let error = refusal(|f| f.set.push((key::PLAN, text.into())));
        assert!(matches!(error, ContainerError::PlanJson(_)), "{error}");
    }
    let nested = "[".repeat(1 << 20);
    let error = refusal(|f| f.set.push((key::PLAN, nested.as_str().into())));
    assert!(matches!(error, ContainerError::PlanJson(_)), "{error}");
}

#[test]
fn unknown_forms_and_types_are_refused_by_name() {
    assert_refused("tuckered", |f| f.tensor(1)["form"] = json!("tuckered"));
    assert_refused("Q9", |f| f.tensor(1)["parts"][0]["type"] = json!("Q9"));
}

#[test]
fn parts_that_do_not_make_the_tensor_are_refused() {
    assert_refused("as a dense tensor", |f| f.tensor(0)["parts"] = json!([]));
    assert_refused("as a dense tensor", |f| {
        f.tensor(0)["shape"] = json!([4, 4])
    });
    assert_refused("as a dense tensor", |f| f.tensor(0)["name"] = json!("W"));
    assert_refused("as a low-rank tensor", |f| {
        f.tensor(0)["form"] = json!("low-rank")
    });
    assert_refused("as a low-rank tensor", |f| {
        f.tensor(1)["shape"] = json!([8, 4, 1])
    });
    assert_refused("as a low-rank tensor", |f| {
        f.tensor(1)["shape"] = json!([4, 8])
    });
    assert_refused("as a low-rank tensor", |f| {
        f.tensor(1)["parts"].as_array_mut().unwrap().pop(); // no second factor
    });
    assert_refused("as a low-rank tensor", |f| {
        f.tensor(1)["parts"][1]["name"] = json!("v.c");
    });
}

#[test]
fn ranks_that_differ_are_refused() {
    assert_refused("as a low-rank tensor", |f| {
        f.tensor(1)["parts"][1]["shape"] = json!([1, 4]);
    });
}

#[test]
fn rank_zero_is_refused() {
    assert_refused("none zero", |f| {
        f.tensor(1)["parts"][0]["shape"] = json!([8, 0]);
        f.tensor(1)["parts"][1]["shape"] = json!([0, 4]);
    });
}

#[test]
fn a_tensor_that_appears_twice_is_refused() {
    assert_refused("appears twice", |f| {
        let again = f.tensor(0).clone();
        f.plan["tensors"].as_array_mut().unwrap().push(again);
    });
    // A dense and a factored tensor of one name share no part.
    assert_refused("appears twice", |f| {
        let mut dense = f.tensor(0).clone();
        dense["name"] = json!("v");
        dense["parts"][0]["name"] = json!("v");
        f.plan["tensors"].as_array_mut().unwrap().push(dense);
    });
}

#[test]
fn names_without_and_with_too_many_bytes_are_refused() {
    for name in [String::new(), "x".repeat(64)] {
        assert_refused("expected 1 to 63", |f| {
            f.tensor(0)["name"] = json!(name);
            f.tensor(0)["parts"][0]["name"] = json!(name);
        });
    }
}

#[test]
fn shapes_without_and_with_too_many_dimensions_are_refused() {
    for shape in [json!([]), json!([1, 1, 1, 1, 1]), json!([0, 2])] {
        assert_refused("1 to 4 dimensions", |f| f.tensor(0)["shape"] = shape);
    }
}

#[test]
fn huge_shapes_are_refused() {
    let both = |f: &mut File, shape: serde_json::Value| {
        f.tensor(0)["shape"] = shape.clone();
        f.tensor(0)["parts"][0]["shape"] = shape;
    };
    assert_refused("expected 1 to 4", |f| both(f, json!([u64::MAX, u64::MAX])));
    assert_refused("expected 1 to 4", |f| {
        both(f, json!([1u64 << 33, 1u64 << 31]))
    });
    assert_refused("no multiple", |f| both(f, json!([1u64 << 31, 1u64 << 31])));
    // A row above the limit.
    assert_refused("the limit is", |f| both(f, json!([(1u64 << 24) + 1, 2])));
    // More chunks than the file lists.
    assert_refused(key::CHUNK_BYTES, |f| both(f, json!([8, 1u64 << 58])));
    assert_refused(key::CHUNK_BYTES, |f| both(f, json!([8, 1u64 << 15 | 1])));
    // As many chunks, but other bytes.
    assert_refused("for 96 decoded ones", |f| both(f, json!([8, 3])));
}

#[test]
fn rows_that_do_not_divide_into_blocks_are_refused() {
    assert_refused("no multiple of Q8_0's block", |f| {
        f.tensor(0)["parts"][0]["type"] = json!("Q8_0");
    });
}

#[test]
fn a_plan_of_other_parts_than_the_files_is_refused() {
    assert_refused("4 parts, the file 3", |f| drop(f.tensors.pop()));
    assert_refused("lists `x` in its place", |f| f.tensors[0].name = "x".into());
    assert_refused("the file lists", |f| f.tensors[0].ty = TensorType::I32);
    assert_refused("the file lists", |f| f.tensors[0].shape = vec![2, 8]);
    assert_refused("the file lists", |f| f.tensors[3].shape.push(1));
    assert_refused("the file lists", |f| f.tensors[3].shape.swap(0, 1));
}

#[test]
fn chunk_lengths_that_do_not_fit_are_refused() {
    for lengths in [
        [65u32, 32, 16, 20],    // more than a raw chunk has
        [63, 32, 16, 20],       // less
        [u32::MAX, 32, 16, 20], // far past the part
        [64, 32, 16, 2049],     // more than the decoded chunk has
        [64, 32, 16, u32::MAX], // past the end of the file
        [64, 32, 16, 0],        // the file lists more
    ] {
        let error = refusal(|f| f.set.push((key::CHUNK_BYTES, lengths.to_vec().into())));
        assert!(matches!(error, ContainerError::Part { .. }), "{error}");
    }
}

#[test]
fn bytes_after_the_last_part_are_refused() {
    for len in [1, 32] {
        let error = refusal(|f| f.trailing = vec![0; len]);
        assert!(matches!(error, ContainerError::Length { .. }), "{error}");
    }
}

#[test]
fn a_missing_end_of_the_padding_is_refused() {
    let mut bytes = good_but(|_| ());
    bytes.pop();
    let error = Container::read(&bytes).unwrap_err();
    assert!(matches!(error, ContainerError::Length { .. }), "{error}");
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
