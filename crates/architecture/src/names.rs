//! Parses the name of a model (`Qwen/Qwen3-0.6B-Instruct`) and labels its size, by the rules of
//! llama.cpp's converter.

use std::sync::LazyLock;

use regex::Regex;

/// The parts of a model's name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct NameParts {
    pub(super) full_name: Option<String>,
    pub(super) organization: Option<String>,
    pub(super) basename: Option<String>,
    pub(super) finetune: Option<String>,
    pub(super) version: Option<String>,
    pub(super) size_label: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Basename,
    SizeLabel,
    Finetune,
    Version,
    Type,
}

struct Patterns {
    version: Regex,
    quantization: Regex,
    size: Regex,
    finetune: Regex,
    untitled: Regex,
}

/// The patterns are constants, which the tests compile.
static PATTERNS: LazyLock<Option<Patterns>> = LazyLock::new(|| {
    Some(Patterns {
        version: Regex::new(r"(?i)^(v|iter)?\d+([.]\d+)*$").ok()?,
        quantization: Regex::new(r"(?i)^(i?q\d(_\w)*|b?fp?(16|32))$").ok()?,
        size: Regex::new(
            r"(?i)^((([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl))$",
        )
        .ok()?,
        finetune: Regex::new(r"(?i)^(chat|instruct|vision|lora)$").ok()?,
        untitled: Regex::new(r"^(v\d+(?:\.\d+)*|\d.*)$").ok()?,
    })
});

/// Takes a name apart. `parameters` is the model's size, against which numbers in the name are
/// held: a `128k` in the name of a small model is a context length.
pub(super) fn take_apart(id: &str, parameters: u64) -> NameParts {
    let (Some(patterns), false) = (PATTERNS.as_ref(), id.contains(' ')) else {
        return NameParts {
            full_name: Some(id.to_string()),
            ..NameParts::default()
        };
    };
    let (organization, full_name) = match id.split_once('/') {
        Some((org, name)) => (Some(org).filter(|org| !org.starts_with('.')), name),
        None => (None, id),
    };
    let mut parts: Vec<(String, Vec<Kind>)> = full_name
        .split('-')
        .filter(|part| !part.is_empty())
        .map(|part| (part.to_string(), Vec::new()))
        .collect();
    for (i, part) in parts.iter_mut().enumerate() {
        classify(patterns, part, i == 0, parameters);
    }
    drop_word_sizes(&mut parts);
    mark_basename(&mut parts);

    let join = |wanted: &dyn Fn(&[Kind]) -> bool, unique: bool| {
        let mut chosen: Vec<&str> = Vec::new();
        for (part, kinds) in &parts {
            if wanted(kinds) && !(unique && chosen.contains(&part.as_str())) {
                chosen.push(part);
            }
        }
        (!chosen.is_empty()).then(|| chosen.join("-"))
    };
    let basename = join(&|k| k.contains(&Kind::Basename), false);
    let size_label = join(&|k| k.contains(&Kind::SizeLabel), true);
    let finetune = join(&|k| k.contains(&Kind::Finetune), false);
    let version = join(
        &|k| k.contains(&Kind::Version) && !k.contains(&Kind::Basename),
        false,
    );
    let is_known = size_label.is_some() || finetune.is_some() || version.is_some();
    NameParts {
        full_name: Some(full_name.to_string()),
        organization: organization.map(str::to_string),
        basename: basename.filter(|_| is_known),
        finetune,
        version,
        size_label,
    }
}

fn classify(patterns: &Patterns, part: &mut (String, Vec<Kind>), first: bool, parameters: u64) {
    let (text, kinds) = part;
    if patterns.version.is_match(text) {
        kinds.push(Kind::Version);
    } else if patterns.quantization.is_match(text) {
        kinds.push(Kind::Type);
        *text = text.to_uppercase();
    } else if !first && patterns.size.is_match(text) {
        let (label, is_size) = size_part(text, parameters);
        *text = label;
        kinds.push(if is_size {
            Kind::SizeLabel
        } else {
            Kind::Finetune
        });
    } else if !first && patterns.finetune.is_match(text) {
        kinds.push(Kind::Finetune);
    }
}

/// A size in its usual spelling, and whether it can be that of a model with so many parameters.
fn size_part(text: &str, parameters: u64) -> (String, bool) {
    let mut chars: Vec<char> = text.replace('_', ".").chars().collect();
    let n = chars.len();
    // `7b1` is 7.1B.
    if n >= 2 && chars[n - 1].is_numeric() {
        let (unit, digit) = (chars[n - 2], chars[n - 1]);
        chars.truncate(n - 2);
        chars.extend(['.', digit, unit]);
    }
    let n = chars.len();
    if n > 1 && chars[n - 2].is_numeric() && "kmbt".contains(chars[n - 1]) {
        chars[n - 1] = chars[n - 1].to_ascii_uppercase();
    }
    let label: String = chars.iter().collect();
    let unit = chars.last().copied().unwrap_or(' ');
    let number: String = chars[..chars.len().saturating_sub(1)].iter().collect();
    // A unit that is none of these counts as a thousandth, as in the converter.
    let exponent = " KMBT".find(unit).map_or(-1, |e| e as i32);
    if let (Ok(number), true) = (number.parse::<f64>(), parameters != 0) {
        let claimed = number * 1000f64.powi(exponent);
        if (claimed - parameters as f64).abs() > (7 * u128::from(parameters) / 8) as f64 {
            let lower = unit.to_lowercase().to_string();
            return (number_with(&label, &lower), false);
        }
    }
    (label, true)
}

