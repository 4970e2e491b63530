//! Seeded changes of a model's metadata and structure, each with its own description.

use dwindle_formats::container::Form;
use dwindle_formats::gguf::{Array, TensorType, Value};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::file::File;

/// Keys that a file may gain.
const MORE: [&str; 22] = [
    "llama.expert_count",
    "llama.expert_used_count",
    "llama.expert_group_count",
    "llama.expert_group_used_count",
    "llama.expert_feed_forward_length",
    "llama.expert_shared_count",
    "llama.nextn_predict_layers",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length",
    "llama.rope.scaling.attn_factor",
    "llama.rope.freq_base",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.attention.sliding_window",
    "llama.attention.scale",
    "llama.attention.layer_norm_epsilon",
    "llama.embedding_length_out",
    "llama.pooling_type",
    "tokenizer.ggml.pre",
    "general.alignment",
    "split.count",
];

/// Other names of architectures, tokenizers and kinds.
const WORDS: [&str; 16] = [
    "", "llama", "gpt2", "qwen3", "qwen3moe", "mamba", "bert", "t5", "rwkv", "none", "gemma4",
    "llama4", "yarn", "longrope", "su", "tekken",
];

fn pick<'a, T>(rng: &mut ChaCha8Rng, of: &'a [T]) -> &'a T {
    &of[rng.random_range(0..of.len())]
}

/// Changes one key.
pub fn metadata(rng: &mut ChaCha8Rng, file: &mut File) -> String {
    let keys: Vec<String> = file.metadata.iter().map(|(k, _)| k.to_string()).collect();
    if rng.random_range(0..4) == 0 {
        let key = pick(rng, &MORE);
        let value = scalar(rng);
        let said = format!("`{key}` becomes {value:?}");
        file.metadata.set(*key, value);
        return said;
    }
    let key = pick(rng, &keys).clone();
    if rng.random_range(0..6) == 0 {
        file.metadata.remove(&key);
        return format!("`{key}` is gone");
    }
    let old = file.metadata.get(&key).unwrap().clone();
    let value = match old {
        Value::Array(array) => changed_array(rng, array),
        _ if rng.random_range(0..3) == 0 => scalar(rng),
        old => of_the_same_type(rng, &old),
    };
    let said = match &value {
        Value::Array(_) => format!("`{key}` becomes another array"),
        value => format!("`{key}` becomes {value:?}"),
    };
    file.metadata.set(key, value);
    said
}

/// A value of any type, mostly an extreme one.
fn scalar(rng: &mut ChaCha8Rng) -> Value {
    let small = rng.random_range(0..9u32);
    match rng.random_range(0..14) {
        0..=2 => Value::U32(small),
        3 => Value::U32(*pick(rng, &[u32::MAX, 1 << 31, 1 << 20, 513, 255, 16])),
        4 => Value::I32(*pick(rng, &[-1, 0, i32::MIN, i32::MAX])),
        5 => Value::F32(*pick(
            rng,
            &[0.0, -1.0, f32::NAN, f32::INFINITY, f32::MAX, 1e-30],
        )),
        6 => Value::U64(*pick(rng, &[0, 1, u64::MAX])),
        7 => Value::F64(f64::NAN),
        8 => Value::Bool(small.is_multiple_of(2)),
        9 => Value::U8(255),
        10 => Value::U16(u16::MAX),
        11 => Value::Array(Array::U32(vec![small; *pick(rng, &[0, 1, 2, 3, 100_000])])),
        12 => Value::Array(Array::F32(vec![f32::NAN; 2])),
        _ => Value::String(pick(rng, &WORDS).to_string()),
    }
}

fn of_the_same_type(rng: &mut ChaCha8Rng, old: &Value) -> Value {
    match old {
        Value::U32(old) => {
            let near = [
                old.wrapping_sub(1),
                old.wrapping_add(1),
                old / 2,
                old.wrapping_mul(2),
            ];
            let far = [0, 1, 2, 3, 7, 512, 513, 1 << 16, 1 << 31, u32::MAX];
            match rng.random_range(0..2) {
                0 => Value::U32(*pick(rng, &near)),
                _ => Value::U32(*pick(rng, &far)),
            }
        }
        Value::F32(_) => {
            let values = [
                0.0,
                -0.0,
                -1.0,
                1.0,
                1e30,
                -1e-30,
                f32::NAN,
                f32::NEG_INFINITY,
            ];
            Value::F32(*pick(rng, &values))
        }
        Value::Bool(old) => Value::Bool(!old),
        Value::String(_) if rng.random_range(0..4) == 0 => Value::String("x".repeat(1 << 20)),
        Value::String(_) => Value::String(pick(rng, &WORDS).to_string()),
        _ => scalar(rng),
    }
}

