//! The numbers of a configuration that shapes follow from.

use serde_json::Value;

use super::Error;
use super::config::{Config, bad};
use super::families::Dim;
use super::kinds::{Kind, kinds_of};
use super::latent::Latent;
use super::linear::Linear;
use super::state_space::StateSpace;

/// The numbers that tensors' dimensions are checked against.
pub(super) struct Dims {
    pub(super) vocabulary: u64,
    pub(super) hidden: u64,
    pub(super) feed_forward: u64,
    pub(super) expert_feed_forward: u64,
    pub(super) layers: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head: u64,
    pub(super) experts: u64,
    pub(super) shared_feed_forward: u64,
    pub(super) positions: u64,
    pub(super) token_types: u64,
    /// Positions that lead and stand for nothing.
    pub(super) padding: u64,
    /// Leading layers, which are without experts.
    pub(super) leading: u64,
    /// Layers behind the others that predict further ahead.
    pub(super) ahead: u64,
    /// Linear attention, if some layers have it.
    pub(super) linear: Option<Linear>,
    /// Attention through a latent vector.
    pub(super) latent: Option<Latent>,
    /// Tokens that a convolution of few reaches over.
    reach: u64,
    /// State spaces, if some layers may have them.
    pub(super) state_space: Option<StateSpace>,
    /// What each layer is, where not all attend.
    pub(super) kinds: Vec<Kind>,
    /// What experts read and write.
    expert_hidden: u64,
}

impl Dims {
    pub(super) fn new(config: &Config) -> Result<Dims, Error> {
        let heads = config.need(&["num_attention_heads"])?;
        let head = match config.count(&["head_dim"])? {
            Some(dim) => dim,
            None => config.hidden_per_head()?,
        };
        let feed_forward = config.need(&["intermediate_size"])?;
        let experts = config.count(&["num_local_experts", "num_experts", "n_routed_experts"])?;
        let some = |keys: &[&str]| Ok::<_, Error>(config.count(keys)?.unwrap_or(0).into());
        let of_expert = config.count(&["moe_intermediate_size"])?;
        let expert_feed_forward = of_expert.unwrap_or(feed_forward).into();
        Ok(Dims {
            vocabulary: config.need(&["vocab_size"])?.into(),
            hidden: config.need(&["hidden_size"])?.into(),
            feed_forward: feed_forward.into(),
            expert_feed_forward,
            layers: layers(config)?.into(),
            heads: heads.into(),
            kv_heads: config
                .count(&["num_key_value_heads"])?
                .filter(|n| *n > 0)
                .unwrap_or(heads)
                .into(),
            head: head.into(),
            experts: experts.unwrap_or(0).into(),
            shared_feed_forward: match (
                config.count(&["moe_shared_expert_intermediate_size"])?,
                config.count(&["n_shared_experts"])?,
            ) {
                (Some(width), _) => width.into(),
                (None, Some(shared)) => u64::from(shared) * expert_feed_forward,
                (None, None) => some(&[
                    "shared_expert_intermediate_size",
                    "shared_intermediate_size",
                ])?,
            },
            positions: some(&["max_position_embeddings"])?,
            token_types: some(&["type_vocab_size"])?,
            padding: config
                .count(&["pad_token_id"])?
                .map_or(0, |id| 1 + u64::from(id)),
            leading: some(&["first_k_dense_replace"])?,
            ahead: some(&["num_nextn_predict_layers"])?,
            linear: Linear::of(config)?,
            latent: Latent::of(config)?,
            reach: some(&["conv_L_cache"])?,
            state_space: StateSpace::of(config)?,
            kinds: kinds(config, layers(config)?)?,
            expert_hidden: match config.count(&["moe_latent_size"])? {
                Some(latent) => latent,
                None => config.need(&["hidden_size"])?,
            }
            .into(),
        })
    }

    /// What a layer is.
    pub(super) fn kind(&self, layer: u64) -> Kind {
        let kind = self.kinds.get(layer as usize).copied();
        kind.unwrap_or(Kind::Attending)
    }

