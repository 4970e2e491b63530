//! Special tokens, whether they are added to a text, and chat templates.
//!
//! They are gathered from `tokenizer.json`, `tokenizer_config.json`, `config.json` and the template
//! files in the order of llama.cpp's converter; the first mention counts.

use std::collections::BTreeMap;

use dwindle_formats::bounded::{self, limits};
use dwindle_formats::gguf::{Array, Metadata, Value as GgufValue};
use serde_json::Value;

use super::files::Files;
use super::json::{bad, content};
use crate::Error;
use dwindle_checkpoint::huggingface::HuggingFace;

/// Roles of special tokens and llama.cpp's keys for them; a role without key is only looked at.
const ROLES: [(&str, Option<&str>); 9] = [
    ("bos", Some("bos")),
    ("eos", Some("eos")),
    ("unk", Some("unknown")),
    ("sep", Some("seperator")), // sic
    ("pad", Some("padding")),
    ("cls", None),
    ("mask", Some("mask")),
    ("eot", Some("eot")),
    ("eom", Some("eom")),
];

/// The roles that every tokenizer is asked for; the others come up only while reading.
const COMMON_ROLES: usize = 7;

#[derive(Debug, Default)]
pub(super) struct Special {
    ids: Vec<(&'static str, u32)>,
    add: Vec<(&'static str, bool)>,
    templates: Vec<(String, String)>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
    roles: usize,
    limit: Option<u64>,
}

impl Special {
    /// Gathers what the files say. Ids from `limit` on are not tokens.
    pub(super) fn new(
        folder: &HuggingFace,
        files: &Files,
        limit: Option<u64>,
    ) -> Result<Special, Error> {
        let mut this = Special {
            roles: COMMON_ROLES,
            limit,
            ..Special::default()
        };
        let names = this.read_processors(files);
        if let Some(normalizer) = files.json().and_then(|json| json.get("normalizer")) {
            this.read_normalizer(normalizer);
        }
        if let Some(config) = &files.config {
            this.read_templates(folder, config)?;
            this.read_config(files, config, &names);
        }
        for (role, _) in &ROLES[..this.roles] {
            let key = format!("{role}_token_id");
            let id = folder.config().get(&key).filter(|v| !v.is_null());
            let nested = || folder.config().get("text_config")?.get(&key);
            if let Some(id) = id.or_else(nested) {
                this.set_id(role, id);
            }
        }
        Ok(this)
    }

    /// Writes what was gathered.
    pub(super) fn describe(self, metadata: &mut Metadata) {
        for (role, id) in self.ids {
            let name = ROLES.iter().find(|r| r.0 == role).and_then(|r| r.1);
            if let Some(name) = name {
                metadata.set(format!("tokenizer.ggml.{name}_token_id"), id);
            }
        }
        for (role, add) in self.add {
            if ["bos", "eos", "sep"].contains(&role) {
                metadata.set(format!("tokenizer.ggml.add_{role}_token"), add);
            }
        }
        let mut named = Vec::new();
        for (name, template) in &self.templates {
            if name != "default" {
                metadata.set(format!("tokenizer.chat_template.{name}"), template.as_str());
                named.push(name.clone());
            }
        }
        if !named.is_empty() {
            named.sort();
            named.dedup();
            metadata.set(
                "tokenizer.chat_templates",
                GgufValue::Array(Array::String(named)),
            );
        }
        let default = self.templates.iter().rev().find(|t| t.0 == "default");
        if let Some((_, template)) = default.filter(|t| !t.1.is_empty()) {
            metadata.set("tokenizer.chat_template", template.as_str());
        }
        for (key, value) in [
            ("lowercase", self.lowercase),
            ("strip_accents", self.strip_accents),
        ] {
            if let Some(value) = value {
                metadata.set(format!("tokenizer.ggml.normalizer.{key}"), value);
            }
        }
    }

    fn set_id(&mut self, role: &'static str, id: &Value) {
        let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            return;
        };
        let known = self.ids.iter().any(|(r, _)| *r == role);
        if !known && self.limit.is_none_or(|limit| u64::from(id) < limit) {
            self.ids.push((role, id));
        }
    }

    fn set_add(&mut self, role: &'static str, add: bool) {
        match self.add.iter_mut().find(|(r, _)| *r == role) {
            Some(entry) => entry.1 = add,
            None => self.add.push((role, add)),
        }
    }

    fn default_add(&mut self, role: &'static str, add: bool) {
        if !self.add.iter().any(|(r, _)| *r == role) {
            self.add.push((role, add));
        }
    }

    fn read_normalizer(&mut self, normalizer: &Value) {
        let field = |key: &str| normalizer.get(key).and_then(Value::as_bool);
        match normalizer.get("type").and_then(Value::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                self.lowercase = field("lowercase").or(self.lowercase);
                self.strip_accents = field("strip_accents").or(self.strip_accents);
            }
            Some("Sequence") => {
                let list = normalizer.get("normalizers").and_then(Value::as_array);
                // JSON's own nesting limit bounds this recursion.
                list.into_iter()
                    .flatten()
                    .for_each(|n| self.read_normalizer(n));
            }
            _ => {}
        }
    }

