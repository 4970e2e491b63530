//! Refuses models that are split over several GGUF files: one file alone is not a model.

use std::path::Path;

use super::{GgufError, Metadata};

/// The metadata key with the number of files.
const COUNT: &str = "split.count";

/// The metadata key with a file's own number, from 0.
const NUMBER: &str = "split.no";

/// Refuses one file of several, by what its metadata says.
pub(super) fn refuse_metadata(metadata: &Metadata) -> Result<(), GgufError> {
    let number = |key: &str| metadata.get(key).and_then(|v| v.as_u64());
    match number(COUNT) {
        Some(count) if count > 1 => Err(GgufError::Split {
            number: number(NUMBER).unwrap_or(0).saturating_add(1),
            count,
        }),
        _ => Ok(()),
    }
}

/// Refuses one file of several by its name, such as `model-00001-of-00003.gguf`: other programs
/// than llama.cpp's may leave the numbers out of the metadata.
///
/// # Errors
/// [`GgufError::Split`].
pub fn refuse_split(path: &Path) -> Result<(), GgufError> {
    match numbers(path) {
        Some((number, count)) if count > 1 => Err(GgufError::Split { number, count }),
        _ => Ok(()),
    }
}

/// The number and the count in a name that llama.cpp gives.
fn numbers(path: &Path) -> Option<(u64, u64)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (head, count) = stem.rsplit_once("-of-")?;
    let (_, number) = head.rsplit_once('-')?;
    let parse = |digits: &str| {
        let is_number = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten()
    };
    Some((parse(number)?, parse(count)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_are_recognised() {
        let of = |name: &str| numbers(Path::new(name));
        assert_eq!(of("a/m-00002-of-00003.gguf"), Some((2, 3)));
        assert_eq!(of("m-00001-of-00001.gguf"), Some((1, 1)));
        for whole in [
            "m.gguf",
            "m-of-00003.gguf",
            "m-1-of-3.gguf",
            "m-00001-of-00003.safetensors",
        ] {
            assert_eq!(of(whole), None, "{whole}");
        }
        assert!(refuse_split(Path::new("m-00001-of-00001.gguf")).is_ok());
        assert!(refuse_split(Path::new("m-00002-of-00003.gguf")).is_err());
    }
}
