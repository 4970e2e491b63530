//! One refusal for each cap and check of the GGUF reader. Every file is built here, byte by byte.

#[path = "common/raw.rs"]
mod raw;

use dwindle_formats::gguf::{GgufError, limits, read_header, type_id};
use raw::{array, entry, gguf, start, string, tensor};

const F32: u32 = 0;
const Q4_K: u32 = 12;

fn refusal(bytes: &[u8]) -> GgufError {
    match read_header(bytes) {
        Err(e) => e,
        Ok(header) => panic!("accepted: {header:?}"),
    }
}

/// The refusal of a file whose only entry is this one.
fn entry_refusal(entry: Vec<u8>) -> GgufError {
    refusal(&gguf(&[entry], &[], 0))
}

/// The refusal of a file of these tensors over so many bytes of data.
fn tensor_refusal(tensors: &[Vec<u8>], data: usize) -> GgufError {
    refusal(&gguf(&[], tensors, data))
}

fn assert_limit(error: &GgufError, expected: u64) {
    assert!(
        matches!(error, GgufError::Limit { limit, .. } if *limit == expected),
        "{error}"
    );
}

fn assert_truncated(error: &GgufError) {
    assert!(matches!(error, GgufError::Truncated { .. }), "{error}");
}

fn assert_shape(error: &GgufError, expected: &str) {
    assert!(
        matches!(error, GgufError::Shape { problem, .. } if problem.contains(expected)),
        "{error}"
    );
}

#[test]
fn a_good_file_is_accepted() {
    let entries = [
        entry("a", type_id::BOOL, &[1]),
        entry("general.alignment", type_id::U32, &64u32.to_le_bytes()),
        array("b", type_id::STRING, 1, &string(b"x")),
    ];
    let tensors = [tensor("t", &[3, 2], F32, 0), tensor("u", &[256], Q4_K, 64)];
    let mut bytes = gguf(&entries, &tensors, 0);
    bytes.resize(bytes.len().next_multiple_of(64) + 64 + 144, 0);
    assert_eq!(read_header(&bytes).unwrap().tensors.len(), 2);
    let empty = gguf(&[], &[], 0);
    assert!(read_header(&empty).unwrap().tensors.is_empty());
}

#[test]
fn every_truncation_of_a_header_is_refused() {
    let entries = [
        entry("a", type_id::U64, &[1; 8]),
        array("b", type_id::STRING, 1, &string(b"x")),
    ];
    let bytes = gguf(&entries, &[tensor("t", &[3, 2], F32, 0)], 24);
    assert!(read_header(&bytes).is_ok());
    for len in 0..bytes.len() {
        assert!(read_header(&bytes[..len]).is_err(), "truncated to {len}");
    }
}

#[test]
fn another_magic_is_refused() {
    assert_eq!(
        refusal(b"GGML\x03\0\0\0"),
        GgufError::Magic {
            found: b"GGML".to_vec()
        }
    );
    assert_truncated(&refusal(b""));
    assert_truncated(&refusal(b"GGU"));
}

#[test]
fn other_versions_are_refused() {
    for found in [0, 1, 2, 4, u32::MAX] {
        assert_eq!(refusal(&start(found, 0, 0)), GgufError::Version { found });
    }
}

#[test]
fn big_endian_files_are_refused_by_name() {
    assert_eq!(refusal(&start(3 << 24, 0, 0)), GgufError::BigEndian);
}

#[test]
fn too_many_tensors_are_refused() {
    for count in [limits::TENSORS + 1, u64::MAX] {
        assert_limit(&refusal(&start(3, count, 0)), limits::TENSORS);
    }
    assert_truncated(&refusal(&start(3, limits::TENSORS, 0)));
}

#[test]
fn too_many_entries_are_refused() {
    for count in [limits::METADATA_ENTRIES + 1, u64::MAX] {
        assert_limit(&refusal(&start(3, 0, count)), limits::METADATA_ENTRIES);
    }
    assert_truncated(&refusal(&start(3, 0, limits::METADATA_ENTRIES)));
}

#[test]
fn too_long_keys_are_refused() {
    let mut bytes = start(3, 0, 1);
    bytes.extend((limits::KEY_BYTES + 1).to_le_bytes());
    assert_limit(&refusal(&bytes), limits::KEY_BYTES);
}

