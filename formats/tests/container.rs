//! The container as a whole: what is written is read back, what is damaged is found, what was
//! interrupted goes on.

use std::collections::BTreeMap;
use std::path::Path;

use dwindle_formats::container::{
    ChunkGeometry, Container, ContainerError, ContainerWriter, EncodedChunk, Form, Part,
    StoredPlan, StoredTensor, verify,
};
use dwindle_formats::gguf::{Metadata, TensorType, read_header};

fn tensor(name: &str, ty: TensorType, shape: &[u64]) -> StoredTensor {
    StoredTensor {
        name: name.into(),
        shape: shape.into(),
        ty: TensorType::F32,
        method: "quantize".into(),
        parameters: BTreeMap::new(),
        form: Form::Dense,
        parts: vec![Part {
            name: name.into(),
            ty,
            shape: shape.into(),
        }],
    }
}

/// A plan with every kind of part: several chunks, padding, factors, compressible and not.
fn plan() -> StoredPlan {
    let mut factored = tensor("c", TensorType::F32, &[64, 32]);
    factored.method = "svd".into();
    factored.parameters.insert("rank".into(), 4.into());
    factored.form = Form::LowRank;
    factored.parts = vec![
        Part {
            name: "c.a".into(),
            ty: TensorType::F16,
            shape: vec![64, 4],
        },
        Part {
            name: "c.b".into(),
            ty: TensorType::F16,
            shape: vec![4, 32],
        },
    ];
    StoredPlan {
        tensors: vec![
            tensor("a", TensorType::F32, &[5]),
            tensor("b", TensorType::BF16, &[4096, 150]),
            factored,
            tensor("d", TensorType::Q8_0, &[32, 3]),
        ],
    }
}

/// Bytes that look like numbers: small, and the same every time.
fn content(part: &Part) -> Vec<u8> {
    let mut state = part.name.len() as u64 + 7;
    (0..part.bytes())
        .map(|i| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            if i % 2 == 1 {
                0x3c
            } else {
                (state >> 56) as u8
            }
        })
        .collect()
}

fn model() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("tokenizer.ggml.tokens", vec!["a".to_string(), "b".into()]);
    metadata
}

fn push_tensor(writer: &mut ContainerWriter, tensor: &StoredTensor, compress: bool) {
    for part in &tensor.parts {
        let geometry = ChunkGeometry::of(part);
        let bytes = content(part);
        for chunk in 0..geometry.chunks() {
            let rows = geometry.rows_of(chunk);
            let range = (rows.start * geometry.row_bytes) as usize
                ..(rows.end * geometry.row_bytes) as usize;
            let decoded = bytes[range].to_vec();
            let chunk = if compress {
                EncodedChunk::compressed(part.ty, decoded)
            } else {
                EncodedChunk::raw(decoded)
            };
            writer.push(chunk).unwrap();
        }
    }
    writer.end_tensor(0.25).unwrap();
}

fn write(path: &Path, plan: &StoredPlan, compress: bool) -> Vec<u8> {
    let mut writer = ContainerWriter::create(path, model(), plan.clone(), &[1; 32]).unwrap();
    for tensor in &plan.tensors[writer.resumed_tensors()..] {
        push_tensor(&mut writer, tensor, compress);
    }
    let len = writer.finish().unwrap();
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(bytes.len() as u64, len);
    bytes
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    for compress in [false, true] {
        let bytes = write(&dir.path().join("x.dwn"), &plan(), compress);
        let container = Container::read(&bytes).unwrap();
        assert_eq!(container.plan, plan());
        assert_eq!(container.errors, [0.25; 4]);
        for (i, part) in container.plan.parts().enumerate() {
            assert_eq!(container.decode(&bytes, i).unwrap(), content(part));
        }
        assert!(verify(&container, &bytes, |_| (), |_| ()).is_empty());
        // Nothing is left beside it.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        if compress {
            assert!(container.stored_bytes(1) * 10 < 4096 * 150 * 2 * 6);
        }
    }
}

#[test]
fn a_stock_output_is_plain_gguf_with_its_own_types() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = write(&dir.path().join("x.gguf"), &plan(), false);
    let header = read_header(&bytes).unwrap();
    let b = header.tensor("b").unwrap();
    assert_eq!(
        (b.ty, b.shape.as_slice()),
        (TensorType::BF16, &[4096, 150][..])
    );
    assert_eq!(
        header
            .metadata
            .get("general.architecture")
            .unwrap()
            .as_str(),
        Some("llama")
    );
}

