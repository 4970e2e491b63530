//! Checkpoints seen as llama.cpp models: every family and the tokenizers.

use dwindle::architecture::{self, Assembly, Model};
use dwindle::checkpoint::Caches;
use dwindle_formats::gguf::{
    Array, Metadata, TensorLayout, TensorType, Value as Gguf, encode_header, lay_out,
};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::common::folder;
use crate::common::folder::{
    DENSE, FEED_FORWARD, Folder, HIDDEN, Parts, VOCABULARY, error, families, open, refused, says,
};
use crate::common::record::Record;

fn tensor<'a>(model: &'a Model, name: &str) -> &'a architecture::ModelTensor {
    model.tensors.iter().find(|t| t.name == name).unwrap()
}

fn names(model: &Model) -> Vec<&str> {
    model.tensors.iter().map(|t| t.name.as_str()).collect()
}

fn strings(metadata: &Metadata, key: &str) -> Vec<String> {
    match metadata.get(key) {
        Some(Gguf::Array(Array::String(list))) => list.clone(),
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "the rows are written out")]
fn llama_reorders_query_and_key() {
    let folder = Folder::new("LlamaForCausalLM", &DENSE);
    let (source, model) = open(&folder);
    assert_eq!(model.architecture, "llama");
    assert_eq!(
        names(&model)[..10],
        [
            "token_embd.weight",
            "blk.0.attn_norm.weight",
            "blk.0.ffn_down.weight",
            "blk.0.ffn_gate.weight",
            "blk.0.ffn_up.weight",
            "blk.0.ffn_norm.weight",
            "blk.0.attn_k.weight",
            "blk.0.attn_output.weight",
            "blk.0.attn_q.weight",
            "blk.0.attn_v.weight",
        ]
    );
    let query = tensor(&model, "blk.0.attn_q.weight");
    assert!(matches!(
        query.assembly,
        Assembly::PermuteRotary { heads: 2, .. }
    ));
    assert_eq!(query.source_type(&*source), TensorType::BF16);
    let stored = &folder.tensors["model.layers.0.self_attn.q_proj.weight"].bytes;
    let row = HIDDEN * 2;
    let expected: Vec<u8> = [0, 2, 1, 3, 4, 6, 5, 7]
        .iter()
        .flat_map(|i| stored[i * row..(i + 1) * row].to_vec())
        .collect();
    assert_eq!(*query.rows(&*source, 0..8), expected);

    let value = tensor(&model, "blk.1.attn_v.weight");
    assert_eq!(
        *value.rows(&*source, 0..value.row_count()),
        folder.tensors["model.layers.1.self_attn.v_proj.weight"].bytes
    );
    value.release(&*source);
    assert!(tensor(&model, "output_norm.weight").always_f32);
    assert!(!value.always_f32);

    let keys: Vec<(&str, &Gguf)> = model.metadata.iter().collect();
    let expected: &[(&str, Gguf)] = &[
        ("general.architecture", "llama".into()),
        ("general.type", "model".into()),
        ("general.name", "Tiny Model".into()),
        ("general.size_label", "3.1K".into()),
        ("llama.block_count", 2u32.into()),
        ("llama.context_length", 64u32.into()),
        ("llama.embedding_length", 8u32.into()),
        ("llama.feed_forward_length", 12u32.into()),
        ("llama.attention.head_count", 2u32.into()),
        ("llama.attention.head_count_kv", 1u32.into()),
        ("llama.rope.freq_base", 10_000f32.into()),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5f32.into()),
        ("llama.attention.key_length", 4u32.into()),
        ("llama.attention.value_length", 4u32.into()),
        ("llama.vocab_size", 264u32.into()),
        ("llama.rope.dimension_count", 4u32.into()),
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", "gpt-2".into()),
    ];
    for (found, (key, value)) in keys.iter().zip(expected) {
        assert_eq!((found.0, found.1), (*key, value));
    }
}

