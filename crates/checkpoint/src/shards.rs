//! Which files of a folder hold its weights.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use fs_err as fs;
use serde_json::Value;

use crate::Error;
use crate::reading::read_json;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Safetensors,
    /// PyTorch's own files.
    Pickled,
}

impl Kind {
    /// The file that says which shard holds which tensor.
    pub(crate) fn index(self) -> &'static str {
        match self {
            Kind::Safetensors => "model.safetensors.index.json",
            Kind::Pickled => "pytorch_model.bin.index.json",
        }
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Kind::Safetensors => ("model", ".safetensors"),
            Kind::Pickled => ("pytorch_model", ".bin"),
        }
    }
}

/// Tensor names to shards, as an index declares them.
pub(crate) type Index = BTreeMap<String, String>;

/// The files with a folder's weights.
pub(crate) struct Shards {
    pub(crate) kind: Kind,
    pub(crate) index: Option<Index>,
    /// In order of their names: the order of the tools.
    pub(crate) names: Vec<String>,
}

impl Shards {
    /// Those of a folder; where it has both kinds, safetensors.
    ///
    /// # Errors
    /// When there are none, or one is missing.
    pub(crate) fn of(dir: &Path) -> Result<Shards, Error> {
        for kind in [Kind::Safetensors, Kind::Pickled] {
            let index = read_index(dir, kind)?;
            let names = match &index {
                Some(index) => declared(dir, kind, index)?,
                None => found(dir, kind)?,
            };
            if !names.is_empty() {
                return Ok(Shards { kind, index, names });
            }
        }
        Err(Error::NoWeights(dir.to_path_buf()))
    }

    /// An index that is there must place the tensor in this shard.
    pub(crate) fn check_placed(&self, tensor: &str, name: &str) -> Result<(), Error> {
        let index = self.index.as_ref();
        let placed = index.map(|index| index.get(tensor).map(String::as_str));
        match placed {
            Some(Some(shard)) if shard == name => Ok(()),
            Some(other) => Err(Error::UndeclaredTensor {
                index: self.kind.index(),
                tensor: tensor.to_string(),
                shard: name.to_string(),
                placed: match other {
                    Some(shard) => format!("places in `{shard}`"),
                    None => "does not list".into(),
                },
            }),
            None => Ok(()),
        }
    }
}

fn read_index(dir: &Path, kind: Kind) -> Result<Option<Index>, Error> {
    let path = dir.join(kind.index());
    let Some(json) = read_json(&path)? else {
        return Ok(None);
    };
    let field = |key: &str, expected| Error::Field {
        path: path.clone(),
        key: key.to_string(),
        expected,
    };
    let map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| field("weight_map", "an object of tensor names and shard files"))?;
    let mut index = Index::new();
    for (tensor, shard) in map {
        let shard = shard
            .as_str()
            .ok_or_else(|| field(tensor, "the name of a shard file"))?;
        // A shard is a file of this folder; a path could lead anywhere.
        if shard.is_empty() || shard.contains(['/', '\\']) {
            return Err(field(tensor, "the name of a shard file without folders"));
        }
        index.insert(tensor.clone(), shard.to_string());
    }
    Ok(Some(index))
}

fn declared(dir: &Path, kind: Kind, index: &Index) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = index.values().cloned().collect();
    names.sort();
    names.dedup();
    let missing: Vec<&String> = names.iter().filter(|n| !dir.join(n).is_file()).collect();
    if let Some(first) = missing.first() {
        return Err(Error::MissingShard {
            index: kind.index(),
            dir: dir.to_path_buf(),
            shard: first.to_string(),
            missing: missing.len(),
            shards: names.len(),
        });
    }
    Ok(names)
}

/// The files of a folder without an index.
fn found(dir: &Path, kind: Kind) -> Result<Vec<String>, Error> {
    let (start, end) = kind.names();
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        files.push(entry?.file_name().to_string_lossy().into_owned());
    }
    files.retain(|f| f.starts_with(start) && f.ends_with(end));
    files.sort();
    check_numbering(dir, kind, &files)?;
    Ok(files)
}

/// Without an index, `model-00001-of-00003.safetensors` still says how many shards there are.
fn check_numbering(dir: &Path, kind: Kind, shards: &[String]) -> Result<(), Error> {
    let found: HashSet<&str> = shards.iter().map(String::as_str).collect();
    let mut checked = HashSet::new();
    for shard in shards {
        let stem = shard.trim_end_matches(kind.names().1);
        let Some((head, count)) = stem.rsplit_once("-of-") else {
            continue;
        };
        let Some((prefix, number)) = head.rsplit_once('-') else {
            continue;
        };
        let Ok(expected) = count.parse::<usize>() else {
            continue;
        };
        let width = number.len();
        if !checked.insert((prefix, count, width)) {
            continue;
        }
        let name = |i: usize| format!("{prefix}-{i:0width$}-of-{count}{}", kind.names().1);
        // Every found file is one shard, so more are missing than a hostile count could make us
        // list.
        let first = (1..=expected).find(|i| !found.contains(name(*i).as_str()));
        if let Some(first) = first {
            return Err(Error::MissingShard {
                index: kind.index(),
                dir: dir.to_path_buf(),
                shard: name(first),
                missing: expected.saturating_sub(shards.len()).max(1),
                shards: expected,
            });
        }
    }
    Ok(())
}
