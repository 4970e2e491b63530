//! Quantized checkpoints against the libraries that made them, by the records in `fixtures/quantized`.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dwindle_checkpoint::huggingface::HuggingFace;
use dwindle_checkpoint::{Error, Source as _};
use dwindle_formats::gguf::TensorType;
use half::f16;
use proptest::prelude::*;
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize, Clone)]
struct Record {
    config: Value,
    parts: BTreeMap<String, Part>,
    name: String,
    shape: Vec<usize>,
    weight: String,
}

#[derive(Deserialize, Clone)]
struct Part {
    dtype: Dtype,
    shape: Vec<usize>,
    data: String,
}

impl Record {
    fn read(name: &str) -> Record {
        let path = fixtures().join(format!("{name}.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// The checkpoint as a folder.
    fn folder(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({ "quantization_config": self.config });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        // By hand: the library's writer refuses what its reader may be given.
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, part) in &self.parts {
            let start = data.len();
            data.extend(decode(&part.data));
            let info = json!({
                "dtype": part.dtype, "shape": part.shape, "data_offsets": [start, data.len()],
            });
            header.insert(name.clone(), info);
        }
        let header = Value::from(header).to_string();
        let len = (header.len() as u64).to_le_bytes();
        let file = [&len[..], header.as_bytes(), &data].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        dir
    }

    fn weight(&self) -> Vec<f32> {
        floats(&decode(&self.weight))
    }
}

fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quantized")
}

fn decode(text: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let four = bytes.as_chunks::<4>().0.iter();
    four.map(|b| f32::from_le_bytes(*b)).collect()
}

/// The values of blocks of ggml's types, as its documentation has them.
fn values(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    let nibble = |block: &[u8], i: usize| match i {
        0..16 => block[i] & 15,
        _ => block[i - 16] >> 4,
    };
    let scale = |block: &[u8]| f16::from_le_bytes([block[0], block[1]]).to_f32();
    let mut out = Vec::new();
    match ty {
        TensorType::F32 => return floats(bytes),
        TensorType::Q4_0 => {
            for block in bytes.chunks_exact(18) {
                let level = |i| f32::from(nibble(&block[2..], i)) - 8.0;
                out.extend((0..32).map(|i| level(i) * scale(block)));
            }
        }
        TensorType::Q8_0 => {
            for block in bytes.chunks_exact(34) {
                let level = |i: usize| f32::from(block[2 + i] as i8);
                out.extend((0..32).map(|i| level(i) * scale(block)));
            }
        }
        TensorType::MXFP4 => {
            const SIZES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
            for block in bytes.chunks_exact(17) {
                let scale = 2f32.powi(i32::from(block[0]) - 127);
                let level = |i| {
                    let code = nibble(&block[1..], i);
                    let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                    sign * SIZES[usize::from(code & 7)]
                };
                out.extend((0..32).map(|i| level(i) * scale));
            }
        }
        other => panic!("{other}"),
    }
    out
}

fn open(record: &Record) -> Result<(HuggingFace, tempfile::TempDir), Error> {
    let dir = record.folder();
    Ok((HuggingFace::open(dir.path())?, dir))
}

/// The type that a record's matrix comes in, which has the library's values.
fn check(name: &str) -> TensorType {
    let record = Record::read(name);
    let (folder, _dir) = open(&record).unwrap();
    let [tensor] = folder.tensors() else {
        panic!("{name}: {:?}", folder.tensors());
    };
    assert_eq!(tensor.name, record.name, "{name}");
    let shape: Vec<u64> = record.shape.iter().rev().map(|n| *n as u64).collect();
    assert_eq!(tensor.shape, shape, "{name}");
    let bytes = folder.bytes(0, 0..tensor.len());
    assert_eq!(bytes.len(), tensor.len(), "{name}");
    let expected = record.weight();
    for (i, (found, expected)) in values(tensor.ty, &bytes).iter().zip(&expected).enumerate() {
        let ulp = (expected.abs().next_up() - expected.abs()).max(f32::MIN_POSITIVE);
        assert!(
            (found - expected).abs() <= ulp,
            "{name}, element {i}: {found:e}, expected {expected:e}"
        );
    }
    // Any span is that of the whole.
    let len = bytes.len();
    for span in [0..len, 0..1, 1..len - 1, len / 3..len / 2, len..len] {
        assert_eq!(folder.bytes(0, span.clone())[..], bytes[span], "{name}");
    }
    tensor.ty
}

#[test]
fn matrices_have_the_values_that_their_libraries_give() {
    let mut count = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(name) = name.strip_suffix(".json") {
            check(name);
            count += 1;
        }
    }
    assert_eq!(count, 26);
}

