//! Small files that claim large models, under valid digests, and writers of such files.

#[path = "common/spoilt.rs"]
mod spoilt;

use std::collections::BTreeMap;

use dwindle_formats::container::{
    ChunkGeometry, Container, ContainerError, ContainerWriter, EXPANSION, EncodedChunk, Form, Part,
    StoredPlan, StoredTensor, TENSORS_LIMIT, WriteError, key,
};
use dwindle_formats::gguf::{Metadata, TensorType, Value, limits};
use serde_json::json;
use spoilt::{File, good, good_but};

fn refusal(spoil: impl FnOnce(&mut File)) -> ContainerError {
    Container::read(&good_but(spoil)).unwrap_err()
}

#[track_caller]
fn assert_expands(error: &ContainerError) {
    assert!(matches!(error, ContainerError::Expansion(_)), "{error}");
    assert!(error.to_string().contains("1024 times"), "{error}");
}

/// The good file whose factors make a matrix of `side` rows and columns.
fn with_factors(file: &mut File, side: u64) {
    let v = &mut file.plan["tensors"][1];
    v["shape"] = json!([side, side]);
    v["parts"][0]["shape"] = json!([side, 1]);
    v["parts"][1]["shape"] = json!([1, side]);
    let bytes = side as usize * 2;
    let padded = bytes.next_multiple_of(32) as u64;
    file.tensors[1].shape = vec![side, 1];
    file.tensors[2].shape = vec![1, side];
    file.tensors[2].offset = 64 + padded;
    file.tensors[3].offset = 64 + 2 * padded;
    file.chunks[1].1 = vec![2; bytes];
    // Rows of one element fall into chunks of 2^19.
    file.chunks[2].1 = vec![3; bytes];
}

/// The good file with a tensor of zeros, 64 MiB of them.
fn with_zeros(file: &mut File) {
    let row = EncodedChunk::compressed(TensorType::F16, vec![0; 1 << 26]);
    let z = &mut file.plan["tensors"][2];
    z["shape"] = json!([1 << 25, 1]);
    z["parts"][0]["shape"] = z["shape"].clone();
    file.tensors[3].shape = vec![row.stored.len() as u64, 1];
    file.chunks[3] = (row.codec as u8, row.stored.into_owned());
}

#[test]
fn factors_of_little_do_not_make_a_matrix_of_any_size() {
    assert_expands(&refusal(|f| with_factors(f, 20_000)));
    assert_expands(&refusal(|f| with_factors(f, 200_000)));
}

#[test]
fn frames_of_zeros_do_not_make_a_tensor_of_any_size() {
    assert_expands(&refusal(with_zeros));
}

#[test]
fn the_limit_is_of_the_whole_file() {
    // Zeros beside enough of other content: as many bytes as the limit asks for, and a few more.
    let whole = good_but(|f| {
        with_zeros(f);
        let fill = (1 << 26) / EXPANSION + (1 << 12);
        f.plan["tensors"][0]["shape"] = json!([fill / 4]);
        f.plan["tensors"][0]["parts"][0]["shape"] = json!([fill / 4]);
        f.tensors[0].shape = vec![fill / 4];
        for (i, at) in [0, 32, 64].into_iter().enumerate() {
            f.tensors[i + 1].offset = fill + at;
        }
        f.chunks[0].1 = vec![1; fill as usize];
    });
    let container = Container::read(&whole).unwrap();
    assert_eq!(container.decode(&whole, 3).unwrap().len(), 1 << 26);
    Container::read(&good().bytes()).unwrap();
}

fn dense(name: &str, shape: &[u64]) -> StoredTensor {
    StoredTensor {
        name: name.into(),
        shape: shape.into(),
        ty: TensorType::F16,
        method: "copy".into(),
        parameters: BTreeMap::new(),
        form: Form::Dense,
        parts: vec![Part {
            name: name.into(),
            ty: TensorType::F16,
            shape: shape.into(),
        }],
    }
}

#[test]
fn what_readers_would_refuse_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.dwn");
    let create = |tensor: &StoredTensor| {
        let plan = StoredPlan {
            tensors: vec![tensor.clone()],
        };
        ContainerWriter::create(&path, Metadata::new(), plan, &[7; 32])
    };
    let part = |suffix: &str, shape: &[u64]| Part {
        name: format!("w.{suffix}"),
        ty: TensorType::F16,
        shape: shape.into(),
    };
    // Known beforehand.
    let factors = StoredTensor {
        form: Form::LowRank,
        parts: vec![part("a", &[20_000, 1]), part("b", &[1, 20_000])],
        ..dense("w", &[20_000, 20_000])
    };
    let error = create(&factors).unwrap_err();
    assert!(matches!(error, WriteError::Expansion(_)), "{error}");

    // Known at the end.
    let zeros = dense("w", &[1 << 25, 1]);
    let mut writer = create(&zeros).unwrap();
    for chunk in 0..ChunkGeometry::of(&zeros.parts[0]).chunks() {
        let len = ChunkGeometry::of(&zeros.parts[0]).bytes_of(chunk);
        let chunk = EncodedChunk::compressed(TensorType::F16, vec![0; len as usize]);
        writer.push(chunk).unwrap();
    }
    writer.end_tensor(0.0).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(matches!(error, WriteError::Expansion(_)), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_plan_has_at_most_as_many_tensors_as_the_specification_says() {
    assert_eq!(TENSORS_LIMIT, 1 << 20);
    let plan = |count: usize| StoredPlan {
        tensors: (0..count).map(|i| dense(&format!("t{i}"), &[1])).collect(),
    };
    plan(TENSORS_LIMIT).check().unwrap();
    let plan = plan(TENSORS_LIMIT + 1);
    let error = plan.check().unwrap_err().to_string();
    assert!(error.contains("the limit is 1048576"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let error = ContainerWriter::create(&path, Metadata::new(), plan, &[0; 32]).unwrap_err();
    assert!(matches!(error, WriteError::Plan(_)), "{error}");
    let tensor = r#"{"name":"t","shape":[1],"type":"F16","method":"","form":"dense","parts":[]}"#;
    let json = format!(
        "{{\"tensors\":[{}]}}",
        vec![tensor; TENSORS_LIMIT + 1].join(",")
    );
    let error = refusal(|f| f.set.push((key::PLAN, Value::String(json))));
    assert!(matches!(error, ContainerError::Plan(_)), "{error}");
}

#[test]
fn more_metadata_than_a_reader_takes_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let plan = StoredPlan {
        tensors: vec![dense("w", &[1])],
    };
    let mut metadata = Metadata::new();
    for i in 0..limits::METADATA_ENTRIES {
        metadata.set(format!("general.dataset.{i}.name"), "x");
    }
    let path = dir.path().join("x.gguf");
    let error = ContainerWriter::create(&path, metadata, plan, &[0; 32]).unwrap_err();
    assert!(matches!(error, WriteError::Entries { .. }), "{error}");
}
