//! `config.json` with the defaults of its family filled in, as `transformers` would do.

use serde_json::{Map, Value};

use super::Error;

/// A default of a family's configuration class.
#[derive(Debug, Clone, Copy)]
pub(super) enum Default {
    /// This number where the key is absent.
    Number(&'static str, f64),
    /// The value of another key where the key is absent or null.
    Same(&'static str, &'static str),
    /// So many times the count of another key where the key is absent or null.
    Times(&'static str, &'static str, u32),
    /// `hidden_size / num_attention_heads` where the key is absent or null.
    HeadDim(&'static str),
    /// LFM2's width of feed-forward layers: two thirds of what the configuration says, times a factor, rounded up to
    /// a multiple, unless it says otherwise.
    Adjusted,
}

/// The model's configuration.
#[derive(Debug, Clone)]
pub(super) struct Config(Map<String, Value>);

impl Config {
    pub(super) fn new(raw: &Map<String, Value>, defaults: &[Default]) -> Result<Config, Error> {
        let mut map = raw.clone();
        if let Some(Value::Object(text)) = map.remove("text_config") {
            map.extend(text);
        }
        let mut this = Config(map);
        for default in defaults {
            match *default {
                Default::Number(key, value) => {
                    if !this.0.contains_key(key) {
                        this.0.insert(key.into(), number(value));
                    }
                }
                Default::Same(key, other) => {
                    if this.get(key).is_none()
                        && let Some(value) = this.get(other).cloned()
                    {
                        this.0.insert(key.into(), value);
                    }
                }
                Default::Times(key, other, times) => {
                    if this.get(key).is_none()
                        && let Some(count) = this.count(&[other])?
                    {
                        let value = u64::from(count) * u64::from(times);
                        this.0.insert(key.into(), value.into());
                    }
                }
                Default::Adjusted => {
                    let width = this.adjusted()?;
                    this.0.insert("intermediate_size".into(), width.into());
                }
                Default::HeadDim(key) => {
                    if this.get(key).is_none() {
                        let dim = this.hidden_per_head()?;
                        this.0.insert(key.into(), dim.into());
                    }
                }
            }
        }
        Ok(this)
    }

    /// All keys.
    pub(super) fn map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The value of a key, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// The value of the first of these keys that is there, unless it is null.
    pub(super) fn first<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, &Value)> {
        let key = keys.iter().find(|key| self.0.contains_key(**key))?;
        Some((key, self.get(key)?))
    }

    /// A count under the first of these keys that is there.
    pub(super) fn count(&self, keys: &[&str]) -> Result<Option<u32>, Error> {
        self.first(keys)
            .map(|(key, v)| as_count(key, v))
            .transpose()
    }

    /// A count that the model can't be without.
    pub(super) fn need(&self, keys: &[&str]) -> Result<u32, Error> {
        match self.count(keys)? {
            Some(count) if count > 0 => Ok(count),
            Some(_) => Err(bad(keys[0], &Value::from(0), "a positive number")),
            None => Err(Error::Config {
                file: "config.json",
                key: keys[0].into(),
                found: "nothing".into(),
                expected: "a positive number".into(),
            }),
        }
    }

    /// A number under the first of these keys that is there.
    pub(super) fn number(&self, keys: &[&str]) -> Result<Option<f64>, Error> {
        self.first(keys)
            .map(|(key, v)| as_number(key, v))
            .transpose()
    }

    /// `hidden_size / num_attention_heads`, rounded down.
    pub(super) fn hidden_per_head(&self) -> Result<u32, Error> {
        Ok(self.need(&["hidden_size"])? / self.need(&["num_attention_heads"])?)
    }

    /// LFM2's width of feed-forward layers.
    fn adjusted(&self) -> Result<u64, Error> {
        let width = u64::from(self.need(&["block_ff_dim", "intermediate_size"])?);
        if self.get("block_auto_adjust_ff_dim") == Some(&Value::Bool(false)) {
            return Ok(width);
        }
        let factor = self.number(&["block_ffn_dim_multiplier"])?.unwrap_or(1.0);
        let multiple = self.count(&["block_multiple_of"])?.unwrap_or(256).max(1);
        let adjusted = (factor * (2 * width / 3) as f64) as u64;
        let rounded = adjusted.checked_next_multiple_of(multiple.into());
        let found = Value::from(factor);
        rounded.ok_or_else(|| bad("block_ffn_dim_multiplier", &found, "a factor about 1"))
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }
}

/// Whole numbers stay integers, so that counts can be read back as such.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        Value::from(value as i64)
    } else {
        Value::from(value)
    }
}

pub(super) fn as_count(key: &str, value: &Value) -> Result<u32, Error> {
    value
        .as_u64()
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| bad(key, value, "a whole number below 2^32"))
}

pub(super) fn as_number(key: &str, value: &Value) -> Result<f64, Error> {
    value.as_f64().ok_or_else(|| bad(key, value, "a number"))
}

pub(super) fn bad(key: &str, found: &Value, expected: &str) -> Error {
    let mut found = format!("`{found}`");
    if found.len() > 80 {
        found = match serde_json::from_str::<Value>(found.trim_matches('`')) {
            Ok(Value::Array(a)) => format!("a list of {}", a.len()),
            Ok(Value::Object(_)) => "an object".into(),
            _ => "a long text".into(),
        };
    }
    Error::Config {
        file: "config.json",
        key: key.into(),
        found,
        expected: expected.into(),
    }
}
