//! Words that several methods' keys share, and what they mean.

use dwindle_formats::gguf::TensorType;
use dwindle_method::sparsity::Pattern;
use serde::Deserialize;

/// A number, a fraction of the row length such as `"1/32"`, or `"auto"`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RankWish {
    Number(u64),
    Word(String),
}

/// How the rank of two factors is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rank {
    /// This many.
    Fixed(u64),
    /// As many as keep this fraction of the tensor's parameters, factors counted.
    Keep(f64),
    /// As few as hold this fraction of the squared singular values' sum.
    Energy(f64),
    /// This part of the row length.
    OfRow(f64),
}

/// Reads `type`; `None` is the source's.
pub(super) fn element_type(name: Option<&str>) -> Result<Option<TensorType>, String> {
    match name {
        None | Some("source") => Ok(None),
        Some(name) => Ok(Some(name.parse::<TensorType>().map_err(|e| e.to_string())?)),
    }
}

/// Reads `type` of factors, which are Q8_0 where a rule does not say.
pub(super) fn factor_type(name: Option<&str>) -> Result<TensorType, String> {
    Ok(element_type(name)?.unwrap_or(TensorType::Q8_0))
}

/// Reads the one of `rank`, `keep` and `energy` that is given.
pub(super) fn one_rank(
    rank: Option<&RankWish>,
    keep: Option<f64>,
    energy: Option<f64>,
) -> Result<Rank, String> {
    match (rank, keep, energy) {
        (Some(RankWish::Word(word)), keep, energy) => match (part_of_one(word), keep, energy) {
            (Some(part), None, None) => Ok(Rank::OfRow(part)),
            _ => Err(format!(
                "`rank` is `{word}`, expected a number, a part of the row length such as `1/32`, or \
                 with `svd` and `keep` `auto`"
            )),
        },
        (Some(RankWish::Number(0)), None, None) => Err("`rank` is 0, expected at least 1".into()),
        (Some(RankWish::Number(rank)), None, None) => Ok(Rank::Fixed(*rank)),
        (None, Some(keep), None) => Ok(Rank::Keep(fraction("keep", keep)?)),
        (None, None, Some(energy)) => Ok(Rank::Energy(fraction("energy", energy)?)),
        _ => Err("it needs exactly one of `rank`, `keep` and `energy`".into()),
    }
}

/// Reads `sparsity = 0.5`, the share of zeros, or `pattern = "2:4"`: two of four stay.
pub(super) fn zeros(
    name: &str,
    sparsity: Option<f64>,
    pattern: Option<&str>,
) -> Result<Pattern, String> {
    match (sparsity, pattern) {
        (None, None) => Err(format!(
            "`{name}` needs `sparsity = 0.5` or `pattern = \"2:4\"`"
        )),
        (Some(s), None) if (0.0..=1.0).contains(&s) => Ok(Pattern::Unstructured(s)),
        (Some(s), None) => Err(format!(
            "`sparsity` is {s}, expected a fraction from 0 to 1"
        )),
        (None, Some(text)) => {
            let parsed = text.split_once(':').and_then(|(keep, group)| {
                let (keep, group) = (keep.parse().ok()?, group.parse().ok()?);
                (keep <= group && group > 0).then_some(Pattern::Groups { keep, group })
            });
            parsed.ok_or_else(|| format!("`pattern` is `{text}`, expected the form `2:4`"))
        }
        (Some(_), Some(_)) => Err("give `sparsity` or `pattern`, not both".into()),
    }
}

/// A fraction above zero.
pub(super) fn fraction(key: &str, f: f64) -> Result<f64, String> {
    if f > 0.0 && f <= 1.0 {
        return Ok(f);
    }
    Err(format!(
        "`{key}` is {f}, expected a fraction above 0 and up to 1"
    ))
}

/// Reads `1/32`.
fn part_of_one(text: &str) -> Option<f64> {
    let (part, whole) = text.split_once('/')?;
    let (part, whole): (u32, u32) = (part.trim().parse().ok()?, whole.trim().parse().ok()?);
    (part > 0 && part <= whole).then(|| f64::from(part) / f64::from(whole))
}
