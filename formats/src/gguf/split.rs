//! Models that are split over several GGUF files, as llama-gguf-split writes them.
//!
//! Names end in `-00001-of-00003.gguf`. Each file has some of the tensors, and says in its metadata which of
//! how many files it is; the first has the model's own metadata.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{GgufError, Header, Metadata};

/// The metadata key with the number of files.
const COUNT: &str = "split.count";

/// The metadata key with a file's own number, from 0.
const NUMBER: &str = "split.no";

/// The metadata key with the number of tensors of all files.
const TENSORS: &str = "split.tensors.count";

/// What the parts of one output of dwindle have in common, and no other's.
const OUTPUT: &str = "dwindle.output";

/// Why files are not the parts of one model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum SplitError {
    #[error(
        "`{}` says that it is {found}, expected part {number} of {count}, as its name says; it is a copy of another file, or was renamed",
        path.display()
    )]
    Number {
        path: PathBuf,
        found: String,
        number: u64,
        count: u64,
    },
    #[error(
        "`{}` is of a model of {found} tensors, expected one of {expected} as `{}` is; they are parts of different models",
        path.display(),
        first.display()
    )]
    Foreign {
        path: PathBuf,
        found: u64,
        first: PathBuf,
        expected: u64,
    },
    #[error(
        "`{}` and `{}` were not written together; get both again",
        path.display(),
        first.display()
    )]
    Output { path: PathBuf, first: PathBuf },
    #[error(
        "tensor `{tensor}` is in `{}` and in `{}`; they are parts of different models",
        first.display(),
        second.display()
    )]
    Tensor {
        tensor: String,
        first: PathBuf,
        second: PathBuf,
    },
    #[error(
        "the parts beside `{}` have {found} tensors, expected {expected}; they are parts of different models",
        path.display()
    )]
    Incomplete {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
}

/// The files of the model that a file belongs to, in order: all parts, if its name is that of a part of
/// several, or the file itself. They may be missing.
pub fn parts(path: &Path) -> Vec<PathBuf> {
    match name_of(path) {
        Some((stem, _, count)) if count > 1 => {
            let part =
                |number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
            (1..=count).map(part).collect()
        }
        _ => vec![path.to_path_buf()],
    }
}

/// Checks that files are the parts of one model, in order, and gives the model's metadata.
///
/// # Errors
/// [`SplitError`].
pub fn join(parts: &[(PathBuf, &Header)]) -> Result<Metadata, SplitError> {
    let [(first, of_first), ..] = parts else {
        return Ok(Metadata::new());
    };
    let count = parts.len() as u64;
    let expected = number(&of_first.metadata, TENSORS).unwrap_or(0);
    let mut known = HashMap::new();
    for (i, (path, header)) in parts.iter().enumerate() {
        let metadata = &header.metadata;
        let own = (number(metadata, NUMBER), number(metadata, COUNT));
        if own != (Some(i as u64), Some(count)) {
            return Err(SplitError::Number {
                path: path.clone(),
                found: match own {
                    (Some(own), Some(count)) => {
                        format!("part {} of {count}", own.saturating_add(1))
                    }
                    _ => "no part of several".into(),
                },
                number: i as u64 + 1,
                count,
            });
        }
        let found = number(metadata, TENSORS).unwrap_or(0);
        if found != expected {
            return Err(SplitError::Foreign {
                path: path.clone(),
                found,
                first: first.clone(),
                expected,
            });
        }
        if metadata.get(OUTPUT) != of_first.metadata.get(OUTPUT) {
            return Err(SplitError::Output {
                path: path.clone(),
                first: first.clone(),
            });
        }
        for tensor in &header.tensors {
            if let Some(other) = known.insert(tensor.name.as_str(), path) {
                return Err(SplitError::Tensor {
                    tensor: tensor.name.clone(),
                    first: other.clone(),
                    second: path.clone(),
                });
            }
        }
    }
    if known.len() as u64 != expected {
        return Err(SplitError::Incomplete {
            path: first.clone(),
            found: known.len() as u64,
            expected,
        });
    }
    let mut metadata = of_first.metadata.clone();
    metadata.retain(|key| ![COUNT, NUMBER, TENSORS, OUTPUT].contains(&key));
    Ok(metadata)
}

/// The path of a part of an output, `number` from 1: `m.gguf` becomes `m-00001-of-00003.gguf`.
pub fn part_name(output: &Path, number: usize, count: usize) -> PathBuf {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"))
}

/// The metadata of a part, `number` from 0; llama.cpp expects these types. `output` is the same for all parts
/// of one output, and no other.
#[must_use]
pub fn part_metadata(
    mut own: Metadata,
    (number, count): (usize, usize),
    tensors: usize,
    output: &str,
) -> Metadata {
    own.set(NUMBER, number as u16);
    own.set(COUNT, count as u16);
    own.set(TENSORS, tensors as i32);
    own.set(OUTPUT, output);
    own
}

