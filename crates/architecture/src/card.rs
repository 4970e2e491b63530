//! The `general.*` metadata: name, size, origin and sampling defaults, from the model card,
//! `generation_config.json` and the model's name, by the rules of llama.cpp's converter.

use dwindle_formats::gguf::{Array, Metadata, Value as GgufValue};
use serde_json::Value;

use super::front_matter::{self, Card};
use super::names::{self, NameParts};
use super::{Error, ModelTensor};
use dwindle_checkpoint::huggingface::HuggingFace;

/// Fields that are text, in the order in which they are written: the key after `general.`, and
/// where the card may have them.
const TEXTS: &[(&str, &[&str])] = &[
    ("name", &["name", "model_name"]),
    ("author", &["author", "model_author", "model_creator"]),
    ("version", &["version", "model_version"]),
    ("organization", &["organization", "model_organization"]),
    ("finetune", &["finetune", "model_finetune"]),
    ("basename", &["basename", "model_basename", "model_type"]),
    ("description", &["description", "model_description"]),
    ("size_label", &["size_label", "model_size_label"]),
    ("license", &["license"]),
    ("license.name", &["license_name"]),
    ("license.link", &["license_link"]),
    ("source.url", &["url", "model_url"]),
    ("source.doi", &["doi", "model_doi"]),
    ("source.uuid", &["uuid", "model_uuid"]),
    ("source.repo_url", &["repo_url", "model_repo_url"]),
];

/// The facts about a base model or a data set.
const ORIGIN_FIELDS: [&str; 9] = [
    "name",
    "author",
    "version",
    "organization",
    "description",
    "url",
    "doi",
    "uuid",
    "repo_url",
];

/// Writes `general.*`.
pub(super) fn describe(
    folder: &HuggingFace,
    tensors: &[ModelTensor],
    metadata: &mut Metadata,
) -> Result<(), Error> {
    sampling(folder, metadata)?;
    let readme = folder.read("README.md")?.unwrap_or_default();
    let card = front_matter::parse(&String::from_utf8_lossy(&readme));
    let card = card.unwrap_or(Card::Null);
    let parameters: u64 = tensors.iter().map(ModelTensor::elements).sum();
    let id = folder.id();
    // What the card does not say comes from the name in the configuration, then from the folder's.
    let path = folder.config().get("_name_or_path").and_then(Value::as_str);
    let hints: Vec<NameParts> = path
        .filter(|path| path.matches('/').count() <= 1)
        .into_iter()
        .chain([id.as_str()])
        .map(|name| names::take_apart(name, parameters))
        .collect();
    for (key, sources) in TEXTS {
        let stated = sources.iter().find_map(|source| card_text(&card, source));
        let text = stated.or_else(|| hints.iter().find_map(|parts| hint(parts, key)));
        let text = match (*key, text) {
            ("name", None) => Some(id.clone()),
            ("size_label", None) => size(tensors, parameters),
            (_, text) => text,
        };
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            metadata.set(format!("general.{key}"), text);
        }
    }
    let base_models = ["base_model", "base_models", "base_model_sources"];
    origins(&card, &base_models, "base_model", parameters, metadata);
    let datasets = ["datasets", "dataset", "dataset_sources"];
    origins(&card, &datasets, "dataset", parameters, metadata);
    list(&card, &["tags", "pipeline_tag"], "general.tags", metadata);
    list(
        &card,
        &["languages", "language"],
        "general.languages",
        metadata,
    );
    Ok(())
}

/// A field of the card; lists of licenses are joined.
fn card_text(card: &Card, key: &str) -> Option<String> {
    match card.get(key)? {
        Card::Text(text) => Some(text.clone()),
        Card::List(items) if key == "license" => {
            let items: Vec<&str> = items.iter().filter_map(Card::text).collect();
            Some(items.join(","))
        }
        _ => None,
    }
}

fn hint(parts: &NameParts, key: &str) -> Option<String> {
    match key {
        "name" => parts.full_name.as_deref().map(names::title),
        "organization" => parts.organization.as_deref().map(names::title),
        "basename" => parts.basename.clone(),
        "finetune" => parts.finetune.clone(),
        "version" => parts.version.clone(),
        "size_label" => parts.size_label.clone(),
        _ => None,
    }
}

/// The size of one expert's path through the model, or of the whole model.
fn size(tensors: &[ModelTensor], parameters: u64) -> Option<String> {
    let (mut shared, mut experts) = (0u64, 0u64);
    let mut counts = Vec::new();
    for tensor in tensors {
        let size = tensor.elements();
        match tensor.shape.get(2) {
            Some(count) if tensor.name.contains("_exps.") && *count > 0 => {
                experts += size / count;
                counts.push(*count);
            }
            _ => shared += size,
        }
    }
    if parameters == 0 {
        return None;
    }
    let label = |size| names::size_label(size);
    Some(match counts.len() as u64 {
        0 => label(parameters),
        n => format!(
            "{}x{}",
            counts.iter().sum::<u64>() / n,
            label(shared + experts)
        ),
    })
}