    /// What the post-processor adds around a text, and the names of special tokens after it.
    fn read_processors(&mut self, files: &Files) -> Names {
        let mut names = Names::new(files);
        let Some(processor) = files
            .json()
            .and_then(|json| json.get("post_processor"))
            .filter(|p| !p.is_null())
        else {
            return names;
        };
        let list = match processor.get("processors").and_then(Value::as_array) {
            Some(list) => list.iter().collect(),
            None => vec![processor],
        };
        for processor in list {
            match processor.get("type").and_then(Value::as_str) {
                Some("ByteLevel") => {
                    self.default_add("bos", false);
                    self.default_add("eos", false);
                }
                Some("RobertaProcessing") => {
                    for role in ["bos", "eos", "sep"] {
                        self.set_add(role, true);
                    }
                    for role in ["cls", "sep"] {
                        let token = processor.get(role).and_then(|t| t.get(0)?.as_str());
                        if let (None, Some(token)) = (names.get(role), token) {
                            names.set(role, token);
                        }
                    }
                }
                Some("TemplateProcessing") => self.read_template(processor, &mut names),
                _ => {}
            }
        }
        names
    }

    fn read_template(&mut self, processor: &Value, names: &mut Names) {
        let items = |key: &str| -> Vec<&Value> {
            let list = processor.get(key).and_then(Value::as_array);
            list.into_iter().flatten().collect()
        };
        let special = |item: &Value| -> Option<String> {
            let id = item.pointer("/SpecialToken/id")?.as_str()?;
            (!id.is_empty()).then(|| id.to_string())
        };
        let (single, pair) = (items("single"), items("pair"));
        let (mut first, mut last) = (None, None);
        if let [head, .., tail] = single.as_slice() {
            first = special(head);
            last = special(tail);
        }
        if let Some(first) = &first {
            let is_bos = |names: &Names| names.is("bos", first) || names.is("cls", first);
            if !names.has_config {
                names.set("bos", first);
            } else if !is_bos(names) {
                for role in ["bos", "cls"] {
                    if names.get(role).is_none() {
                        names.set(role, first);
                    }
                }
            }
            let add = is_bos(names);
            self.set_add("bos", add);
        }
        if let Some(last) = &last {
            if names.has_config && !names.is("eos", last) {
                // The tokens that end texts and turns differ: the one becomes the other's.
                let old = names.get("eos").map(str::to_string);
                if let Some((role, _)) = ROLES.get(self.roles) {
                    self.roles += 1;
                    names.put(role, old);
                }
            }
            names.set("eos", last);
            self.set_add("eos", true);
        }
        self.read_pair(&pair, first.as_deref(), last.as_deref(), names, special);
    }

    /// Whether a separator stands between the two texts of a pair.
    fn read_pair(
        &mut self,
        pair: &[&Value],
        first: Option<&str>,
        last: Option<&str>,
        names: &mut Names,
        special: impl Fn(&Value) -> Option<String>,
    ) {
        let mut pair = pair;
        if let ([head, rest @ ..], Some(first)) = (pair, first)
            && special(head).as_deref() == Some(first)
        {
            pair = rest;
        }
        if let ([rest @ .., tail], Some(last)) = (pair, last)
            && special(tail).as_deref() == Some(last)
        {
            pair = rest;
        }
        let is = |item: &Value, name: &str| {
            item.pointer("/Sequence/id").and_then(Value::as_str) == Some(name)
        };
        let [head, between @ .., tail] = pair else {
            return;
        };
        if between.is_empty() || !is(head, "A") || !is(tail, "B") {
            return;
        }
        let separates = |item: &Value| {
            special(item).is_some_and(|token| names.is("sep", &token) || names.is("eos", &token))
        };
        let mut add = separates(between[0]) && last.is_none();
        if let [_, second] = between {
            add |= separates(second);
        }
        self.set_add("sep", add);
        if add && names.get("sep").is_none() {
            let eos = names.get("eos").map(str::to_string);
            names.put("sep", eos);
        }
    }

