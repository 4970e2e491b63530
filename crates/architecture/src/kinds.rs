//! What each layer of a model is, where not all are the same.

use serde_json::{Map, Value};

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Attention, with a feed-forward layer behind it or without.
    Attending,
    /// A convolution, or a state space, which have no heads of keys.
    Keyless,
    /// A feed-forward layer alone.
    Feeding,
    /// The same, of experts.
    Routed,
}

/// What each layer is, where the configuration has a kind for each of layers that are one thing only.
pub(super) fn kinds_of(config: &Map<String, Value>) -> Option<Vec<Kind>> {
    if let Some(letters) = config
        .get("hybrid_override_pattern")
        .and_then(Value::as_str)
    {
        let kind = |letter| match letter {
            'M' => Some(Kind::Keyless),
            '*' => Some(Kind::Attending),
            '-' => Some(Kind::Feeding),
            'E' => Some(Kind::Routed),
            _ => None,
        };
        return letters.chars().map(kind).collect();
    }
    let names = config.get("layers_block_type")?.as_array()?;
    let kind = |name: &Value| match name.as_str()? {
        "mamba" | "linear_attention" => Some(Kind::Keyless),
        "attention" | "full_attention" => Some(Kind::Attending),
        "mlp" => Some(Kind::Feeding),
        "moe" => Some(Kind::Routed),
        _ => None,
    };
    names.iter().map(kind).collect()
}
