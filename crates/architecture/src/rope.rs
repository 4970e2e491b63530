//! Reads rotary embeddings from `rope_parameters`, or from the older `rope_scaling` and
//! `rope_theta`.

use dwindle_formats::gguf::Metadata;
use serde_json::{Map, Value};

use super::config::{Config, as_count, as_number, bad};
use super::families::{Family, Parameter, Rotary};
use super::{Assembly, Error, ModelTensor};

const DEFAULT_THETA: f64 = 10_000.0;

/// Keys of the base of frequencies outside of `rope_parameters`; the first that is there counts.
const THETAS: [&str; 5] = [
    "global_rope_theta",
    "rope_global_theta",
    "rope_theta_global",
    "rope_theta",
    "rotary_emb_base",
];

/// The same for layers that look at a window.
const THETAS_IN_WINDOWS: [&str; 5] = [
    "local_rope_theta",
    "rope_local_theta",
    "rope_theta_local",
    "swa_rope_theta",
    "rope_local_base_freq",
];

/// Keys of the part of a head that turns.
const PARTS: [&str; 4] = [
    "partial_rotary_factor",
    "rotary_pct",
    "rope_pct",
    "rope_percent",
];

/// Rotary parameters in the form of current configurations.
#[derive(Debug)]
pub(super) struct Rope {
    rotary: Rotary,
    kind: String,
    theta: f64,
    /// That of layers which look at a window, where it is another.
    theta_in_windows: Option<f64>,
    /// The part of a head that turns.
    part: Option<f64>,
    /// The longest context.
    context: Option<u32>,
    /// The longest context before scaling.
    original_context: Option<u32>,
    parameters: Map<String, Value>,
}

impl Rope {
    pub(super) fn new(config: &Config, family: &Family) -> Result<Rope, Error> {
        let mut parameters = given(config)?;
        let unsupported = |found: String| Error::Feature {
            architecture: family.architecture.to_string(),
            found,
            supported: supported(family).to_string(),
        };
        let mut theta_in_windows = config.number(&THETAS_IN_WINDOWS)?;
        if let Some((whole, in_windows)) = by_kind(&parameters) {
            let has_windows = |p: &Parameter| matches!(p, Parameter::Window(_));
            if !family.parameters.iter().any(has_windows) {
                return Err(unsupported("rotary scaling by kind of layer".into()));
            }
            if let Some(theta) = in_windows {
                theta_in_windows = Some(as_number("rope_theta", theta)?);
            }
            parameters = whole.clone();
        }
        parameters.retain(|_, value| !value.is_null());
        let kind = match parameters.get("rope_type").or(parameters.get("type")) {
            None => "default".to_string(),
            Some(Value::String(kind)) => kind.clone(),
            Some(other) => return Err(bad("rope_type", other, "a name")),
        };
        match kind.as_str() {
            "default" | "linear" | "yarn" | "dynamic" => {}
            "mrope" if family.parameters.contains(&Parameter::Sections) => {}
            "longrope" | "su" if family.rotary == Rotary::LongRope => {}
            "llama3" if family.rotary == Rotary::Llama3 => {}
            other => return Err(unsupported(format!("rotary scaling `{other}`"))),
        }
        let theta = match parameters.get("rope_theta") {
            Some(theta) => as_number("rope_theta", theta)?,
            None => config.number(&THETAS)?.unwrap_or(DEFAULT_THETA),
        };
        let part = match parameters.get("partial_rotary_factor") {
            Some(part) => Some(as_number("partial_rotary_factor", part)?),
            None => config.number(&PARTS)?,
        };
        let original = "original_max_position_embeddings";
        let original_context = match (config.count(&[original])?, parameters.get(original)) {
            (Some(context), _) => Some(context),
            (None, Some(context)) => Some(as_count(original, context)?),
            (None, None) => config.count(&["max_position_embeddings"])?,
        };
        Ok(Rope {
            rotary: family.rotary,
            kind,
            theta,
            theta_in_windows,
            part,
            context: config.count(&["max_position_embeddings"])?,
            original_context,
            parameters,
        })
    }