    fn read_config(&mut self, files: &Files, config: &Value, names: &Names) {
        let added = files
            .json()
            .and_then(|json| json.get("added_tokens")?.as_array());
        for (role, _) in &ROLES[..self.roles] {
            let add = config.get(format!("add_{role}_token"));
            if let Some(add) = add.and_then(Value::as_bool) {
                self.default_add(role, add);
            }
            let Some(token) = names.get(role) else {
                continue;
            };
            let id = added
                .into_iter()
                .flatten()
                .find(|a| a.get("content").and_then(Value::as_str) == Some(token))
                .and_then(|a| a.get("id"));
            if let Some(id) = id {
                self.set_id(role, id);
            }
        }
    }

    fn read_templates(&mut self, folder: &HuggingFace, config: &Value) -> Result<(), Error> {
        let text = |file: &'static str| -> Result<Option<String>, Error> {
            let Some(bytes) = folder.read(file)? else {
                return Ok(None);
            };
            let text = String::from_utf8(bytes).map_err(|e| bad(file, e))?;
            // Python reads text files so.
            Ok(Some(text.replace("\r\n", "\n").replace('\r', "\n")))
        };
        match config.get("chat_template") {
            Some(Value::String(template)) => self.add_template("default", template),
            Some(Value::Array(list)) => {
                for entry in list {
                    let field = |key: &str| entry.get(key).and_then(Value::as_str);
                    if let (Some(name), Some(template)) = (field("name"), field("template")) {
                        self.add_template(name, template);
                    }
                }
            }
            Some(_) => {}
            None => {
                if let Some(template) = text("chat_template.jinja")? {
                    self.add_template("default", &template);
                    for (name, template) in additional_templates(folder)? {
                        self.add_template(&name, &template);
                    }
                } else if let Some(json) = folder.json("chat_template.json")?
                    && let Some(template) = json.get("chat_template").and_then(Value::as_str)
                {
                    self.add_template("default", template);
                }
            }
        }
        Ok(())
    }

    fn add_template(&mut self, name: &str, template: &str) {
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        if !name.is_empty() {
            self.templates.push((name, template.to_string()));
        }
    }
}

/// `additional_chat_templates/*.jinja`, by name.
fn additional_templates(folder: &HuggingFace) -> Result<BTreeMap<String, String>, Error> {
    let dir = folder.dir().join("additional_chat_templates");
    let mut templates = BTreeMap::new();
    if !dir.is_dir() {
        return Ok(templates);
    }
    let io = |e| Error::Checkpoint(dwindle_checkpoint::Error::Io(e));
    // All of them together are bounded as one file is.
    let mut left = limits::CONFIGURATION;
    for entry in fs_err::read_dir(&dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "jinja")
            && let Some(name) = path.file_stem().and_then(|s| s.to_str())
        {
            let text = bounded::read_text(&path, left).map_err(io)?;
            left -= text.len() as u64;
            templates.insert(name.to_string(), text);
        }
    }
    Ok(templates)
}

/// The special tokens' texts by role, as `tokenizer_config.json` gives them and the post-processor
/// corrects them.
struct Names {
    has_config: bool,
    texts: Vec<(&'static str, Option<String>)>,
    /// Roles whose token is given as an object. The converter holds these unequal to any text.
    objects: Vec<&'static str>,
}

impl Names {
    fn new(files: &Files) -> Names {
        let mut names = Names {
            has_config: files.config.is_some(),
            texts: Vec::new(),
            objects: Vec::new(),
        };
        for (role, _) in ROLES {
            let config = files.config.as_ref();
            let token = config.and_then(|config| config.get(format!("{role}_token")));
            let text = token.and_then(content).filter(|t| !t.is_empty());
            names.put(role, text.map(str::to_string));
            if token.is_some_and(Value::is_object) {
                names.objects.push(role);
            }
        }
        if files.json().is_some() {
            for (role, fallback) in [("bos", "cls"), ("eos", "sep")] {
                if names.get(role).is_none() {
                    let text = names.get(fallback).map(str::to_string);
                    names.put(role, text);
                }
            }
        }
        names
    }

    fn get(&self, role: &str) -> Option<&str> {
        let (_, text) = self.texts.iter().find(|(r, _)| *r == role)?;
        text.as_deref()
    }

    /// Whether the role's token is this text.
    fn is(&self, role: &str, text: &str) -> bool {
        !self.objects.contains(&role) && self.get(role) == Some(text)
    }

    fn set(&mut self, role: &'static str, text: &str) {
        self.put(role, Some(text.to_string()));
    }

    fn put(&mut self, role: &'static str, text: Option<String>) {
        self.objects.retain(|r| *r != role);
        match self.texts.iter_mut().find(|(r, _)| *r == role) {
            Some(entry) => entry.1 = text,
            None => self.texts.push((role, text)),
        }
    }
}