#[test]
fn what_a_type_of_ggmls_holds_is_repacked() {
    use TensorType::{F32, MXFP4, Q4_0, Q8_0};
    for (name, ty) in [
        ("gptq-symmetric", Q4_0),
        ("gptq-8-bits", Q8_0),
        ("compressed-pack", Q4_0),
        ("compressed-pack-8-bits", Q8_0),
        ("compressed-int8", Q8_0),
        ("compressed-mxfp4", MXFP4),
        ("mxfp4", MXFP4),
        // Zeros that differ, columns out of order, codes and scales that no type has.
        ("gptq", F32),
        ("gptq-act-order", F32),
        ("awq", F32),
        ("fp8-block", F32),
        ("bitsandbytes-nf4", F32),
        ("bitsandbytes-int8", F32),
        ("modelopt-nvfp4", F32),
    ] {
        assert_eq!(check(name), ty, "{name}");
    }
}

#[test]
fn scales_beyond_half_floats_keep_a_matrix_in_f32() {
    let mut record = Record::read("compressed-int8");
    let scale = record
        .parts
        .iter_mut()
        .find(|(name, _)| name.ends_with("_scale"));
    let (_, part) = scale.unwrap();
    let mut bytes = decode(&part.data);
    bytes[..4].copy_from_slice(&1.0e-6f32.to_le_bytes());
    part.data = BASE64_STANDARD.encode(bytes);
    let (folder, _dir) = open(&record).unwrap();
    assert_eq!(folder.tensors()[0].ty, TensorType::F32);
}

/// ggml's blocks of bytes have no zero of their own.
#[test]
fn bytes_with_a_zero_are_no_blocks() {
    let mut record = Record::read("compressed-int8");
    let rows = record.shape[0];
    let weight = record.name.clone();
    let zeros = Part {
        dtype: Dtype::I8,
        shape: vec![rows, 1],
        data: BASE64_STANDARD.encode(vec![3u8; rows]),
    };
    record.parts.insert(format!("{weight}_zero_point"), zeros);
    let (folder, _dir) = open(&record).unwrap();
    assert_eq!(folder.tensors()[0].ty, TensorType::F32);
    let found = floats(&folder.bytes(0, 0..4));
    let codes = decode(&record.parts[&weight].data);
    let scale = floats(&decode(&record.parts[&format!("{weight}_scale")].data))[0];
    assert_eq!(found, [(f32::from(codes[0] as i8) - 3.0) * scale]);
}

#[test]
fn missing_and_unfit_parts_are_named() {
    for (name, part) in [
        ("gptq", ".qzeros"),
        ("gptq", ".scales"),
        ("awq", ".scales"),
        ("fp8-block", ".weight_scale_inv"),
        ("bitsandbytes-nf4", ".absmax"),
        ("bitsandbytes-nf4-nested", ".nested_quant_map"),
        ("compressed-pack", ".weight_shape"),
        ("compressed-nvfp4", ".weight_scale"),
        ("mxfp4", "_scales"),
    ] {
        let whole = Record::read(name);
        let key = whole.parts.keys().find(|key| key.ends_with(part)).unwrap();

        let mut missing = whole.clone();
        missing.parts.remove(key);
        let message = open(&missing).err().unwrap().to_string();
        assert!(
            message.contains(part) && message.contains("missing"),
            "{name}: {message}"
        );

        // One row too few, and bytes to go with it.
        let mut unfit = whole.clone();
        let cut = unfit.parts.get_mut(key).unwrap();
        let Some(first) = cut.shape.first_mut().filter(|n| **n > 1) else {
            continue;
        };
        *first -= 1;
        let bytes = decode(&cut.data);
        let len = bytes.len() / whole.parts[key].shape[0] * (whole.parts[key].shape[0] - 1);
        cut.data = BASE64_STANDARD.encode(&bytes[..len]);
        let found = open(&unfit).err();
        assert!(
            matches!(found, Some(Error::Codes { .. })),
            "{name} {part}: {found:?}"
        );
    }
}

#[test]
fn groups_that_are_not_there_are_refused() {
    let mut record = Record::read("gptq-act-order");
    let (_, part) = record
        .parts
        .iter_mut()
        .find(|(name, _)| name.ends_with(".g_idx"))
        .unwrap();
    let mut bytes = decode(&part.data);
    bytes[..4].copy_from_slice(&4i32.to_le_bytes());
    part.data = BASE64_STANDARD.encode(bytes);
    let message = open(&record).err().unwrap().to_string();
    assert!(message.contains("names group 4 of 4"), "{message}");
}

#[test]
fn other_methods_are_refused_by_name() {
    let mut record = Record::read("awq");
    for (config, expected) in [
        (json!({ "quant_method": "aqlm" }), "aqlm"),
        (
            json!({ "quant_method": "awq", "version": "gemv" }),
            "version gemv",
        ),
        (
            json!({ "quant_method": "gptq", "checkpoint_format": "marlin" }),
            "layout marlin",
        ),
        (json!({}), "unnamed"),
    ] {
        record.config = config;
        let message = open(&record).err().unwrap().to_string();
        assert!(
            message.contains(expected) && message.contains("bitsandbytes"),
            "{message}"
        );
    }
}

#[test]
fn codes_without_a_declaration_are_refused() {
    let mut record = Record::read("fp8-block");
    record.config = Value::Null;
    let message = open(&record).err().unwrap().to_string();
    assert!(
        message.contains("F8_E4M3") && message.contains("how to read it"),
        "{message}"
    );
}