#[test]
fn every_family_has_its_names() {
    let cases = [
        ("llama", "blk.1.ffn_up.weight", true),
        ("llama", "blk.1.ffn_down.weight", true),
        ("qwen2", "blk.1.attn_q.bias", false),
        ("qwen3", "blk.1.attn_q_norm.weight", false),
        ("granite", "blk.1.attn_output.weight", true),
        ("llama", "blk.1.ffn_up_exps.weight", true),
        ("qwen3moe", "blk.1.ffn_gate_exps.weight", false),
    ];
    let families = families();
    assert_eq!(families.len(), cases.len());
    for ((name, folder), (architecture, wanted, permuted)) in families.iter().zip(cases) {
        let (source, model) = open(folder);
        assert_eq!(model.architecture, architecture, "{name}");
        assert!(
            names(&model).contains(&wanted),
            "{name}: {:?}",
            names(&model)
        );
        assert_eq!(
            names(&model).contains(&"output.weight"),
            folder.config["tie_word_embeddings"] == json!(false),
            "{name}"
        );
        let key = tensor(&model, "blk.0.attn_k.weight");
        let is_permuted = matches!(key.assembly, Assembly::PermuteRotary { heads: 1, .. });
        assert_eq!(is_permuted, permuted, "{name}");
        for t in &model.tensors {
            let bytes = t.rows(&*source, 0..t.row_count());
            assert_eq!(bytes.len() as u64, t.elements() * 2, "{name}: {}", t.name);
        }
        let embedding = tensor(&model, "token_embd.weight");
        assert_eq!(embedding.shape, [HIDDEN as u64, VOCABULARY as u64]);
    }
}

#[test]
fn a_model_without_its_head_has_names_without_the_prefix() {
    let whole = families().swap_remove(3).1;
    let (_, expected) = open(&whole);
    let mut bare = families().swap_remove(3).1;
    bare.config["architectures"] = json!(["Qwen3Model"]);
    bare.config["tie_word_embeddings"] = json!(false);
    let tensors = std::mem::take(&mut bare.tensors).into_iter();
    let cut = tensors.map(|(name, tensor)| (name.replacen("model.", "", 1), tensor));
    bare.tensors = cut.collect();
    let (_, found) = open(&bare);
    let sorted = |model: &Model| {
        let mut all: Vec<String> = names(model).iter().map(ToString::to_string).collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&found), sorted(&expected));
    assert_eq!(found.architecture, "qwen3");
}

#[test]
fn what_llama_cpp_takes_for_granted_is_held_against_the_configuration() {
    let mut folder = Record::of("smollm3").folder();
    folder.config["no_rope_layer_interval"] = json!(4);
    assert_eq!(open(&folder).1.architecture, "smollm3");
    folder.config["no_rope_layer_interval"] = json!(2);
    let sentence = refused(&folder);
    says(
        &sentence,
        &["no_rope_layer_interval", "`2`", "takes for granted"],
    );

    let mut folder = Record::of("gemma3").folder();
    folder.config["layer_types"][5] = json!("sliding_attention");
    says(&refused(&folder), &["layer_types", "each 6th"]);
    let mut folder = Record::of("exaone4").folder();
    folder.config["sliding_window"] = json!(16);
    says(&refused(&folder), &["sliding_window", "64 layers"]);
}

#[test]
fn what_llama_cpp_has_no_place_for_is_left_out_with_a_word() {
    let record = Record::of("gpt2");
    let (_, whole) = open(&record.folder());
    assert_eq!(whole.notes(), Vec::<String>::new());
    // As the first GPT-2 has them: without a prefix, and with masks.
    let mut old = record.folder();
    let tensors = std::mem::take(&mut old.tensors).into_iter();
    let bare = tensors.map(|(name, tensor)| (name.replacen("transformer.", "", 1), tensor));
    old.tensors = bare.collect();
    old.add("h.0.attn.bias", &[1, 1, 4, 4]);
    old.add("h.1.attn.bias", &[1, 1, 4, 4]);
    let (_, found) = open(&old);
    assert_eq!(found.tensors.len(), whole.tensors.len());
    says(&found.notes()[0], &["2 tensors are", "`h.0.attn.bias`"]);

    old.add("transformer.wpe.weight", &[512, 64]);
    says(&refused(&old), &["is there twice", "wpe.weight"]);

    let mut ahead = Record::of("glm4moe").folder();
    ahead.add("model.layers.4.eh_proj.weight", &[64, 128]);
    says(
        &open(&ahead).1.notes()[0],
        &["a tensor is", "layers.4.eh_proj"],
    );
    ahead.add("model.layers.5.eh_proj.weight", &[64, 128]);
    says(&refused(&ahead), &["layers.5.eh_proj", "no place"]);
}