fn changed_array(rng: &mut ChaCha8Rng, array: Array) -> Value {
    if rng.random_range(0..8) == 0 {
        return scalar(rng);
    }
    Value::Array(match array {
        Array::String(mut v) => {
            words(rng, &mut v);
            Array::String(v)
        }
        Array::F32(mut v) => {
            resize(rng, &mut v, f32::NAN);
            Array::F32(v)
        }
        Array::I32(mut v) => {
            let value = *pick(rng, &[-1, 0, 1, 2, 3, 4, 5, 6, 7, i32::MAX]);
            resize(rng, &mut v, value);
            Array::I32(v)
        }
        Array::U32(mut v) => {
            resize(rng, &mut v, u32::MAX);
            Array::U32(v)
        }
        other => other,
    })
}

/// Makes an array longer or shorter, or changes elements of it.
fn resize<T: Clone>(rng: &mut ChaCha8Rng, v: &mut Vec<T>, value: T) {
    let len = v.len().max(1);
    match rng.random_range(0..6) {
        0 => v.clear(),
        1 => v.truncate(rng.random_range(0..len)),
        2 => v.resize(len + rng.random_range(1..9), value),
        3 => v.resize(1_000_000, value),
        4 => v.fill(value),
        _ if v.is_empty() => v.push(value),
        _ => {
            let at = rng.random_range(0..v.len());
            v[at] = value;
        }
    }
}

fn words(rng: &mut ChaCha8Rng, v: &mut Vec<String>) {
    let len = v.len().max(2);
    match rng.random_range(0..8) {
        0 => v.clear(),
        1 => v.truncate(rng.random_range(0..len)),
        2 => v.extend((0..rng.random_range(1..9)).map(|i| format!("more{i}"))),
        3 => *v = (0..1_000_000).map(|i| format!("t{i}")).collect(),
        4 => v.iter_mut().for_each(|t| t.insert(0, 'x')),
        5 => v[rng.random_range(0..len)] = String::new(),
        6 => v[rng.random_range(0..len)] = "y".repeat(*pick(rng, &[1, 5_000, 100_000])),
        _ => {
            let (from, to) = (rng.random_range(0..len), rng.random_range(0..len));
            v[to] = v[from].clone();
        }
    }
}

/// Changes one or two tensors.
pub fn structure(rng: &mut ChaCha8Rng, file: &mut File) -> String {
    let said = match rng.random_range(0..12) {
        0..=3 => other_type(rng, file),
        4..=6 => other_shape(rng, file),
        7 => swapped_names(rng, file),
        8 => removed(rng, file),
        9 => renamed(rng, file),
        10 => duplicated(rng, file),
        _ => spoilt_values(rng, file),
    };
    file.fill();
    said
}

fn other_type(rng: &mut ChaCha8Rng, file: &mut File) -> String {
    let types: Vec<TensorType> = TensorType::all().collect();
    let ty = *pick(rng, &types);
    let at = rng.random_range(0..file.plan.tensors.len());
    let tensor = &mut file.plan.tensors[at];
    let part = rng.random_range(0..tensor.parts.len().max(1));
    let Some(part) = tensor.parts.get_mut(part) else {
        return "nothing".into();
    };
    part.ty = ty;
    format!("`{}` is of type {ty}", part.name)
}

fn other_shape(rng: &mut ChaCha8Rng, file: &mut File) -> String {
    let at = rng.random_range(0..file.plan.tensors.len());
    let tensor = &mut file.plan.tensors[at];
    let mut shape = tensor.shape.clone();
    let dim = rng.random_range(0..shape.len());
    match rng.random_range(0..6) {
        0 => shape[dim] *= 2,
        1 => shape[dim] = (shape[dim] / 2).max(1),
        2 => shape.reverse(),
        3 => shape.push(*pick(rng, &[1, 2])),
        4 => shape = vec![shape.iter().product()],
        _ => shape[dim] += *pick(rng, &[1, 32, 256]),
    }
    tensor.shape.clone_from(&shape);
    match tensor.form {
        Form::Dense => tensor.parts[0].shape.clone_from(&shape),
        // Its factors follow as far as they can.
        _ if shape.len() > 1 && tensor.parts.len() == 2 => {
            tensor.parts[0].shape[0] = shape[0];
            tensor.parts[1].shape[1] = shape[1];
        }
        _ => {}
    }
    format!("`{}` has the shape {shape:?}", tensor.name)
}

