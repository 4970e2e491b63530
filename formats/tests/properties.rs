//! Whatever is written is read back; whatever else is read does not panic.

use dwindle_formats::container::Container;
use dwindle_formats::gguf::{
    Array, Metadata, TensorInfo, TensorLayout, TensorType, Value, encode_header, header_len,
    lay_out, read_header,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
    ]
}

fn other_array() -> impl Strategy<Value = Array> {
    prop_oneof![
        vec(any::<f32>(), 0..9).prop_map(Array::F32),
        vec(any::<f64>(), 0..9).prop_map(Array::F64),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(".{0,9}", 0..9).prop_map(Array::String),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        number(),
        any::<f32>().prop_map(Value::F32),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        ".{0,40}".prop_map(Value::String),
        array().prop_map(Value::Array),
        other_array().prop_map(Value::Array),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    btree_map("[a-z.]{0,12}", value(), 0..12).prop_map(|entries| {
        let mut metadata = Metadata::new();
        for (key, value) in entries {
            metadata.set(key, value);
        }
        metadata
    })
}

fn tensors() -> impl Strategy<Value = Vec<TensorLayout>> {
    let ty = (0..TensorType::all().count()).prop_map(|i| TensorType::all().nth(i).unwrap());
    btree_map(".{1,15}", (ty, 1u64..4, vec(1u64..5, 0..4)), 0..8).prop_map(|list| {
        list.into_iter()
            .map(|(name, (ty, blocks, more))| TensorLayout {
                name,
                shape: [&[blocks * ty.block_len()], &more[..]].concat(),
                ty,
            })
            .collect()
    })
}

/// A whole file: header, and zeros for data.
fn file(metadata: &Metadata, tensors: Vec<TensorLayout>, align: u64) -> (Vec<u8>, Vec<TensorInfo>) {
    let (infos, data) = lay_out(tensors, align).unwrap();
    let mut bytes = encode_header(metadata, &infos, align);
    bytes.resize(bytes.len() + data as usize, 0);
    (bytes, infos)
}

proptest! {
    // Failures are seeds in the output; files of them would only go stale.
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn headers_are_read_back_as_they_were_written(
        mut metadata in metadata(),
        tensors in tensors(),
        alignment in 3u32..=16,
    ) {
        let alignment = 1 << alignment;
        metadata.set("general.alignment", alignment as u32);
        let (bytes, infos) = file(&metadata, tensors, alignment);
        let header = read_header(&bytes).unwrap();
        prop_assert_eq!(header.header_end, header_len(&metadata, &infos));
        prop_assert_eq!(header.data_start % alignment, 0);
        prop_assert_eq!(&header.tensors, &infos);
        prop_assert_eq!(header.alignment, alignment);
        prop_assert_eq!(&header.metadata, &metadata);
        // Writing what was read gives the same bytes again.
        let again = encode_header(&header.metadata, &header.tensors, alignment);
        prop_assert_eq!(&bytes[..again.len()], &again);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..512)) {
        let _ = Container::read(&bytes);
    }

    #[test]
    fn arbitrary_bytes_after_the_magic_never_panic(
        tensors in 0u64..3,
        entries in 0u64..3,
        key in 0u64..9,
        rest in vec(any::<u8>(), 0..256),
    ) {
        let counts = [tensors, entries, key].map(u64::to_le_bytes).concat();
        let _ = Container::read(&[b"GGUF\x03\0\0\0", &counts[..], &rest].concat());
    }

    #[test]
    fn overwritten_bytes_never_panic(
        metadata in metadata(),
        tensors in tensors(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
    ) {
        let (mut bytes, _) = file(&metadata, tensors, 32);
        for (index, byte) in damage {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = Container::read(&bytes);
    }
}