#[test]
fn what_is_cut_or_put_together_must_fit() {
    let mut neo = Record::of("gpt-neo").folder();
    let key = "transformer.h.1.attn.attention.k_proj.weight";
    let tensor = neo.tensors.get_mut(key).unwrap();
    tensor.dtype = Dtype::F32;
    tensor.bytes = tensor.bytes.repeat(2);
    says(
        &refused(&neo),
        &["blk.1.attn_qkv.weight", "differ in shape or element type"],
    );

    let mut falcon = Record::of("falcon").folder();
    falcon.config["num_kv_heads"] = json!(3);
    falcon.config["num_attention_heads"] = json!(4);
    for layer in 0..4 {
        let name = format!("transformer.h.{layer}.self_attention.query_key_value.weight");
        falcon.add(&name, &[160, 64]);
    }
    says(
        &refused(&falcon),
        &["num_key_value_heads", "a divisor of 4 heads"],
    );
}

#[test]
fn experts_are_stacked_in_order() {
    let parts = Parts {
        experts: Some((
            "block_sparse_moe.gate.weight",
            "block_sparse_moe.experts",
            ["w1", "w2", "w3"],
        )),
        ..DENSE
    };
    let mut folder = Folder::new("MixtralForCausalLM", &parts);
    folder.config["num_local_experts"] = json!(folder::EXPERTS);
    let (source, model) = open(&folder);
    let down = tensor(&model, "blk.0.ffn_down_exps.weight");
    assert_eq!(down.shape, [FEED_FORWARD as u64, HIDDEN as u64, 3]);
    let expected: Vec<u8> = (0..3)
        .flat_map(|e| {
            let name = format!("model.layers.0.block_sparse_moe.experts.{e}.w2.weight");
            folder.tensors[&name].bytes.clone()
        })
        .collect();
    assert_eq!(*down.rows(&*source, 0..down.row_count()), expected);
    assert!(tensor(&model, "blk.0.ffn_gate_inp.weight").always_f32);

    folder
        .tensors
        .remove("model.layers.1.block_sparse_moe.experts.2.w2.weight");
    says(&refused(&folder), &["experts.2.w2.weight` is missing"]);
}

#[test]
fn granite_has_its_scales() {
    let mut folder = Folder::new("GraniteForCausalLM", &DENSE);
    folder.config["embedding_multiplier"] = json!(12);
    folder.config["logits_scaling"] = json!(8.0);
    let (_, model) = open(&folder);
    let get = |key: &str| model.metadata.get(key).and_then(Gguf::as_f64);
    assert_eq!(get("granite.embedding_scale"), Some(12.0));
    assert_eq!(get("granite.logit_scale"), Some(8.0));
    assert_eq!(get("granite.residual_scale"), Some(1.0));
    assert_eq!(get("granite.attention.key_length"), None);
}