fn number_with(label: &str, unit: &str) -> String {
    let mut text = label.to_string();
    text.pop();
    text + unit
}

/// `small` counts for nothing beside `7B`.
fn drop_word_sizes(parts: &mut [(String, Vec<Kind>)]) {
    let is_size = |kinds: &[Kind]| kinds.contains(&Kind::SizeLabel);
    let numbered = parts
        .iter()
        .any(|(text, kinds)| is_size(kinds) && text.chars().any(char::is_numeric));
    if !numbered {
        return;
    }
    for (text, kinds) in parts {
        if is_size(kinds) && text.chars().all(char::is_alphabetic) {
            kinds.retain(|k| *k != Kind::SizeLabel);
        }
    }
}

fn mark_basename(parts: &mut [(String, Vec<Kind>)]) {
    let mut at_start = true;
    for (text, kinds) in parts.iter_mut() {
        let word = kinds.is_empty() && text.starts_with(char::is_alphabetic);
        if at_start && (word || kinds.contains(&Kind::Version)) {
            kinds.push(Kind::Basename);
        } else {
            at_start = false;
            if kinds.is_empty() {
                kinds.push(Kind::Finetune);
            }
        }
    }
    for (_, kinds) in parts.iter_mut().rev() {
        if !(kinds.contains(&Kind::Basename) && kinds.len() > 1) {
            break;
        }
        kinds.retain(|k| *k != Kind::Basename);
    }
}

/// A name as a title: words in lower case are capitalised, acronyms and versions stay.
pub(super) fn title(name: &str) -> String {
    let untitled = |word: &str| PATTERNS.as_ref().is_some_and(|p| p.untitled.is_match(word));
    name.replace('-', " ")
        .split_whitespace()
        .map(|word| {
            if is_lower(word) && !untitled(word) {
                capitalise(word)
            } else {
                word.to_string()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase()
}

fn is_lower(word: &str) -> bool {
    word.chars().any(is_cased) && !word.chars().any(char::is_uppercase)
}

/// Upper case wherever a run of letters begins, after a digit too.
fn capitalise(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut inside = false;
    for c in word.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = is_cased(c);
    }
    out
}

/// A count of parameters with two digits (`135M`, `1.7B`).
pub(super) fn size_label(parameters: u64) -> String {
    let count = parameters as f64;
    let (scaled, unit) = if count > 1e12 {
        (count * 1e-12, 'T')
    } else if count > 1e9 {
        (count * 1e-9, 'B')
    } else if count > 1e6 {
        (count * 1e-6, 'M')
    } else {
        (count * 1e-3, 'K')
    };
    let rounded = scaled.round_ties_even().to_string();
    let digits = rounded.trim_start_matches('0').len();
    format!(
        "{scaled:.precision$}{unit}",
        precision = 2usize.saturating_sub(digits)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        assert_eq!(size_label(134_515_008), "135M");
        assert_eq!(size_label(1_711_376_384), "1.7B");
        assert_eq!(size_label(260_032), "260K");
        assert_eq!(size_label(8_030_261_248), "8.0B");
        assert_eq!(size_label(400), "0.40K");
    }

    #[test]
    fn titles_keep_acronyms_and_versions() {
        assert_eq!(title("stories260k"), "Stories260K");
        assert_eq!(title("Qwen3-0.6B-instruct"), "Qwen3 0.6B Instruct");
        assert_eq!(title("my_model-v1.5"), "My_Model v1.5");
    }

    #[test]
    fn names_come_apart() {
        let parts = take_apart("Qwen/Qwen2.5-0.5B-Instruct", 494_000_000);
        assert_eq!(parts.organization.as_deref(), Some("Qwen"));
        assert_eq!(parts.basename.as_deref(), Some("Qwen2.5"));
        assert_eq!(parts.size_label.as_deref(), Some("0.5B"));
        assert_eq!(parts.finetune.as_deref(), Some("Instruct"));

        let parts = take_apart("Phi-3-mini-128k-instruct", 3_800_000_000);
        assert_eq!(parts.basename.as_deref(), Some("Phi-3"));
        assert_eq!(parts.size_label.as_deref(), Some("mini"));
        assert_eq!(parts.finetune.as_deref(), Some("128k-instruct"));

        assert_eq!(take_apart("smollm2", 0).basename, None);
        assert_eq!(
            take_apart("a model of mine", 0).full_name.as_deref(),
            Some("a model of mine")
        );
    }
}