#[test]
fn files_that_pytorch_saved_hold_the_same_tensors() {
    for file in ["archive.bin", "legacy.bin", "training.bin"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        std::fs::copy(fixtures().join(file), dir.path().join("pytorch_model.bin")).unwrap();
        let folder = HuggingFace::open(dir.path()).unwrap();
        let found: Vec<_> = (folder.tensors().iter().enumerate())
            .map(|(i, t)| {
                (
                    t.name.as_str(),
                    t.ty,
                    t.shape.clone(),
                    folder.bytes(i, 0..t.len()),
                )
            })
            .collect();
        let eighths = |range: std::ops::Range<u8>| range.map(|i| f32::from(i) / 8.0);
        let weight: Vec<u8> = eighths(0..32)
            .flat_map(|v| half::bf16::from_f32(v).to_le_bytes())
            .collect();
        let bias: Vec<u8> = eighths(32..36)
            .flat_map(|v| f16::from_f32(v).to_le_bytes())
            .collect();
        let table: Vec<u8> = eighths(36..60).flat_map(f32::to_le_bytes).collect();
        let expected = [
            ("0.bias", TensorType::F16, vec![4], bias.into()),
            ("0.weight", TensorType::BF16, vec![8, 4], weight.into()),
            ("1.tied", TensorType::F32, vec![8, 3], table.clone().into()),
            ("1.weight", TensorType::F32, vec![8, 3], table.into()),
        ];
        assert_eq!(found, expected, "{file}");
    }
}

/// Every record's name.
fn names() -> Vec<String> {
    let files = std::fs::read_dir(fixtures()).unwrap();
    let files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files
        .filter_map(|file| file.strip_suffix(".json").map(String::from))
        .collect();
    names.sort();
    names
}

/// A damage to a part: another type, another dimension, other bytes, or it is gone.
#[derive(Debug, Clone)]
enum Damage {
    Type(Dtype),
    Dimension(prop::sample::Index, usize),
    Dimensions(Vec<usize>),
    Bytes(u8),
    Gone,
}

fn damage() -> impl Strategy<Value = Damage> {
    use Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32, I8, I32, I64, U8};
    let types = [F32, F16, BF16, I8, U8, I32, I64, F8_E4M3, F8_E5M2];
    let sizes =
        prop_oneof![8 => 0usize..40, 1 => Just(128), 1 => Just(1 << 12), 1 => Just(1 << 60)];
    prop_oneof![
        prop::sample::select(types.to_vec()).prop_map(Damage::Type),
        (any::<prop::sample::Index>(), sizes.clone()).prop_map(|(at, n)| Damage::Dimension(at, n)),
        prop::collection::vec(sizes, 0..4).prop_map(Damage::Dimensions),
        any::<u8>().prop_map(Damage::Bytes),
        Just(Damage::Gone),
    ]
}

impl Record {
    fn damage(&mut self, at: prop::sample::Index, damage: Damage) {
        let key = at
            .get(&self.parts.keys().cloned().collect::<Vec<_>>())
            .clone();
        let part = self.parts.get_mut(&key).unwrap();
        match damage {
            Damage::Type(dtype) => part.dtype = dtype,
            Damage::Dimension(at, n) if !part.shape.is_empty() => {
                let at = at.index(part.shape.len());
                part.shape[at] = n;
            }
            Damage::Dimension(..) => part.shape = vec![2],
            Damage::Dimensions(shape) => part.shape = shape,
            Damage::Bytes(byte) => {
                let len = decode(&part.data).len();
                part.data = BASE64_STANDARD.encode(vec![byte; len]);
            }
            Damage::Gone => {
                self.parts.remove(&key);
                return;
            }
        }
        // A file whose lengths don't agree is refused before.
        let bits = part.dtype.bitsize();
        let elements = part.shape.iter().try_fold(bits, |n, d| n.checked_mul(*d));
        let len = elements.map_or(usize::MAX, |bits| bits / 8);
        let mut bytes = decode(&part.data);
        bytes.resize(len.min(1 << 20), 0x5a);
        if bytes.len() < len {
            part.shape.push(0);
            bytes.clear();
        }
        part.data = BASE64_STANDARD.encode(bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// Whatever a part is, a checkpoint is refused, or its matrices can be read.
    #[test]
    fn damaged_parts_do_no_harm(
        name in prop::sample::select(names()),
        damages in prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..4),
        number in prop::option::of(0u64..70),
    ) {
        let mut record = Record::read(&name);
        for (at, damage) in damages {
            if !record.parts.is_empty() {
                record.damage(at, damage);
            }
        }
        if let (Some(number), Some(config)) = (number, record.config.as_object_mut()) {
            for key in ["bits", "group_size"] {
                config.insert(key.into(), number.into());
            }
            let block = json!([number, number / 2]);
            config.insert("weight_block_size".into(), block);
        }
        if let Ok((folder, _dir)) = open(&record) {
            for (index, tensor) in folder.tensors().iter().enumerate() {
                prop_assert_eq!(folder.bytes(index, 0..tensor.len()).len(), tensor.len());
            }
        }
    }
}
