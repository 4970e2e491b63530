use dwindle_formats::gguf::{Array, Metadata, TensorType, Value};

use super::*;

fn metadata(entries: &[(&str, Value)]) -> Metadata {
    let mut m = Metadata::new();
    m.set("general.architecture", "llama");
    m.set("llama.block_count", 2u32);
    m.set("llama.embedding_length", 256u32);
    m.set("llama.attention.head_count", 4u32);
    m.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
    m.set("llama.rope.dimension_count", 64u32);
    m.set("tokenizer.ggml.model", "llama");
    for (key, value) in entries {
        m.set(*key, value.clone());
    }
    m
}

fn verdict(entries: &[(&str, Value)], tensors: &[(&str, &[u64], TensorType)]) -> String {
    let described = tensors.iter().map(|(name, shape, ty)| Described {
        name,
        shape,
        ty: *ty,
    });
    match admit(&metadata(entries), described) {
        Ok(()) => "admitted".into(),
        Err(refusal) => refusal.to_string(),
    }
}

#[track_caller]
fn refused(entries: &[(&str, Value)], pieces: &[&str]) {
    let verdict = verdict(entries, &[]);
    for piece in pieces {
        assert!(verdict.contains(piece), "{verdict}");
    }
}

#[track_caller]
fn admitted(entries: &[(&str, Value)]) {
    assert_eq!(verdict(entries, &[]), "admitted");
}

fn u(v: u32) -> Value {
    Value::U32(v)
}

#[test]
fn layers_are_bounded() {
    admitted(&[]);
    admitted(&[("llama.block_count", u(512))]);
    for n in [0, 513, u32::MAX] {
        refused(&[("llama.block_count", u(n))], &["block_count", "1 to 512"]);
    }
    admitted(&[("llama.nextn_predict_layers", u(1))]);
    refused(
        &[("llama.nextn_predict_layers", u(3))],
        &["is 3", "fewer than the 2"],
    );
}

#[test]
fn experts_must_agree() {
    let count = |n| ("llama.expert_count", u(n));
    let used = |n| ("llama.expert_used_count", u(n));
    let groups = |n| ("llama.expert_group_count", u(n));
    let groups_used = |n| ("llama.expert_group_used_count", u(n));
    admitted(&[count(8), used(2)]);
    admitted(&[count(1), used(1)]);
    admitted(&[count(0), used(0), groups(0)]);
    admitted(&[count(8), used(2), groups(4), groups_used(2)]);
    // One group is none.
    admitted(&[count(8), used(2), groups(1)]);
    refused(&[count(8)], &["expert_used_count` is missing", "1 to 8"]);
    refused(&[count(8), used(0)], &["is 0, expected 1 to 8"]);
    refused(&[count(8), used(9)], &["is 9, expected 1 to 8"]);
    refused(&[used(2)], &["is 2, expected 0 without experts"]);
    refused(&[groups(2)], &["expert_group_count` is 2"]);
    refused(&[count(1025), used(2)], &["1024 at most"]);
    refused(&[count(8), used(2), groups(8)], &["less than"]);
    refused(&[count(8), used(2), groups(3)], &["a divisor"]);
    refused(&[count(8), used(2), groups(4)], &["group_used_count` is 0"]);
    refused(
        &[count(8), used(2), groups(4), groups_used(4)],
        &["is 4, expected 1 to 3"],
    );
    let each = Value::Array(Array::U32(vec![2, 9]));
    refused(&[count(8), ("llama.expert_used_count", each)], &["is 9"]);
}

#[test]
fn numbers_are_numbers() {
    let epsilon = |v| ("llama.attention.layer_norm_rms_epsilon", Value::F32(v));
    admitted(&[epsilon(0.0)]);
    for v in [-1.0, f32::NAN, f32::INFINITY] {
        refused(&[epsilon(v)], &["not negative"]);
    }
    refused(
        &[("llama.rope.freq_base", Value::F32(f32::NAN))],
        &["a finite number"],
    );
}

