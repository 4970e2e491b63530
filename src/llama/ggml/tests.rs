use dwindle_ggml::{
    GgmlError, MAX_MAGNITUDE, dequantize, quantize, readable, requires_importance, writable,
};
use llama_cpp_sys_2 as sys;
use rand::{RngExt, SeedableRng};

use super::*;

fn values(n: usize) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn size(ty: TensorType, row_len: usize, rows: usize) -> usize {
    ty.bytes(&[row_len as u64, rows as u64]).unwrap() as usize
}

#[test]
fn our_table_is_ggmls() {
    for ty in TensorType::all() {
        let t = traits(ty);
        // SAFETY: a type's name is a static, NUL-terminated string.
        let name = unsafe { std::ffi::CStr::from_ptr(t.type_name) };
        assert_eq!(name.to_str().unwrap().to_uppercase(), ty.name(), "{ty}");
        assert_eq!(t.blck_size as u64, ty.block_len(), "{ty}");
        assert_eq!(t.type_size as u64, ty.block_bytes(), "{ty}");
        assert_eq!(t.is_quantized, ty.is_quantized(), "{ty}");
        let reads = t.to_float.is_some() || ty == TensorType::F32;
        assert_eq!(readable(ty), reads, "{ty}");
        // SAFETY: a pure comparison of the id.
        let wants = unsafe { sys::ggml_quantize_requires_imatrix(ggml_type(ty)) };
        assert_eq!(requires_importance(ty), wants, "{ty}");
    }
    let known = TensorType::all().count();
    let ggml = (0..sys::GGML_TYPE_COUNT)
        .filter(|id| {
            // SAFETY: the id is below the count.
            let t = unsafe { &*sys::ggml_get_type_traits(*id) };
            t.blck_size > 0
        })
        .count();
    assert_eq!(known, ggml, "ggml has types that our table does not list");
}

#[test]
fn every_writable_type_round_trips() {
    let (row_len, rows) = (512, 3);
    let source = values(row_len * rows);
    let weights: Vec<f32> = values(row_len).iter().map(|v| v.abs() + 0.1).collect();
    for ty in TensorType::all().filter(|t| writable(*t)) {
        let mut bytes = vec![0; size(ty, row_len, rows)];
        quantize(ty, &source, row_len, Some(&weights), &mut bytes).unwrap();
        let mut back = vec![0.0; source.len()];
        dequantize(ty, &bytes, &mut back).unwrap();
        let (mut err, mut norm) = (0.0, 0.0);
        for (a, b) in source.iter().zip(&back) {
            err += f64::from(a - b).powi(2);
            norm += f64::from(*a).powi(2);
        }
        // The smallest types keep little more than signs.
        let limit = if ty.bits() < 2.5 { 0.8 } else { 0.4 };
        assert!((err / norm).sqrt() < limit, "{ty}: {}", (err / norm).sqrt());
    }
}

#[test]
fn bytes_need_no_alignment() {
    let source = values(512);
    for ty in TensorType::all().filter(|t| writable(*t)) {
        let n = size(ty, 512, 1);
        let weights = vec![1.0; 512];
        let mut even = vec![0; n];
        quantize(ty, &source, 512, Some(&weights), &mut even).unwrap();
        let mut buffer = vec![0; n + 4];
        for shift in 1..4 {
            let odd = &mut buffer[shift..shift + n];
            quantize(ty, &source, 512, Some(&weights), odd).unwrap();
            assert_eq!(odd, even, "{ty}");
            let (mut a, mut b) = (vec![0.0; 512], vec![0.0; 512]);
            dequantize(ty, &even, &mut a).unwrap();
            dequantize(ty, odd, &mut b).unwrap();
            assert_eq!(a, b, "{ty}");
        }
    }
}

#[test]
fn degenerate_rows_do_not_end_the_process() {
    let weights = [vec![0.0; 256], vec![1.0; 256], vec![MAX_MAGNITUDE; 256]];
    for fill in [
        0.0,
        1.0,
        -1e-30,
        f32::MIN_POSITIVE / 4.0,
        1e4,
        MAX_MAGNITUDE,
    ] {
        for ty in TensorType::all().filter(|t| writable(*t)) {
            let mut bytes = vec![0; size(ty, 256, 1)];
            let mut lone = vec![0.0; 256];
            lone[77] = fill;
            for row in [vec![fill; 256], lone] {
                for w in &weights {
                    let _ = quantize(ty, &row, 256, Some(w), &mut bytes);
                }
            }
        }
    }
}