#[test]
fn keys_longer_than_the_file_are_refused() {
    let mut bytes = start(3, 0, 1);
    bytes.extend(limits::KEY_BYTES.to_le_bytes());
    bytes.extend(b"short");
    assert_truncated(&refusal(&bytes));
}

#[test]
fn too_long_strings_are_refused() {
    for len in [limits::STRING_BYTES + 1, u64::MAX] {
        let error = entry_refusal(entry("k", type_id::STRING, &len.to_le_bytes()));
        assert_limit(&error, limits::STRING_BYTES);
    }
}

#[test]
fn strings_longer_than_the_file_are_refused() {
    let len = limits::STRING_BYTES.to_le_bytes();
    assert_truncated(&entry_refusal(entry("k", type_id::STRING, &len)));
}

#[test]
fn too_long_arrays_are_refused() {
    for ty in [type_id::U8, type_id::F64, type_id::STRING, type_id::BOOL] {
        for count in [limits::ARRAY_ELEMENTS + 1, u64::MAX] {
            let error = entry_refusal(array("k", ty, count, &[0; 64]));
            assert_limit(&error, limits::ARRAY_ELEMENTS);
        }
    }
}

#[test]
fn arrays_longer_than_the_file_are_refused() {
    for ty in (type_id::U8..=type_id::F64).filter(|ty| *ty != type_id::ARRAY) {
        let error = entry_refusal(array("k", ty, limits::ARRAY_ELEMENTS, &[0; 64]));
        assert_truncated(&error);
    }
}

#[test]
fn arrays_of_arrays_are_refused() {
    let nested = array("k", type_id::ARRAY, 1, &[0; 64]);
    assert!(matches!(
        entry_refusal(nested),
        GgufError::ValueType { found: 9, .. }
    ));
}

#[test]
fn unknown_value_types_are_refused() {
    for ty in [13, 255, u32::MAX] {
        let single = entry_refusal(entry("k", ty, &[0; 64]));
        let many = entry_refusal(array("k", ty, 1, &[0; 64]));
        for error in [single, many] {
            assert!(matches!(error, GgufError::ValueType { found, .. } if found == ty));
        }
    }
}

#[test]
fn keys_strings_and_names_that_are_not_utf8_are_refused() {
    let bad = [0xc3, 0x28];
    let key = [&string(&bad)[..], &[0; 16]].concat();
    let in_array = array("k", type_id::STRING, 1, &string(&bad));
    for entry in [key, entry("k", type_id::STRING, &string(&bad)), in_array] {
        assert!(matches!(entry_refusal(entry), GgufError::Utf8 { .. }));
    }
    let name = [&string(&bad)[..], &tensor("", &[1], F32, 0)[8..]].concat();
    let error = tensor_refusal(&[name], 32);
    assert!(matches!(error, GgufError::Utf8 { .. }), "{error}");
}

#[test]
fn booleans_other_than_0_and_1_are_refused() {
    for found in [2, 255] {
        let single = entry_refusal(entry("k", type_id::BOOL, &[found]));
        let many = entry_refusal(array("k", type_id::BOOL, 2, &[1, found]));
        for error in [single, many] {
            assert!(matches!(error, GgufError::Boolean { found: f, .. } if f == found));
        }
    }
}

#[test]
fn a_key_that_appears_twice_is_refused() {
    let twice = entry("k", type_id::U8, &[1]);
    assert_eq!(
        refusal(&gguf(&[twice.clone(), twice], &[], 0)),
        GgufError::DuplicateKey("k".into())
    );
}

#[test]
fn alignments_that_are_no_power_of_two_within_the_cap_are_refused() {
    for found in [0u32, 1, 3, 4, 33, 1 << 17, 1 << 31, u32::MAX] {
        let error = entry_refusal(entry(
            "general.alignment",
            type_id::U32,
            &found.to_le_bytes(),
        ));
        assert_eq!(
            error,
            GgufError::Alignment {
                found: found.into()
            }
        );
    }
}

#[test]
fn an_alignment_of_another_type_is_refused() {
    let as_u64 = entry("general.alignment", type_id::U64, &32u64.to_le_bytes());
    let as_text = entry("general.alignment", type_id::STRING, &string(b"32"));
    for entry in [as_u64, as_text] {
        let error = entry_refusal(entry);
        assert!(matches!(error, GgufError::Alignment { .. }), "{error}");
    }
}