#[test]
fn rotary_scaling_becomes_metadata_or_a_tensor() {
    let mut folder = Folder::new("LlamaForCausalLM", &DENSE);
    folder.config["rope_scaling"] = json!({"type": "linear", "factor": 4.0});
    let (_, model) = open(&folder);
    let key = |name: &str| {
        model
            .metadata
            .get(&format!("llama.rope.scaling.{name}"))
            .cloned()
    };
    assert_eq!(key("type"), Some("linear".into()));
    assert_eq!(key("factor"), Some(4f32.into()));

    folder.config["rope_scaling"] = Value::Null;
    folder.config["rope_parameters"] = json!({
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    });
    let (_, model) = open(&folder);
    assert_eq!(model.tensors[0].name, "rope_freqs.weight");
    let factors = Assembly::of_floats(&[1.0, 8.0]);
    assert_eq!(model.tensors[0].assembly, factors);
    let base = model.metadata.get("llama.rope.freq_base");
    assert_eq!(base, Some(&500_000f32.into()));

    let mut folder = Folder::new("Qwen2ForCausalLM", &DENSE);
    folder.config["rope_scaling"] = json!({"rope_type": "yarn", "factor": 2.0});
    let (_, model) = open(&folder);
    let context = model
        .metadata
        .get("qwen2.rope.scaling.original_context_length");
    assert_eq!(context, Some(&64u32.into()));
    folder.config["rope_scaling"] = json!({"rope_type": "llama3", "factor": 2.0});
    says(
        &refused(&folder),
        &["rotary scaling `llama3`", "qwen2", "`yarn`"],
    );
    folder.config["rope_scaling"] = json!({"rope_type": "longrope"});
    says(&refused(&folder), &["`longrope`"]);
}

#[test]
fn byte_level_tokens_are_padded_and_typed() {
    let (_, model) = open(&Folder::new("LlamaForCausalLM", &DENSE));
    let meta = &model.metadata;
    let tokens = strings(meta, "tokenizer.ggml.tokens");
    assert_eq!(tokens.len(), VOCABULARY);
    assert_eq!(tokens[0], "<|endoftext|>");
    assert_eq!(tokens[259], "Ġthe");
    assert_eq!(tokens[260], "[PAD260]");
    let Some(Gguf::Array(Array::I32(kinds))) = meta.get("tokenizer.ggml.token_type") else {
        panic!("{:?}", meta.get("tokenizer.ggml.token_type"));
    };
    assert_eq!((kinds[0], kinds[1], kinds[260]), (3, 1, 5));
    let merges = strings(meta, "tokenizer.ggml.merges");
    assert_eq!(merges, ["Ġ t", "h e", "Ġt he"]);
    assert_eq!(meta.get("tokenizer.ggml.eos_token_id"), Some(&0u32.into()));
    assert_eq!(
        meta.get("tokenizer.ggml.add_bos_token"),
        Some(&false.into())
    );
}

#[test]
fn sentencepiece_tokens_keep_scores_and_kinds() {
    let mut folder = Folder::new("LlamaForCausalLM", &DENSE);
    let pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("<0x0A>", 0.0, 6),
        ("▁a", -1.5, 1),
    ];
    folder.file("tokenizer.model", folder::sentencepiece(&pieces));
    folder.file(
        "tokenizer_config.json",
        r#"{"add_bos_token": true, "bos_token": "<s>", "add_prefix_space": true,
            "chat_template": "{{ x }}",
            "added_tokens_decoder": {"4": {"content": "<tool>", "special": false}}}"#,
    );
    let (_, model) = open(&folder);
    let meta = &model.metadata;
    assert_eq!(meta.get("tokenizer.ggml.model"), Some(&"llama".into()));
    let tokens = strings(meta, "tokenizer.ggml.tokens");
    assert_eq!(
        tokens[..6],
        ["<unk>", "<s>", "<0x0A>", "▁a", "<tool>", "[PAD5]"]
    );
    let Some(Gguf::Array(Array::I32(kinds))) = meta.get("tokenizer.ggml.token_type") else {
        panic!("no kinds");
    };
    assert_eq!(kinds[..6], [2, 3, 6, 1, 4, 5]);
    let Some(Gguf::Array(Array::F32(scores))) = meta.get("tokenizer.ggml.scores") else {
        panic!("no scores");
    };
    assert_eq!(scores[3..6], [-1.5, -1000.0, -10_000.0]);
    assert_eq!(
        meta.get("tokenizer.ggml.add_space_prefix"),
        Some(&true.into())
    );
    assert_eq!(meta.get("tokenizer.chat_template"), Some(&"{{ x }}".into()));

    folder.file("tokenizer.model", [0xffu8; 8]);
    says(&refused(&folder), &["`tokenizer.model`", "protocol buffer"]);
}