#[test]
fn positions_can_be_turned() {
    let kind = |v: &str| ("llama.rope.scaling.type", Value::from(v));
    admitted(&[kind("yarn")]);
    refused(&[kind("su")], &["`su`", "longrope"]);
    refused(
        &[("llama.rope.dimension_count", u(63))],
        &["an even number"],
    );
    refused(&[("llama.rope.dimension_count", u(66))], &["64 at most"]);
    let sections = |v: Vec<i32>| ("llama.rope.dimension_sections", Value::Array(Array::I32(v)));
    admitted(&[sections(vec![16, 24, 24, 0])]);
    refused(&[sections(vec![0; 4])], &["all zero"]);
}

#[test]
fn nothing_is_divided_by_zero() {
    let step = "interleave_moe_layer_step";
    refused(&[(&format!("llama.{step}"), u(0))], &["more than 0"]);
    let llama4 = ("general.architecture", Value::from("llama4"));
    admitted(&[llama4, (&format!("llama4.{step}"), u(0))]);
}

#[test]
fn tokens_are_distinct_and_short() {
    let tokens = |v: &[&str]| {
        let v = v.iter().map(ToString::to_string).collect();
        ("tokenizer.ggml.tokens", Value::Array(Array::String(v)))
    };
    admitted(&[tokens(&["a", "b", "", ""])]);
    refused(&[tokens(&["a", "b", "a"])], &["tokens 0 and 2", "`a`"]);
    refused(&[tokens(&["[EMPTY_1]", ""])], &["tokens 0 and 1"]);
    refused(&[tokens(&["a\0b", "a"])], &["tokens 0 and 1"]);
    refused(&[tokens(&[&"x".repeat(4097)])], &["4097 bytes"]);
    let none = ("tokenizer.ggml.model", Value::from("none"));
    refused(&[none, ("llama.vocab_size", u(u32::MAX))], &["vocab_size"]);
}

#[test]
fn types_are_those_that_kernels_compute_with() {
    let one = |name, shape: &[u64], ty| verdict(&[], &[(name, shape, ty)]);
    use TensorType::*;
    let norm = "blk.0.attn_norm.weight";
    assert_eq!(one(norm, &[256], F32), "admitted");
    for ty in [F16, BF16, Q8_0, I8, I32] {
        assert!(one(norm, &[256], ty).contains(norm));
        assert!(one("blk.0.ffn_up.bias", &[256], ty).contains("F32"));
        assert!(one("blk.0.attn_q_norm.weight", &[64, 4], ty).contains("F32"));
    }
    for ty in [I8, I16, I32, I64, F64, Q8_K, Q8_1] {
        assert!(one("token_embd.weight", &[256, 32], ty).contains("a type of weights"));
    }
    for ty in TensorType::all().filter(|ty| ggml_computes(*ty)) {
        assert_eq!(one("blk.0.ffn_up.weight", &[256, 32], ty), "admitted");
    }
    assert_eq!(
        one("blk.0.ffn_gate_tid2eid.weight", &[8, 32], I32),
        "admitted"
    );
    assert!(one("blk.0.ffn_up.weight", &[256, 0], F16).contains("no zero"));
}

/// Whether ggml's CPU has a product with rows of this type.
fn ggml_computes(ty: TensorType) -> bool {
    // SAFETY: the id is one of the pinned version's, and the table is static.
    unsafe {
        (*llama_cpp_sys_2::ggml_get_type_traits_cpu(ty.id() as _))
            .vec_dot
            .is_some()
    }
}

#[test]
fn what_is_admitted_can_be_computed() {
    for ty in TensorType::all().filter(|ty| dwindle_ggml::writable(*ty)) {
        assert!(ggml_computes(ty), "{ty}");
    }
}

#[test]
fn tensors_lie_where_ggml_reads_them() {
    assert_eq!(admit_alignment(64), Ok(()));
    let refusal = admit_alignment(16).unwrap_err();
    assert!(refusal.to_string().contains("multiples of 16 bytes"));
}
