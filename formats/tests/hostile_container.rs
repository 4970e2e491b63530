//! One refusal for each check of the container reader. Every file is built here and carries valid
//! digests.

#[path = "common/spoilt.rs"]
mod spoilt;

use dwindle_formats::container::{Codec, Container, ContainerError, key, verify};
use dwindle_formats::gguf::{Metadata, TensorType, Value, encode_header};
use serde_json::json;
use spoilt::{File, good, good_but, sign};

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
        f.plan["tensors"][0]["shape"] = json!([32, 2]);
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
    assert_refused("tuckered", |f| {
        f.plan["tensors"][1]["form"] = json!("tuckered")
    });
    assert_refused("Q9", |f| {
        f.plan["tensors"][1]["parts"][0]["type"] = json!("Q9")
    });
}

#[test]
fn parts_that_do_not_make_the_tensor_are_refused() {
    assert_refused("as a dense tensor", |f| {
        f.plan["tensors"][0]["parts"] = json!([])
    });
    assert_refused("as a dense tensor", |f| {
        f.plan["tensors"][0]["shape"] = json!([4, 4])
    });
    assert_refused("as a dense tensor", |f| {
        f.plan["tensors"][0]["name"] = json!("W")
    });
    assert_refused("as a low-rank tensor", |f| {
        f.plan["tensors"][0]["form"] = json!("low-rank")
    });
    assert_refused("as a low-rank tensor", |f| {
        f.plan["tensors"][1]["shape"] = json!([8, 4, 1])
    });
    assert_refused("as a low-rank tensor", |f| {
        f.plan["tensors"][1]["shape"] = json!([4, 8])
    });
    assert_refused("as a low-rank tensor", |f| {
        f.plan["tensors"][1]["parts"].as_array_mut().unwrap().pop(); // no second factor
    });
    assert_refused("as a low-rank tensor", |f| {
        f.plan["tensors"][1]["parts"][1]["name"] = json!("v.c");
    });
}

#[test]
fn ranks_that_differ_are_refused() {
    assert_refused("as a low-rank tensor", |f| {
        f.plan["tensors"][1]["parts"][1]["shape"] = json!([1, 4]);
    });
}

#[test]
fn rank_zero_is_refused() {
    assert_refused("none zero", |f| {
        f.plan["tensors"][1]["parts"][0]["shape"] = json!([8, 0]);
        f.plan["tensors"][1]["parts"][1]["shape"] = json!([0, 4]);
    });
}

#[test]
fn a_tensor_that_appears_twice_is_refused() {
    assert_refused("appears twice", |f| {
        let again = f.plan["tensors"][0].clone();
        f.plan["tensors"].as_array_mut().unwrap().push(again);
    });
    // A dense and a factored tensor of one name share no part.
    assert_refused("appears twice", |f| {
        let mut dense = f.plan["tensors"][0].clone();
        dense["name"] = json!("v");
        dense["parts"][0]["name"] = json!("v");
        f.plan["tensors"].as_array_mut().unwrap().push(dense);
    });
}

#[test]
fn names_without_and_with_too_many_bytes_are_refused() {
    for name in [String::new(), "x".repeat(64)] {
        assert_refused("expected 1 to 63", |f| {
            f.plan["tensors"][0]["name"] = json!(name);
            f.plan["tensors"][0]["parts"][0]["name"] = json!(name);
        });
    }
}

#[test]
fn shapes_without_and_with_too_many_dimensions_are_refused() {
    for shape in [json!([]), json!([1, 1, 1, 1, 1]), json!([0, 2])] {
        assert_refused("1 to 4 dimensions", |f| {
            f.plan["tensors"][0]["shape"] = shape
        });
    }
}

#[test]
fn huge_shapes_are_refused() {
    let both = |f: &mut File, shape: serde_json::Value| {
        f.plan["tensors"][0]["shape"] = shape.clone();
        f.plan["tensors"][0]["parts"][0]["shape"] = shape;
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
        f.plan["tensors"][0]["parts"][0]["type"] = json!("Q8_0");
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
