//! A Hugging Face folder as a model.

use dwindle_formats::gguf::Metadata;
use serde_json::Value;

use super::config::{Config, bad};
use super::dims::Dims;
use super::families::{self, Constant, Family, Fixed};
use super::rope::Rope;
use super::weights;
use super::{Error, Model, ModelTensor, card, parameters, tokenizer};
use dwindle_checkpoint::Source;
use dwindle_checkpoint::huggingface::HuggingFace;

/// The model in a Hugging Face folder.
///
/// # Errors
/// When the architecture, its configuration, a tensor or the tokenizer is not supported.
pub fn from_huggingface(folder: &HuggingFace) -> Result<Model, Error> {
    let family = family(folder)?;
    let mut config = Config::new(folder.config(), family.defaults)?;
    for key in family.ignored {
        config.remove(key);
    }
    refuse_rerankers(folder, family)?;
    hold(family, &config)?;
    let dims = Dims::new(&config)?;
    let rope = Rope::new(&config, family)?;

    // The shapes of the weights vouch for the dimensions before anything is made by them.
    let (weights, left_out) = weights::assemble(family, &dims, folder.tensors())?;
    if !family.encodes && class(folder).is_some_and(|name| !name.ends_with("Model")) {
        require_output(&config, &weights)?;
    }
    let factors = rope.tensors(dims.head)?;
    let tensors: Vec<ModelTensor> = factors.into_iter().chain(weights).collect();

    let mut metadata = Metadata::new();
    metadata.set("general.architecture", family.architecture);
    metadata.set("general.type", "model");
    card::describe(folder, &tensors, &mut metadata)?;
    let read = parameters::Read {
        family,
        config: &config,
        dims: &dims,
        rope: &rope,
        folder,
    };
    parameters::describe(&read, &mut metadata)?;
    tokenizer::describe(folder, family.tokens, dims.vocabulary as u32, &mut metadata)?;
    for (key, value) in family.always {
        match *value {
            Constant::Switch(value) => metadata.set(*key, value),
            Constant::Count(value) => metadata.set(*key, value),
            Constant::Text(value) => metadata.set(*key, value),
        }
    }
    Ok(Model {
        architecture: family.architecture.to_string(),
        metadata,
        tensors,
        left_out,
        remark: family.remark,
    })
}

/// The model's class in `transformers`. One whose name ends with `Model` has no head.
pub(super) fn class(folder: &HuggingFace) -> Option<&str> {
    let list = folder.config().get("architectures")?;
    list.get(0)?.as_str()
}

pub(super) fn family(folder: &HuggingFace) -> Result<&'static Family, Error> {
    let Some(name) = class(folder) else {
        return Err(Error::NoArchitecture {
            supported: families::supported(),
        });
    };
    if let Some(why) = families::inexpressible(name) {
        let found = name.to_string();
        return Err(Error::Inexpressible { found, why });
    }
    families::find(name, folder.config()).ok_or_else(|| Error::Architecture {
        found: name.to_string(),
        supported: families::supported(),
    })
}

/// Holds the configuration against what llama.cpp's graph takes for granted.
fn hold(family: &Family, config: &Config) -> Result<(), Error> {
    for (key, fixed) in family.fixed {
        let expected = match *fixed {
            Fixed::Null => Value::Null,
            Fixed::False => Value::Bool(false),
            Fixed::True => Value::Bool(true),
            Fixed::Count(count) => Value::from(count),
            Fixed::Text(text) => Value::from(text),
        };
        if let Some(found) = config.get(key).filter(|found| **found != expected) {
            let expected = format!("{expected}, which llama.cpp takes for granted");
            return Err(bad(key, found, &expected));
        }
    }
    Ok(())
}

/// A model that says its output matrix is its own must bring it.
fn require_output(config: &Config, tensors: &[ModelTensor]) -> Result<(), Error> {
    let untied = config.get("tie_word_embeddings") == Some(&Value::Bool(false));
    if untied && !tensors.iter().any(|t| t.name == "output.weight") {
        return Err(Error::MissingTensor {
            tensor: "lm_head.weight".into(),
        });
    }
    Ok(())
}

/// Qwen's rerankers are language models whose output matrix shrinks to two rows.
fn refuse_rerankers(folder: &HuggingFace, family: &Family) -> Result<(), Error> {
    let named = |text: &str| text.to_lowercase().contains("qwen3-reranker");
    let path = folder.config().get("_name_or_path").and_then(Value::as_str);
    if family.architecture == "qwen3" && (named(&folder.id()) || path.is_some_and(named)) {
        return Err(Error::Feature {
            architecture: family.architecture.to_string(),
            found: "a reranker".into(),
            supported: "a language model".into(),
        });
    }
    Ok(())
}