/// The base models or data sets that a card names.
fn origins(card: &Card, keys: &[&str], kind: &str, parameters: u64, metadata: &mut Metadata) {
    let Some(value) = keys.iter().find_map(|key| card.get(key)) else {
        return;
    };
    let entries: Vec<&Card> = match value {
        Card::Text(_) => vec![value],
        Card::List(items) => items.iter().collect(),
        _ => Vec::new(),
    };
    metadata.set(format!("general.{kind}.count"), entries.len() as u32);
    for (i, entry) in entries.into_iter().enumerate() {
        let facts = match entry {
            Card::Text(id) => origin(id, parameters),
            other => ORIGIN_FIELDS
                .iter()
                .filter_map(|field| Some((*field, other.get(field)?.text()?.to_string())))
                .collect(),
        };
        for field in ORIGIN_FIELDS {
            if let Some((_, text)) = facts.iter().find(|(f, t)| *f == field && !t.is_empty()) {
                metadata.set(format!("general.{kind}.{i}.{field}"), text.as_str());
            }
        }
    }
}

/// Facts in the address or the Hugging Face name of an origin.
fn origin(id: &str, parameters: u64) -> Vec<(&'static str, String)> {
    let is_address = ["http://", "https://", "ssh://"]
        .iter()
        .any(|p| id.starts_with(p));
    let mut facts = Vec::new();
    let name = if is_address {
        facts.push(("repo_url", id.to_string()));
        match hub_name(id) {
            Some(name) => name,
            None => return facts,
        }
    } else {
        id
    };
    let parts = names::take_apart(name, parameters);
    if let (Some(organization), Some(full), false) =
        (&parts.organization, &parts.full_name, is_address)
    {
        facts.push((
            "repo_url",
            format!("https://huggingface.co/{organization}/{full}"),
        ));
    }
    facts.extend(parts.full_name.map(|name| ("name", names::title(&name))));
    facts.extend(
        parts
            .organization
            .map(|org| ("organization", names::title(&org))),
    );
    facts.extend(parts.version.map(|version| ("version", version)));
    facts
}

/// `ORG/NAME` of an address on Hugging Face.
fn hub_name(address: &str) -> Option<&str> {
    let rest = ["https://", "http://"].iter().find_map(|scheme| {
        address
            .strip_prefix(scheme)?
            .strip_prefix("huggingface.co/")
    })?;
    let (org, name) = rest.split_once('/')?;
    (!org.is_empty() && !name.is_empty() && !name.contains('/')).then_some(rest)
}

fn list(card: &Card, keys: &[&str], target: &str, metadata: &mut Metadata) {
    let mut items = Vec::new();
    for key in keys {
        match card.get(key) {
            Some(Card::Text(text)) => items.push(text.clone()),
            Some(Card::List(list)) => {
                items.extend(list.iter().filter_map(Card::text).map(str::to_string));
            }
            _ => {}
        }
    }
    if !items.is_empty() {
        metadata.set(target, GgufValue::Array(Array::String(items)));
    }
}

/// Keys of `generation_config.json`, the GGUF keys they become, and whether they are whole numbers.
const SAMPLING: &[(&[&str], &str, bool)] = &[
    (&["top_k"], "top_k", true),
    (&["top_p"], "top_p", false),
    (&["min_p"], "min_p", false),
    (&["xtc_probability"], "xtc_probability", false),
    (&["xtc_threshold"], "xtc_threshold", false),
    (&["temperature"], "temp", false),
    (&["penalty_last_n"], "penalty_last_n", true),
    (
        &["penalty_repeat", "repetition_penalty"],
        "penalty_repeat",
        false,
    ),
    (&["mirostat"], "mirostat", true),
    (&["mirostat_tau"], "mirostat_tau", false),
    (&["mirostat_eta"], "mirostat_eta", false),
];

/// How the authors would sample. A file that can't be read recommends nothing.
fn sampling(folder: &HuggingFace, metadata: &mut Metadata) -> Result<(), Error> {
    let bytes = folder.read("generation_config.json")?.unwrap_or_default();
    let Ok(config) = serde_json::from_slice::<Value>(&bytes) else {
        return Ok(());
    };
    if let Some(sequence) = config.get("sequence").and_then(Value::as_str) {
        metadata.set("general.sampling.sequence", sequence);
    }
    for (keys, name, whole) in SAMPLING {
        let Some(value) = keys.iter().find_map(|key| config.get(*key)) else {
            continue;
        };
        let key = format!("general.sampling.{name}");
        if *whole {
            if let Some(value) = value.as_i64().and_then(|v| i32::try_from(v).ok()) {
                metadata.set(key, value);
            }
        } else if let Some(value) = value.as_f64() {
            metadata.set(key, value as f32);
        }
    }
    Ok(())
}