/// Whether llama-gguf-split has made a file, and what it holds about itself was said of another.
pub fn is_rearranged(header: &Header) -> bool {
    match number(&header.metadata, COUNT) {
        // Merged.
        Some(0) => true,
        Some(1) | None => false,
        Some(_) => header.metadata.get(OUTPUT).is_none(),
    }
}

/// Refuses one file of several, by what its metadata says.
pub(super) fn refuse_metadata(metadata: &Metadata) -> Result<(), GgufError> {
    match number(metadata, COUNT) {
        Some(count) if count > 1 => Err(GgufError::Split {
            number: number(metadata, NUMBER).unwrap_or(0).saturating_add(1),
            count,
        }),
        _ => Ok(()),
    }
}

/// Refuses one file of several by its name: other programs than llama.cpp's may leave the numbers out of the
/// metadata.
///
/// # Errors
/// [`GgufError::Split`].
pub fn refuse_split(path: &Path) -> Result<(), GgufError> {
    match name_of(path) {
        Some((_, number, count)) if count > 1 => Err(GgufError::Split { number, count }),
        _ => Ok(()),
    }
}

fn number(metadata: &Metadata, key: &str) -> Option<u64> {
    metadata.get(key).and_then(|v| v.as_u64())
}

/// What comes before the numbers of a name that llama.cpp gives, the number and the count.
fn name_of(path: &Path) -> Option<(&str, u64, u64)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (head, count) = stem.rsplit_once("-of-")?;
    let (head, number) = head.rsplit_once('-')?;
    let parse = |digits: &str| {
        let is_number = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten()
    };
    let (number, count): (u64, u64) = (parse(number)?, parse(count)?);
    (1..=count)
        .contains(&number)
        .then_some((head, number, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{TensorLayout, TensorType, encode_header, lay_out, read_part};

    #[test]
    fn names_of_parts_are_recognised() {
        let of = |name: &'static str| name_of(Path::new(name));
        assert_eq!(of("a/m-00002-of-00003.gguf"), Some(("m", 2, 3)));
        assert_eq!(of("m-00001-of-00001.gguf"), Some(("m", 1, 1)));
        for whole in [
            "m.gguf",
            "m-of-00003.gguf",
            "m-1-of-3.gguf",
            "m-00004-of-00003.gguf",
            "m-00001-of-00003.safetensors",
        ] {
            assert_eq!(of(whole), None, "{whole}");
            assert_eq!(parts(Path::new(whole)), [PathBuf::from(whole)]);
        }
        assert!(refuse_split(Path::new("m-00001-of-00001.gguf")).is_ok());
        assert!(refuse_split(Path::new("m-00002-of-00003.gguf")).is_err());
        let all = ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"].map(PathBuf::from);
        assert_eq!(parts(&all[1]), all);
        assert_eq!(part_name(Path::new("a/m.gguf"), 2, 2), all[1]);
    }

    /// A part with one tensor.
    fn part(numbers: Option<(u16, u16, i32)>, tensor: &str) -> Header {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        if let Some((number, count, tensors)) = numbers {
            metadata.set(NUMBER, number);
            metadata.set(COUNT, count);
            metadata.set(TENSORS, tensors);
        }
        let layout = TensorLayout {
            name: tensor.into(),
            shape: vec![8],
            ty: TensorType::F32,
        };
        let (tensors, len) = lay_out(vec![layout], 32).unwrap();
        let mut bytes = encode_header(&metadata, &tensors, 32);
        bytes.resize(bytes.len() + len as usize, 0);
        read_part(&bytes).unwrap()
    }

    fn joined(second: &Header) -> Result<Metadata, SplitError> {
        let first = part(Some((0, 2, 2)), "a");
        join(&[("1".into(), &first), ("2".into(), second)])
    }

    #[test]
    fn parts_of_one_model_are_joined() {
        let metadata = joined(&part(Some((1, 2, 2)), "b")).unwrap();
        assert_eq!(metadata.len(), 1);
        assert!(metadata.get("general.architecture").is_some());
    }

    #[test]
    fn other_files_are_named() {
        let says = |second: Header, words: &str| {
            let found = joined(&second).unwrap_err().to_string();
            assert!(found.contains(words), "{found}");
        };
        says(
            part(Some((0, 2, 2)), "b"),
            "says that it is part 1 of 2, expected part 2 of 2",
        );
        says(part(None, "b"), "says that it is no part of several");
        says(
            part(Some((1, 2, 9)), "b"),
            "of a model of 9 tensors, expected one of 2",
        );
        says(
            part(Some((1, 2, 2)), "a"),
            "tensor `a` is in `1` and in `2`",
        );
    }
}