    /// A number of the rotary parameters.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.parameters
            .get(key)
            .map(|v| as_number(key, v))
            .transpose()
    }

    /// Writes the metadata.
    pub(super) fn describe(
        &self,
        architecture: &str,
        metadata: &mut Metadata,
    ) -> Result<(), Error> {
        if self.rotary == Rotary::None {
            return Ok(());
        }
        let key = |name: &str| format!("{architecture}.rope.{name}");
        let factor = self.number("factor")?;
        if let ("linear" | "yarn", Some(factor)) = (self.kind.as_str(), factor) {
            metadata.set(key("scaling.type"), self.kind.as_str());
            metadata.set(key("scaling.factor"), factor as f32);
        }
        if self.kind == "yarn" && factor.is_some() {
            if let Some(context) = self.original_context {
                metadata.set(key("scaling.original_context_length"), context);
            }
            let attention = match self.number("attention_factor")? {
                None => self.number("attn_factor")?,
                some => some,
            };
            for (name, value) in [
                ("yarn_ext_factor", self.number("extrapolation_factor")?),
                ("yarn_attn_factor", attention),
                ("yarn_beta_fast", self.number("beta_fast")?),
                ("yarn_beta_slow", self.number("beta_slow")?),
            ] {
                if let Some(value) = value {
                    metadata.set(key(&format!("scaling.{name}")), value as f32);
                }
            }
        }
        if self.rotary == Rotary::LongRope {
            if let Some(context) = self.original_context {
                metadata.set(key("scaling.original_context_length"), context);
            }
            if let Some(factor) = self.attention_factor() {
                metadata.set(key("scaling.attn_factor"), factor as f32);
            }
        }
        metadata.set(key("freq_base"), self.theta as f32);
        if let Some(theta) = self.theta_in_windows {
            metadata.set(key("freq_base_swa"), theta as f32);
        }
        Ok(())
    }

    /// How many elements of a head turn.
    pub(super) fn dimensions(&self, head: u64) -> u32 {
        let part = self.part.unwrap_or(1.0).clamp(0.0, 1.0);
        (part * head as f64) as u32
    }

    /// How many pairs of a head turn by time, height, width and what else there is.
    pub(super) fn sections(&self) -> Result<Option<Vec<i32>>, Error> {
        let Some(found) = self.parameters.get("mrope_section") else {
            return Ok(None);
        };
        let list = found.as_array().map(Vec::as_slice).unwrap_or_default();
        let numbers = list.iter().map(|n| i32::try_from(n.as_i64()?).ok());
        match numbers.collect::<Option<Vec<i32>>>() {
            Some(mut sections) if (1..=4).contains(&sections.len()) => {
                sections.resize(4, 0);
                Ok(Some(sections))
            }
            _ => Err(bad("mrope_section", found, "one to four counts")),
        }
    }

    /// What frequencies are divided by, as tensors.
    pub(super) fn tensors(&self, head: u64) -> Result<Vec<ModelTensor>, Error> {
        if self.rotary == Rotary::LongRope {
            return self.long_and_short(head);
        }
        Ok(self.factors(head as u32)?.into_iter().collect())
    }

    /// Factors for long and for short contexts, where there are such.
    fn long_and_short(&self, head: u64) -> Result<Vec<ModelTensor>, Error> {
        let wanted = self.dimensions(head) as usize / 2;
        let mut made = Vec::new();
        for (key, name) in [
            ("long_factor", "rope_factors_long"),
            ("short_factor", "rope_factors_short"),
        ] {
            let Some(found) = self.parameters.get(key) else {
                continue;
            };
            let list = found.as_array().map(Vec::as_slice).unwrap_or_default();
            let factors: Vec<f32> = list
                .iter()
                .filter_map(|v| Some(v.as_f64()? as f32))
                .collect();
            if factors.len() != wanted || list.len() != wanted {
                return Err(bad(key, found, &format!("{wanted} numbers")));
            }
            made.push(ModelTensor {
                name: format!("{name}.weight"),
                shape: vec![factors.len() as u64],
                assembly: Assembly::of_floats(&factors),
                always_f32: true,
            });
        }
        Ok(made)
    }

    /// What attention is multiplied by in contexts longer than those that the model was made with
    /// (LongRoPE, Ding and others, 2024, or YaRN).
    fn attention_factor(&self) -> Option<f64> {
        self.parameters.get("long_factor")?;
        let original = f64::from(self.original_context?);
        let scale = f64::from(self.context?) / original;
        Some(match self.kind.as_str() {
            _ if scale <= 1.0 => 1.0,
            "yarn" => 0.1 * scale.ln() + 1.0,
            _ => (1.0 + scale.ln() / original.ln()).sqrt(),
        })
    }

    /// The factors that Llama 3 divides its rotary frequencies by, as a tensor.
    fn factors(&self, dimensions: u32) -> Result<Option<ModelTensor>, Error> {
        if self.kind != "llama3" {
            return Ok(None);
        }
        let number = |key, default| -> Result<f32, Error> {
            Ok(self.number(key)?.unwrap_or(default) as f32)
        };
        let factor = number("factor", 8.0)?;
        let low = number("low_freq_factor", 1.0)?;
        let high = number("high_freq_factor", 4.0)?;
        let context = self.original_context.unwrap_or(8192) as f32;
        let (longest, shortest) = (context / low, context / high);
        // In single precision throughout, as the model itself computes them.
        let factors: Vec<f32> = (0..dimensions)
            .step_by(2)
            .map(|i| {
                let exponent = i as f32 / dimensions as f32;
                let frequency = 1.0 / (self.theta.powf(exponent.into()) as f32);
                let wavelength = std::f32::consts::TAU / frequency;
                if wavelength < shortest {
                    1.0
                } else if wavelength > longest {
                    factor
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            })
            .collect();
        Ok(Some(ModelTensor {
            name: "rope_freqs.weight".into(),
            shape: vec![factors.len() as u64],
            assembly: Assembly::of_floats(&factors),
            always_f32: true,
        }))
    }
}

/// The parameters as the configuration has them.
fn given(config: &Config) -> Result<Map<String, Value>, Error> {
    let keys = ["rope_scaling", "rope_parameters"];
    let found = keys.into_iter().find_map(|key| {
        let value = config.get(key)?;
        (value != &Value::Object(Map::new())).then_some((key, value))
    });
    match found {
        None => Ok(Map::new()),
        Some((_, Value::Object(map))) => Ok(map.clone()),
        Some((key, other)) => Err(bad(key, other, "an object")),
    }
}

/// The parameters of layers that see everything, and the base of those that look at a window.
fn by_kind(parameters: &Map<String, Value>) -> Option<(&Map<String, Value>, Option<&Value>)> {
    let whole = parameters.get("full_attention")?.as_object()?;
    let in_windows = parameters.get("sliding_attention");
    Some((whole, in_windows.and_then(|p| p.get("rope_theta"))))
}

fn supported(family: &Family) -> &'static str {
    if family.rotary == Rotary::Llama3 {
        "`default`, `linear`, `dynamic`, `yarn` and `llama3` rotary scaling for the whole model"
    } else {
        "`default`, `linear`, `dynamic` and `yarn` rotary scaling for the whole model"
    }
}