#[test]
fn wrong_arguments_are_refused() {
    use TensorType::*;
    let row = vec![1.0; 256];
    let mut out = vec![0; 144];
    assert_eq!(quantize(Q4_K, &row, 256, None, &mut out), Ok(()));
    assert!(matches!(
        quantize(Q4_K, &row[..255], 255, None, &mut out),
        Err(GgmlError::RowLength { row_len: 255, .. })
    ));
    assert!(matches!(
        quantize(Q4_K, &row, 256, None, &mut out[1..]),
        Err(GgmlError::Length { expected: 144, .. })
    ));
    assert!(matches!(
        quantize(Q4_K, &row, 256, Some(&row[1..]), &mut out),
        Err(GgmlError::Length { expected: 256, .. })
    ));
    assert_eq!(
        quantize(IQ1_S, &row, 256, None, &mut out[..50]),
        Err(GgmlError::ImportanceMissing(IQ1_S))
    );
    assert_eq!(
        quantize(Q8_K, &row, 256, None, &mut [0; 292]),
        Err(GgmlError::NotWritable(Q8_K))
    );
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let mut row = row.clone();
        row[200] = bad;
        assert!(matches!(
            quantize(Q4_K, &row, 256, None, &mut out),
            Err(GgmlError::Value { index: 200, .. })
        ));
    }
    let mut weights = row.clone();
    weights[3] = -1.0;
    assert!(matches!(
        quantize(Q4_K, &row, 256, Some(&weights), &mut out),
        Err(GgmlError::Importance { index: 3, .. })
    ));
    assert!(matches!(
        dequantize(Q4_K, &out, &mut [0.0; 255]),
        Err(GgmlError::RowLength { .. })
    ));
    assert_eq!(
        dequantize(I32, &[0; 4], &mut [0.0]),
        Err(GgmlError::NotReadable(I32))
    );
}

#[test]
fn sixteen_bit_floats_are_ggmls_and_exact() {
    let mut floats = values(5000);
    let all = (0..=u16::MAX).map(|b| half::bf16::from_bits(b).to_f32());
    floats.extend(all.filter(|v| v.is_finite()));
    floats.extend([65504.0, 65519.9, 65520.0, 1e-8, 5.9e-8, -0.0]);
    let mut ours = vec![0; 2 * floats.len()];
    quantize(TensorType::BF16, &floats, floats.len(), None, &mut ours).unwrap();
    for (v, b) in floats.iter().zip(ours.as_chunks::<2>().0) {
        // SAFETY: pure arithmetic on a value.
        let ggml = unsafe { sys::ggml_fp32_to_bf16(*v) };
        assert_eq!(u16::from_le_bytes(*b), ggml.bits, "{v}");
    }
    floats.retain(|v| v.abs() < 65520.0);
    ours.truncate(2 * floats.len());
    quantize(TensorType::F16, &floats, floats.len(), None, &mut ours).unwrap();
    for (v, b) in floats.iter().zip(ours.as_chunks::<2>().0) {
        let expected = half::f16::from_f32(*v);
        let found = half::f16::from_le_bytes(*b);
        assert!(found.to_bits() == expected.to_bits(), "{v}");
    }
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut back = vec![0.0; 1 << 16];
    dequantize(TensorType::F16, &halves, &mut back).unwrap();
    for (b, v) in back.iter().enumerate() {
        let expected = half::f16::from_bits(b as u16).to_f32();
        assert!(v.to_bits() == expected.to_bits() || v.is_nan(), "{b:x}");
    }
}

#[test]
fn sixteen_bit_floats_never_become_infinite() {
    for (ty, largest) in [
        (TensorType::F16, half::f16::MAX.to_f32()),
        (TensorType::BF16, half::bf16::MAX.to_f32()),
    ] {
        let store = |value: f32| {
            let mut bytes = [0; 4];
            quantize(ty, &[0.0, value], 2, None, &mut bytes)?;
            let mut back = [0.0; 2];
            dequantize(ty, &bytes, &mut back)?;
            Ok::<f32, GgmlError>(back[1])
        };
        // The first value that is rounded up, found in steps of the smallest kind.
        let mut value = largest;
        while let Ok(stored) = store(value) {
            assert_eq!(stored, largest);
            value = f32::from_bits((value.to_bits() + 0x40) & !0x3f);
        }
        let expected = match ty {
            TensorType::F16 => half::f16::from_f32(value).is_infinite(),
            _ => half::bf16::from_f32(value).is_infinite(),
        };
        assert!(expected, "{ty}: {value} was refused and could be held");
        for bad in [value, -value, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let refused = matches!(store(bad), Err(GgmlError::Value { index: 1, .. }));
            assert!(refused, "{ty}: {bad}");
        }
    }
}