fn swapped_names(rng: &mut ChaCha8Rng, file: &mut File) -> String {
    let len = file.plan.tensors.len();
    let (a, b) = (rng.random_range(0..len), rng.random_range(0..len));
    let names = [a, b].map(|i| file.plan.tensors[i].name.clone());
    rename(file, a, "between");
    rename(file, b, &names[0]);
    if a != b {
        rename(file, a, &names[1]);
    }
    format!("`{}` and `{}` change names", names[0], names[1])
}

/// Names a tensor, and its parts after it.
fn rename(file: &mut File, at: usize, name: &str) {
    let tensor = &mut file.plan.tensors[at];
    for part in &mut tensor.parts {
        let rest = part.name.strip_prefix(tensor.name.as_str()).unwrap_or("");
        part.name = format!("{name}{rest}");
    }
    tensor.name = name.to_string();
}

/// The numbers of a tensor's parts.
fn parts_of(file: &File, tensor: usize) -> std::ops::Range<usize> {
    let before = &file.plan.tensors[..tensor];
    let start = before.iter().map(|t| t.parts.len()).sum();
    start..start + file.plan.tensors[tensor].parts.len()
}

fn removed(rng: &mut ChaCha8Rng, file: &mut File) -> String {
    let at = rng.random_range(0..file.plan.tensors.len());
    let parts = parts_of(file, at);
    file.data.drain(parts);
    let tensor = file.plan.tensors.remove(at);
    format!("`{}` is gone", tensor.name)
}

fn renamed(rng: &mut ChaCha8Rng, file: &mut File) -> String {
    let at = rng.random_range(0..file.plan.tensors.len());
    let old = file.plan.tensors[at].name.clone();
    let names = [
        old.replace("blk.1", "blk.7"),
        old.replace("blk.0", "blk.4294967295"),
        old.replace(".weight", ".bias"),
        format!("{old}.x"),
        "output.weight".into(),
        "rope_freqs.weight".into(),
        "blk.0.attn_q_norm.weight".into(),
        "blk.0.attn_q.bias".into(),
    ];
    let name = pick(rng, &names).clone();
    rename(file, at, &name);
    format!("`{old}` is called `{name}`")
}

fn duplicated(rng: &mut ChaCha8Rng, file: &mut File) -> String {
    let dense = |t: &&(usize, bool)| t.1;
    let tensors = file.plan.tensors.iter().enumerate();
    let tensors: Vec<_> = tensors.map(|(i, t)| (i, t.form == Form::Dense)).collect();
    let dense: Vec<_> = tensors.iter().filter(dense).collect();
    let at = pick(rng, &dense).0;
    let names = [
        "blk.0.attn_output.bias",
        "blk.0.ffn_gate.bias",
        "blk.1.attn_q.bias",
        "blk.1.rope_freqs.weight",
        "rope_freqs.weight",
        "output.weight",
        "output.bias",
        "blk.0.ffn_norm.bias",
    ];
    let name = *pick(rng, &names);
    let data = file.data[parts_of(file, at).start].clone();
    file.data.push(data);
    let copy = file.plan.tensors[at].clone();
    let said = format!("`{name}` is a copy of `{}`", copy.name);
    file.plan.tensors.push(copy);
    rename(file, file.plan.tensors.len() - 1, name);
    said
}

/// Values that are no numbers, or any bytes.
fn spoilt_values(rng: &mut ChaCha8Rng, file: &mut File) -> String {
    let at = rng.random_range(0..file.data.len());
    let byte = *pick(rng, &[0xff, 0x7f, 0x7c, 0]);
    file.data[at].fill(byte);
    let name = file
        .plan
        .parts()
        .nth(at)
        .map_or("", |p| &p.name)
        .to_string();
    format!("`{name}` is filled with {byte:#x}")
}