#[test]
fn too_long_tensor_names_are_refused() {
    let error = tensor_refusal(&[tensor(&"x".repeat(64), &[1], F32, 0)], 32);
    assert_limit(&error, limits::NAME_BYTES);
    let longest = tensor(&"x".repeat(63), &[1], F32, 0);
    assert!(read_header(&gguf(&[], &[longest], 32)).is_ok());
}

#[test]
fn no_dimensions_and_five_are_refused() {
    for shape in [&[][..], &[1; 5]] {
        let error = tensor_refusal(&[tensor("t", shape, F32, 0)], 32);
        assert_limit(&error, limits::DIMS.into());
    }
    // A count that no bytes could back is refused before they are looked for.
    let mut endless = tensor("t", &[1], F32, 0);
    endless[9..13].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_limit(&tensor_refusal(&[endless], 32), limits::DIMS.into());
}

#[test]
fn a_dimension_of_zero_is_refused() {
    for shape in [[0, 2], [2, 0]] {
        let error = tensor_refusal(&[tensor("t", &shape, F32, 0)], 32);
        assert_shape(&error, "zero");
    }
}

#[test]
fn inflated_dimensions_are_refused() {
    for shape in [
        &[u64::MAX][..],
        &[1 << 63],
        &[1 << 32, 1 << 32],
        &[1 << 16, 1 << 16, 1 << 16, 1 << 16],
        // The product is 0 in 64 bits.
        &[1 << 33, 1 << 31],
        &[u64::MAX, u64::MAX, u64::MAX, u64::MAX],
    ] {
        let error = tensor_refusal(&[tensor("t", shape, F32, 0)], 32);
        assert_shape(&error, "more elements");
    }
}

#[test]
fn sizes_in_bytes_that_overflow_are_refused() {
    let error = tensor_refusal(&[tensor("t", &[1 << 31, 1 << 31], F32, 0)], 32);
    assert_shape(&error, "overflows");
}

#[test]
fn ends_that_overflow_are_refused() {
    let huge = (i64::MAX as u64) & !31;
    let first = tensor("a", &[huge], 24, 0);
    let second = tensor("b", &[huge], 24, huge);
    let third = tensor("c", &[huge], 24, 2 * huge);
    assert_shape(&tensor_refusal(&[first, second, third], 32), "overflows");
}

#[test]
fn unknown_and_removed_element_types_are_refused() {
    for found in [4, 5, 31, 36, 43, u32::MAX] {
        let error = tensor_refusal(&[tensor("t", &[32], found, 0)], 128);
        assert!(matches!(error, GgufError::TensorType { found: f, .. } if f == found));
    }
}

#[test]
fn rows_that_are_no_multiple_of_the_block_are_refused() {
    for row in [1, 128, 255, 257] {
        let error = tensor_refusal(&[tensor("t", &[row, 256], Q4_K, 0)], 1 << 16);
        assert_shape(&error, "do not divide");
    }
}

#[test]
fn a_tensor_that_appears_twice_is_refused() {
    let tensors = [tensor("t", &[8], F32, 0), tensor("t", &[8], F32, 32)];
    assert_eq!(
        tensor_refusal(&tensors, 64),
        GgufError::DuplicateTensor("t".into())
    );
}

#[test]
fn overlaps_holes_and_offsets_out_of_order_are_refused() {
    for (first, second) in [
        (0, 0),         // the same bytes twice
        (0, 32),        // an overlap
        (0, 96),        // a hole
        (64, 0),        // out of order
        (32, 96),       // a hole before the first
        (0, 65),        // not aligned
        (0, u64::MAX),  // far away
        (u64::MAX, 64), // its end overflows
    ] {
        let tensors = [
            tensor("a", &[16], F32, first),
            tensor("b", &[8], F32, second),
        ];
        let error = tensor_refusal(&tensors, 256);
        assert!(matches!(error, GgufError::Offset { .. }), "{error}");
    }
}

#[test]
fn data_past_the_end_of_the_file_is_refused() {
    for (elements, data) in [
        (8, 31),
        (8, 0),
        (1 << 40, 1024),
        (i64::MAX as u64 / 4, 1024),
    ] {
        let error = tensor_refusal(&[tensor("t", &[elements], F32, 0)], data);
        assert!(matches!(error, GgufError::DataTruncated { .. }), "{error}");
    }
}
