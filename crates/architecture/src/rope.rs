//! Reads rotary embeddings from `rope_parameters`, or from the older `rope_scaling` and
//! `rope_theta`.

use dwindle_formats::gguf::Metadata;
use serde_json::{Map, Value};

use super::config::{Config, as_count, as_number, bad};
use super::families::Family;
use super::{Assembly, Error, ModelTensor};

const DEFAULT_THETA: f64 = 10_000.0;

/// Rotary parameters in the form of current configurations.
#[derive(Debug)]
pub(super) struct Rope {
    kind: String,
    theta: f64,
    /// The longest context before scaling.
    original_context: Option<u32>,
    parameters: Map<String, Value>,
}

impl Rope {
    pub(super) fn new(config: &Config, family: &Family) -> Result<Rope, Error> {
        let given = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .find_map(|key| {
                let value = config.get(key)?;
                (value != &Value::Object(Map::new())).then_some((key, value))
            });
        let mut parameters = match given {
            None => Map::new(),
            Some((_, Value::Object(map))) => map.clone(),
            Some((key, other)) => return Err(bad(key, other, "an object")),
        };
        parameters.retain(|_, value| !value.is_null());
        let unsupported = |found: String| Error::Feature {
            architecture: family.architecture.to_string(),
            found,
            supported: supported(family).to_string(),
        };
        if let Some(Value::Object(_)) = parameters.get("full_attention") {
            return Err(unsupported("rotary scaling by kind of layer".into()));
        }
        let kind = match parameters.get("rope_type").or(parameters.get("type")) {
            None => "default".to_string(),
            Some(Value::String(kind)) => kind.clone(),
            Some(other) => return Err(bad("rope_type", other, "a name")),
        };
        match kind.as_str() {
            "default" | "linear" | "yarn" | "dynamic" => {}
            "llama3" if family.rope_freqs => {}
            other => return Err(unsupported(format!("rotary scaling `{other}`"))),
        }
        let theta = match parameters.get("rope_theta") {
            Some(theta) => as_number("rope_theta", theta)?,
            None => config.number(&["rope_theta"])?.unwrap_or(DEFAULT_THETA),
        };
        let original = "original_max_position_embeddings";
        let original_context = match (config.count(&[original])?, parameters.get(original)) {
            (Some(context), _) => Some(context),
            (None, Some(context)) => Some(as_count(original, context)?),
            (None, None) => config.count(&["max_position_embeddings"])?,
        };
        Ok(Rope {
            kind,
            theta,
            original_context,
            parameters,
        })
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
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
        metadata.set(key("freq_base"), self.theta as f32);
        Ok(())
    }

    /// The factors that Llama 3 divides its rotary frequencies by, as a tensor.
    pub(super) fn factors(&self, dimensions: u32) -> Result<Option<ModelTensor>, Error> {
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

fn supported(family: &Family) -> &'static str {
    if family.rope_freqs {
        "`default`, `linear`, `dynamic`, `yarn` and `llama3` rotary scaling for the whole model"
    } else {
        "`default`, `linear`, `dynamic` and `yarn` rotary scaling for the whole model"
    }
}
