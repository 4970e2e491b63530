//! Rules as a recipe writes them: which tensors, and the keys of one method.

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::sync::{Arc, LazyLock};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error, ValueDeserializer};

use super::methods::{self, Method};
use super::recipe::Rule;

/// Which tensors a rule speaks of, and what is done with them.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Selector {
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    layers: Vec<String>,
    name: Option<String>,
    method: Option<String>,
}

/// The keys of [`Selector`].
const SELECTOR: [&str; 4] = ["roles", "layers", "name", "method"];

/// The method of a rule that does not name one.
const DEFAULT: &str = "quantize";

/// What a rule may say: its own keys, then those of all methods.
fn known_keys() -> &'static [&'static str] {
    static ALL: LazyLock<Vec<&'static str>> =
        LazyLock::new(|| [SELECTOR.as_slice(), methods::all_keys()].concat());
    &ALL
}

/// Reads one rule. The outer error is that of the text, with its place; the inner one says what is wrong
/// with the rule and what is expected.
pub(super) fn read(value: Spanned<DeValue<'_>>) -> Result<Result<Rule, String>, Error> {
    let span = value.span();
    let DeValue::Table(table) = value.get_ref().clone() else {
        return Err(not_a_table(value));
    };
    KnownKeys::deserialize(ValueDeserializer::from(value))?;
    let (of_selector, of_method): (DeTable<'_>, DeTable<'_>) = table
        .into_iter()
        .partition(|(key, _)| SELECTOR.contains(&key.get_ref().as_ref()));
    let deserializer =
        |table| ValueDeserializer::from(Spanned::new(span.clone(), DeValue::Table(table)));
    let selector = Selector::deserialize(deserializer(of_selector))?;
    let layers = selector.layers.iter().map(|text| text.parse()).collect();
    let method = match methods::find(selector.method.as_deref().unwrap_or(DEFAULT)) {
        Err(problem) => Err(problem),
        Ok(method) => {
            let is_foreign = |key: &&str| !(method.keys)().contains(key);
            let mut keys = of_method.keys().map(|key| key.get_ref().as_ref());
            match keys.find(is_foreign) {
                Some(key) => Err(format!("`{key}` has no meaning for `{}`", method.name)),
                None => (method.read)(method.name, deserializer(of_method))?,
            }
        }
    };
    Ok(checked(selector, layers, method))
}

fn checked(
    selector: Selector,
    layers: Result<Vec<super::LayerRange>, String>,
    method: Result<Arc<dyn Method>, String>,
) -> Result<Rule, String> {
    Ok(Rule {
        roles: selector.roles,
        layers: layers?,
        name: selector.name,
        method: method?,
    })
}

/// The error of a rule that is something else.
fn not_a_table(value: Spanned<DeValue<'_>>) -> Error {
    match KnownKeys::deserialize(ValueDeserializer::from(value)) {
        Err(error) => error,
        Ok(_) => Error::custom("a rule is a table"),
    }
}

/// A table whose keys are all known to some method.
struct KnownKeys;

impl<'de> Deserialize<'de> for KnownKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<KnownKeys, D::Error> {
        deserializer.deserialize_map(KnownKeys)
    }
}

impl<'de> Visitor<'de> for KnownKeys {
    type Value = KnownKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rule, which is a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KnownKeys, A::Error> {
        while map.next_key::<KnownKey>()?.is_some() {
            map.next_value::<IgnoredAny>()?;
        }
        Ok(KnownKeys)
    }
}

struct KnownKey;

impl<'de> Deserialize<'de> for KnownKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<KnownKey, D::Error> {
        let key = String::deserialize(deserializer)?;
        if known_keys().contains(&key.as_str()) {
            return Ok(KnownKey);
        }
        Err(D::Error::unknown_field(&key, known_keys()))
    }
}

#[cfg(test)]
mod tests {
    use crate::Recipe;

    fn error(rule: &str) -> String {
        let text = format!("type = \"f16\"\n[[rule]]\n{rule}\n");
        text.parse::<Recipe>().unwrap_err().to_string()
    }

    #[test]
    fn a_key_of_another_method_is_named_with_its_rule() {
        assert_eq!(
            error("method = \"wanda\"\nsparsity = 0.5\nkeep = 0.5"),
            "rule 1 of the recipe: `keep` has no meaning for `wanda`"
        );
        assert_eq!(
            error("method = \"tensor-train\"\nover = \"heads\"\nmodes = 3\nkeep = 0.5"),
            "rule 1 of the recipe: `modes` has no meaning for `tensor-train`"
        );
        assert_eq!(
            error("method = \"cp\"\nstack = 3\nkeep = 0.5"),
            "rule 1 of the recipe: `stack` has no meaning for `cp` without `over = \"layers\"`"
        );
        assert_eq!(
            error("rank = 4\ntype = \"f16\""),
            "rule 1 of the recipe: `rank` has no meaning for `quantize`"
        );
    }

    #[test]
    fn what_no_method_knows_and_what_is_of_a_wrong_kind_is_shown_in_its_line() {
        let unknown = error("method = \"svd\"\nranck = 3");
        assert!(unknown.contains("line 4, column 1"), "{unknown}");
        assert!(unknown.contains("unknown field `ranck`"), "{unknown}");
        let kind = error("method = \"svd\"\nkeep = \"half\"");
        assert!(kind.contains("line 4, column 8"), "{kind}");
        assert!(kind.contains("keep = \"half\""), "{kind}");
        assert!(kind.contains("invalid type: string \"half\""), "{kind}");
    }

    #[test]
    fn a_rule_is_a_table() {
        for text in ["rule = 3", "rule = [3]"] {
            let text = format!("type = \"f16\"\n{text}");
            let error = text.parse::<Recipe>().unwrap_err().to_string();
            assert!(error.contains("invalid type: integer"), "{error}");
        }
    }
}
