//! How the list of methods reads a rule: each method's keys are the fields of a serde struct.

use std::sync::{Arc, LazyLock};

use serde::de::value::Error as FieldsError;
use serde::de::{DeserializeOwned, Deserializer, Error, Visitor};
use serde::forward_to_deserialize_any;
use toml::de::ValueDeserializer;

use super::{METHODS, Method};

/// A method's keys as a rule writes them. The struct denies unknown fields.
pub(super) trait Keys: DeserializeOwned {
    /// The method that they mean. A file's methods may share their keys, so it is told the name.
    ///
    /// # Errors
    /// What is wrong and what is expected.
    fn check(self, name: &'static str) -> Result<Arc<dyn Method>, String>;
}

/// Keys read as TOML, then checked.
type Read = Result<Result<Arc<dyn Method>, String>, toml::de::Error>;

/// A method in the list.
pub(crate) struct Registered {
    /// What recipes call it.
    pub name: &'static str,
    /// Its keys.
    pub keys: fn() -> &'static [&'static str],
    /// Reads the keys out of a table that has no others.
    pub read: fn(&'static str, ValueDeserializer<'_>) -> Read,
}

/// A method of a name, with its keys.
pub(super) const fn method<K: Keys>(name: &'static str) -> Registered {
    Registered {
        name,
        keys: fields::<K>,
        read: |name, table| Ok(K::deserialize(table)?.check(name)),
    }
}

/// The method of a name.
///
/// # Errors
/// The names that are known.
pub(crate) fn find(name: &str) -> Result<&'static Registered, String> {
    METHODS.iter().find(|m| m.name == name).ok_or_else(|| {
        let names: Vec<String> = METHODS.iter().map(|m| format!("`{}`", m.name)).collect();
        let (last, first) = names
            .split_last()
            .map_or(("", [].as_slice()), |(l, f)| (l, f));
        format!(
            "method `{name}` is not known; known are {} and {last}",
            first.join(", ")
        )
    })
}

/// The keys of every method, each once.
pub(crate) fn all_keys() -> &'static [&'static str] {
    static ALL: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
        let mut all = Vec::new();
        for key in METHODS.iter().flat_map(|m| (m.keys)()) {
            if !all.contains(key) {
                all.push(*key);
            }
        }
        all
    });
    &ALL
}

/// The field names of a struct that derives `Deserialize`: what it asks a deserializer for.
fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // It ends with an error as soon as the names are known.
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = FieldsError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, FieldsError> {
        *self.0 = fields;
        Err(FieldsError::custom("only the names were asked for"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, FieldsError> {
        Err(FieldsError::custom("keys are the fields of a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_name_and_keys_of_its_own() {
        for (i, m) in METHODS.iter().enumerate() {
            assert!(METHODS[..i].iter().all(|other| other.name != m.name));
            assert!((m.keys)().contains(&"type"), "{}", m.name);
            assert!(find(m.name).is_ok());
        }
        assert_eq!(
            (find("svd").unwrap().keys)(),
            ["type", "rank", "keep", "energy", "joint"]
        );
    }

    #[test]
    fn an_unknown_method_is_told_the_known_ones() {
        let error = find("magic").err().unwrap();
        let start = "method `magic` is not known; known are `quantize`, `svd`, ";
        assert!(error.starts_with(start), "{error}");
        let last = METHODS[METHODS.len() - 1].name;
        assert!(error.ends_with(&format!(" and `{last}`")), "{error}");
    }
}