/// Damage is found by reading or by verifying, never overlooked.
fn is_detected(bytes: &[u8]) -> bool {
    match Container::read(bytes) {
        Err(_) => true,
        Ok(container) => !verify(&container, bytes, |_| (), |_| ()).is_empty(),
    }
}

#[test]
fn every_bit_flip_and_every_truncation_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = plan();
    small.tensors[1].shape = vec![16, 3];
    small.tensors[1].parts[0].shape = vec![16, 3];
    for compress in [false, true] {
        let mut bytes = write(&dir.path().join("x.dwn"), &small, compress);
        assert!(!is_detected(&bytes));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                assert!(is_detected(&bytes), "flip of bit {bit} of byte {at}");
                bytes[at] ^= 1 << bit;
            }
        }
        for len in 0..bytes.len() {
            assert!(is_detected(&bytes[..len]), "truncation to {len}");
        }
        bytes.push(0);
        assert!(is_detected(&bytes), "a byte too many");
    }
}

#[test]
fn damage_names_part_and_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = write(&dir.path().join("x.dwn"), &plan(), true);
    let container = Container::read(&bytes).unwrap();
    let range = container.range(1);
    bytes[range.end - 40] ^= 4;
    let damage = verify(&container, &bytes, |_| (), |_| ());
    assert_eq!(damage.len(), 1);
    assert!(matches!(&damage[0],
        ContainerError::ChunkDigest { part, chunk: 1, .. } if part == "b"));
    assert!(container.decode(&bytes, 1).is_err());
}

/// Leaves the temporary files of a writer as SIGKILL would.
fn abandon(writer: ContainerWriter) {
    std::mem::forget(writer);
}

#[test]
fn an_interrupted_file_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.dwn");
    let whole = write(&path, &plan(), true);
    std::fs::remove_file(&path).unwrap();
    for finished in 0..=plan().tensors.len() {
        // A lock dies with its process; within one process the copy stands in for that.
        let other = tempfile::tempdir().unwrap();
        let mut writer = ContainerWriter::create(&path, model(), plan(), &[1; 32]).unwrap();
        for tensor in &plan().tensors[..finished] {
            push_tensor(&mut writer, tensor, true);
        }
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), other.path().join(entry.file_name())).unwrap();
        }
        drop(writer);
        let path = other.path().join("x.dwn");
        let writer = ContainerWriter::create(&path, model(), plan(), &[1; 32]).unwrap();
        assert_eq!(writer.resumed_tensors(), finished);
        abandon(writer);
    }
    assert_eq!(write(&path, &plan(), true), whole);
}

#[test]
fn resumption_distrusts_the_data_and_other_plans() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.dwn");
    let interrupted = |damage: bool, fingerprint: u8| {
        let from = tempfile::tempdir().unwrap();
        let mut writer =
            ContainerWriter::create(&from.path().join("x.dwn"), model(), plan(), &[1; 32]).unwrap();
        push_tensor(&mut writer, &plan().tensors[0], true);
        push_tensor(&mut writer, &plan().tensors[1], true);
        for name in [".x.dwn.part", ".x.dwn.journal"] {
            std::fs::copy(from.path().join(name), dir.path().join(name)).unwrap();
        }
        if damage {
            let part = dir.path().join(".x.dwn.part");
            let mut bytes = std::fs::read(&part).unwrap();
            let last = bytes.len() - 40;
            bytes[last] ^= 1;
            std::fs::write(&part, bytes).unwrap();
        }
        let writer = ContainerWriter::create(&path, model(), plan(), &[fingerprint; 32]).unwrap();
        writer.resumed_tensors()
    };
    assert_eq!(interrupted(false, 1), 2);
    assert_eq!(interrupted(true, 1), 1);
    assert_eq!(interrupted(false, 2), 0);
}

#[test]
fn a_dropped_writer_leaves_the_old_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.dwn");
    std::fs::write(&path, "older").unwrap();
    drop(ContainerWriter::create(&path, model(), plan(), &[1; 32]).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), b"older");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn the_same_input_gives_the_same_bytes_as_ever() {
    use sha2::Digest as _;
    let dir = tempfile::tempdir().unwrap();
    let bytes = write(&dir.path().join("x.gguf"), &plan(), false);
    let digest = sha2::Sha256::digest(&bytes);
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        hex,
        "1e7ff5b3d37b60b75ab16463146ed7309d01d74421e9af8d562e860196e5bdb1"
    );
}