    pub(super) fn value(&self, dim: Dim) -> u64 {
        // Each factor is below 2^32; of the sums of three, a checkpoint has far less.
        match dim {
            Dim::Vocabulary => self.vocabulary,
            Dim::Hidden => self.hidden,
            Dim::FeedForward => self.feed_forward,
            Dim::Query => self.heads * self.head,
            Dim::KeyValue => self.kv_heads * self.head,
            Dim::QueryKeyValue => (self.heads + 2 * self.kv_heads) * self.head,
            Dim::TwiceFeedForward => 2 * self.feed_forward,
            Dim::Positions => self.positions,
            Dim::TokenTypes => self.token_types,
            Dim::Head => self.head,
            Dim::HeadCount => self.heads,
            Dim::Experts => self.experts,
            Dim::ExpertFeedForward => self.expert_feed_forward,
            Dim::ExpertHidden => self.expert_hidden,
            Dim::SharedFeedForward => self.shared_feed_forward,
            Dim::Latent(dim) => self.latent.as_ref().map_or(0, |latent| latent.value(dim)),
            Dim::State(dim) => self
                .state_space
                .as_ref()
                .map_or(0, |space| space.value(dim)),
            Dim::TriplyHidden => 3 * self.hidden,
            Dim::Reach => self.reach,
            Dim::QueryAndGate => (2 * self.heads).saturating_mul(self.head),
            Dim::Linear(dim) => self.linear.as_ref().map_or(0, |linear| linear.value(dim)),
            Dim::One => 1,
        }
    }
}

/// The number of layers, which a list of their kinds may say alone.
fn layers(config: &Config) -> Result<u32, Error> {
    match (
        config.count(&["num_hidden_layers"])?,
        kinds_of(config.map()),
    ) {
        (None, Some(kinds)) if !kinds.is_empty() => Ok(kinds.len() as u32),
        _ => config.need(&["num_hidden_layers"]),
    }
}

/// What each layer is; nothing where all attend.
fn kinds(config: &Config, layers: u32) -> Result<Vec<Kind>, Error> {
    let state_spaces = config.get("mamba_n_heads").is_some();
    let of = |kind: &Value| match kind.as_str() {
        Some("conv" | "mamba") => Kind::Keyless,
        Some("linear_attention") if state_spaces => Kind::Keyless,
        _ => Kind::Attending,
    };
    let named = config.get("layer_types").and_then(Value::as_array);
    let named = named.map(|kinds| kinds.iter().map(of).collect::<Vec<_>>());
    let pattern = "hybrid_override_pattern";
    let own = kinds_of(config.map());
    if let (Some(found), None) = (config.get(pattern), &own) {
        return Err(bad(pattern, found, "letters `M`, `*`, `-` and `E`"));
    }
    let key = match config.get(pattern) {
        Some(_) => pattern,
        None => "layers_block_type",
    };
    let (key, kinds) = match (own, named) {
        (Some(kinds), _) => (key, kinds),
        (None, Some(kinds)) => ("layer_types", kinds),
        (None, None) => return attending(config, layers),
    };
    let is_mixed = kinds.contains(&Kind::Feeding) && kinds.contains(&Kind::Routed);
    if is_mixed || (kinds.iter().any(|k| *k != Kind::Attending) && kinds.len() != layers as usize) {
        let found = config.get(key).cloned().unwrap_or_default();
        let expected = match is_mixed {
            true => "feed-forward layers with experts or without, but not both".to_string(),
            false => format!("one kind for each of {layers} layers"),
        };
        return Err(bad(key, &found, &expected));
    }
    Ok(kinds)
}

/// The same of older configurations, which list the layers that attend.
fn attending(config: &Config, layers: u32) -> Result<Vec<Kind>, Error> {
    let attending = config.get("full_attn_idxs").and_then(Value::as_array);
    let Some(attending) = attending else {
        return Ok(Vec::new());
    };
    // So many at once are more than llama.cpp has layers.
    let layers = u64::from(layers.min(1 << 16));
    let kind = |n: u64| match attending.iter().any(|at| at.as_u64() == Some(n)) {
        true => Kind::Attending,
        false => Kind::Keyless,
    };
    Ok((0..layers).map(kind).collect())
}