#[test]
fn the_model_card_is_told() {
    let mut folder = Folder::new("LlamaForCausalLM", &DENSE);
    folder.file(
        "README.md",
        "---\nlicense: mit\nlanguage: [en, no]\ntags:\n- tiny\npipeline_tag: text-generation\nbase_model: Org/Base-Model-v2\n---\n",
    );
    folder.file(
        "generation_config.json",
        r#"{"temperature": 0.5, "top_k": 20}"#,
    );
    let (_, model) = open(&folder);
    let meta = &model.metadata;
    let get = |key: &str| meta.get(key).cloned();
    assert_eq!(get("general.license"), Some("mit".into()));
    assert_eq!(strings(meta, "general.languages"), ["en", "no"]);
    assert_eq!(strings(meta, "general.tags"), ["tiny", "text-generation"]);
    assert_eq!(get("general.base_model.count"), Some(1u32.into()));
    assert_eq!(
        get("general.base_model.0.name"),
        Some("Base Model v2".into())
    );
    assert_eq!(
        get("general.base_model.0.repo_url"),
        Some("https://huggingface.co/Org/Base-Model-v2".into())
    );
    assert_eq!(get("general.sampling.temp"), Some(0.5f32.into()));
    assert_eq!(get("general.sampling.top_k"), Some(20i32.into()));
}

#[test]
fn names_resolve_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("models--Org--Tiny-1K-Chat");
    Folder::new("LlamaForCausalLM", &DENSE).write(&model.join("snapshots").join("abc1"));
    std::fs::create_dir(model.join("refs")).unwrap();
    std::fs::write(model.join("refs").join("main"), "abc1").unwrap();
    let cache = dir.path().as_os_str().to_owned();
    let caches = Caches::from_vars(|name| (name == "HF_HUB_CACHE").then(|| cache.clone()));
    let (_, model) = architecture::open_with("Org/Tiny-1K-Chat", &caches).unwrap();
    let get = |key: &str| model.metadata.get(key).and_then(Gguf::as_str);
    assert_eq!(get("general.name"), Some("Tiny 1K Chat"));
    assert_eq!(get("general.organization"), Some("Org"));
    assert_eq!(get("general.finetune"), Some("Chat"));
}

#[test]
fn a_gguf_file_passes_through() {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("general.file_type", 2u32);
    metadata.set("llama.block_count", 1u32);
    metadata.set("dwindle.plan", "x");
    let layouts = vec![
        TensorLayout {
            name: "output_norm.weight".into(),
            shape: vec![32],
            ty: TensorType::F32,
        },
        TensorLayout {
            name: "token_embd.weight".into(),
            shape: vec![32, 3],
            ty: TensorType::Q8_0,
        },
    ];
    let (infos, size) = lay_out(layouts, 32).unwrap();
    let mut bytes = encode_header(&metadata, &infos, 32);
    bytes.extend((0..size).map(|i| i as u8));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, &bytes).unwrap();

    let (source, model) = architecture::open(&path).unwrap();
    let keys: Vec<&str> = model.metadata.iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["general.architecture", "llama.block_count"]);
    assert!(model.tensors[0].always_f32);
    let embedding = &model.tensors[1];
    assert_eq!(embedding.source_type(&*source), TensorType::Q8_0);
    let row: Vec<u8> = (128 + 34..128 + 68).map(|i| i as u8).collect();
    assert_eq!(*embedding.rows(&*source, 1..2), row);
    embedding.release(&*source);

    std::fs::write(&path, &bytes[..bytes.len() - 64]).unwrap();
    says(&error(&path), &["x.gguf", "truncated"]);
    std::fs::write(&path, b"text").unwrap();
    says(&error(&path), &["does not begin with `GGUF`"]);
}
