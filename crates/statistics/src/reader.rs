//! Reads a statistics file.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use dwindle_architecture::Model;
use dwindle_checkpoint::Source;
use dwindle_ggml::GgmlError;
use dwindle_mapped::Mapping;
use safetensors::{SafeTensorError, SafeTensors};
use sha2::{Digest as _, Sha256};

use super::identity::{Identity, Likeness};
use super::layout::{Document, Group, KEY, Places, Provenance, VERSION};

/// Why a file gives no statistics.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum StatisticsError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("`{path}` is not a safetensors file: {source}")]
    Format {
        path: String,
        source: SafeTensorError,
    },
    #[error("`{path}` holds no statistics: {problem}")]
    Foreign { path: String, problem: String },
    #[error("`{path}` is damaged at `{group}`: {problem}; calibrate again")]
    Damaged {
        path: String,
        group: String,
        problem: String,
    },
    #[error(
        "`{path}` was measured on another model: {problem}; calibrate the checkpoint that is to be compressed"
    )]
    OtherModel { path: String, problem: String },
    #[error("can't read a norm of the model")]
    Norm(#[from] GgmlError),
}

/// A Gram matrix of a layer's input, or of a block of its elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gram<'a> {
    /// Rows and columns.
    pub n: usize,
    /// XᵀX / tokens, n × n, symmetric.
    pub values: &'a [f32],
    /// Mean of each element.
    pub mean: &'a [f32],
    /// Rows of X.
    pub tokens: u64,
}

/// What calibration measured, read from a file as it is asked for.
#[derive(Debug)]
pub struct Statistics {
    path: String,
    bytes: Mapping,
    /// Where the tensors' data begins.
    start: usize,
    document: Document,
    places: Vec<Places>,
    by_weight: HashMap<String, usize>,
    /// For each group and each of its matrices, whether it was found to be whole.
    checked: Vec<Vec<AtomicBool>>,
}

impl Statistics {
    /// Maps a file and checks everything but the Gram matrices, which are checked when they are
    /// first asked for.
    ///
    /// # Errors
    /// [`StatisticsError`].
    pub fn open(path: &Path) -> Result<Statistics, StatisticsError> {
        let bytes = Mapping::open(path)?;
        let path = path.display().to_string();
        let foreign = |problem: String| StatisticsError::Foreign {
            path: path.clone(),
            problem,
        };
        let (header_len, header) =
            SafeTensors::read_metadata(&bytes).map_err(|source| StatisticsError::Format {
                path: path.clone(),
                source,
            })?;
        let json = header.metadata().as_ref().and_then(|m| m.get(KEY));
        let json = json.ok_or_else(|| foreign(format!("its metadata has no `{KEY}`")))?;
        let version = serde_json::from_str::<serde_json::Value>(json)
            .ok()
            .and_then(|v| v.get("version")?.as_u64());
        if version != Some(VERSION.into()) {
            let found = version.map_or("none".into(), |v| v.to_string());
            return Err(foreign(format!(
                "its version is {found}, expected {VERSION}"
            )));
        }
        let document: Document = serde_json::from_str(json).map_err(|e| foreign(e.to_string()))?;
        let places = document.find(&header).map_err(&foreign)?;
        let mut by_weight = HashMap::new();
        for (i, group) in document.groups.iter().enumerate() {
            for weight in &group.weights {
                if by_weight.insert(weight.clone(), i).is_some() {
                    return Err(foreign(format!("`{weight}` is there twice")));
                }
            }
        }
        let flags = |g: &Group| {
            (0..g.slices * g.blocks.len())
                .map(|_| false.into())
                .collect()
        };
        let statistics = Statistics {
            checked: document.groups.iter().map(flags).collect(),
            start: 8 + header_len,
            path,
            bytes,
            document,
            places,
            by_weight,
        };
        for group in 0..statistics.places.len() {
            let damaged = |problem| statistics.damaged(group, problem);
            statistics.check_small(group).map_err(damaged)?;
        }
        Ok(statistics)
    }

    fn damaged(&self, group: usize, problem: String) -> StatisticsError {
        StatisticsError::Damaged {
            path: self.path.clone(),
            group: self.document.groups[group].name().to_string(),
            problem,
        }
    }

    fn data(&self, place: &Range<usize>) -> &[u8] {
        // safetensors has held all ranges against the file's length.
        &self.bytes[self.start + place.start..self.start + place.end]
    }

    /// Empty where another program has written unaligned numbers; `open` refuses those.
    fn floats(&self, place: &Range<usize>) -> &[f32] {
        bytemuck::try_cast_slice(self.data(place)).unwrap_or(&[])
    }

    fn check_small(&self, group: usize) -> Result<(), String> {
        let places = &self.places[group];
        let all = [&places.mean, &places.diagonal].into_iter();
        for place in all.chain(&places.grams) {
            if bytemuck::try_cast_slice::<u8, f32>(self.data(place)).is_err() {
                return Err("its numbers are not aligned".into());
            }
        }
        let digest = self.document.digest(
            group,
            self.data(&places.tokens),
            self.data(&places.mean),
            self.data(&places.diagonal),
        );
        if self.data(&places.digests).get(..32) != Some(&digest[..]) {
            return Err("its checksum differs".into());
        }
        if self.floats(&places.mean).iter().any(|v| !v.is_finite()) {
            return Err("a mean is not a number".into());
        }
        let bad = |v: &&f32| !(v.is_finite() && **v >= 0.0);
        match self.floats(&places.diagonal).iter().find(bad) {
            Some(v) => Err(format!("a mean square is {v}")),
            None => Ok(()),
        }
    }

    /// A digest of all measurements: of the digests in the file.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for places in &self.places {
            let digests = self.data(&places.digests);
            hash.update((digests.len() as u64).to_le_bytes());
            hash.update(digests);
        }
        hash.finalize().into()
    }

    /// Where the statistics come from.
    pub fn provenance(&self) -> &Provenance {
        &self.document.provenance
    }

    /// Weights that read the same input, in the order of evaluation.
    pub fn groups(&self) -> &[Group] {
        &self.document.groups
    }

    /// How many weights they cover.
    pub fn weights(&self) -> usize {
        self.by_weight.len()
    }

    /// The group that a weight is in: weights of one group read the same input.
    pub fn group(&self, weight: &str) -> Option<&Group> {
        Some(&self.document.groups[*self.by_weight.get(weight)?])
    }

    fn slice(&self, weight: &str, expert: usize) -> Option<(usize, &Group)> {
        let i = *self.by_weight.get(weight)?;
        let group = &self.document.groups[i];
        (expert < group.slices).then_some((i, group))
    }

    /// Rows that a weight's slice has got; 0 for an expert that no token reached.
    pub fn tokens(&self, weight: &str, expert: usize) -> Option<u64> {
        let (i, _) = self.slice(weight, expert)?;
        let (counts, _) = self.data(&self.places[i].tokens).as_chunks::<8>();
        Some(u64::from_le_bytes(*counts.get(expert)?))
    }

    /// The mean square of each element of a weight's input.
    pub fn diagonal(&self, weight: &str, expert: usize) -> Option<&[f32]> {
        let (i, group) = self.slice(weight, expert)?;
        let all = self.floats(&self.places[i].diagonal);
        all.chunks(group.width).nth(expert)
    }

    /// The mean of each element of a weight's input.
    pub fn mean(&self, weight: &str, expert: usize) -> Option<&[f32]> {
        let (i, group) = self.slice(weight, expert)?;
        let all = self.floats(&self.places[i].mean);
        all.chunks(group.width).nth(expert)
    }

    /// The Gram matrix of a weight's input. `None` if the weight or the expert is unknown, or the
    /// input is so wide that only [`Self::gram_block`]s are kept.
    ///
    /// # Errors
    /// The matrix is damaged.
    pub fn gram(&self, weight: &str, expert: usize) -> Result<Option<Gram<'_>>, StatisticsError> {
        match self.group(weight) {
            Some(group) if group.blocks.len() == 1 => self.gram_block(weight, expert, 0),
            _ => Ok(None),
        }
    }

    /// One block on the diagonal of a Gram matrix, of the elements `group(weight).blocks[block]`.
    /// `None` if there is none.
    ///
    /// # Errors
    /// The matrix is damaged.
    pub fn gram_block(
        &self,
        weight: &str,
        expert: usize,
        block: usize,
    ) -> Result<Option<Gram<'_>>, StatisticsError> {
        let Some((i, group)) = self.slice(weight, expert) else {
            return Ok(None);
        };
        let (Some(range), Some(tokens), Some(mean)) = (
            group.blocks.get(block),
            self.tokens(weight, expert),
            self.mean(weight, expert),
        ) else {
            return Ok(None);
        };
        let n = range.len();
        let place = &self.places[i].grams[block];
        let place = place.start + expert * n * n * 4..place.start + (expert + 1) * n * n * 4;
        let index = expert * group.blocks.len() + block;
        let values = self.floats(&place);
        // Relaxed suffices: at worst two threads check the same matrix.
        if !self.checked[i][index].load(Ordering::Relaxed) {
            let at = 32 * (1 + index);
            let expected = &self.data(&self.places[i].digests)[at..at + 32];
            let digest: [u8; 32] = Sha256::digest(self.data(&place)).into();
            if digest != expected {
                return Err(self.damaged(i, format!("the checksum of matrix {index} differs")));
            }
            if !values.iter().fold(true, |all, v| all & v.is_finite()) {
                return Err(self.damaged(
                    i,
                    format!("matrix {index} holds a value that is not a number"),
                ));
            }
            self.checked[i][index].store(true, Ordering::Relaxed);
        }
        Ok(Some(Gram {
            n,
            values,
            mean: &mean[range.clone()],
            tokens,
        }))
    }

    /// Drops a weight's matrices from this process's memory; they are mapped again when asked for.
    pub fn release(&self, weight: &str) {
        if let Some(i) = self.by_weight.get(weight) {
            for place in &self.places[*i].grams {
                self.bytes
                    .release(self.start + place.start..self.start + place.end);
            }
        }
    }

    /// Checks that the statistics are of this model, in whatever type its weights are stored.
    ///
    /// # Errors
    /// [`StatisticsError::OtherModel`] if its family, its norms, its weights, the name of one or a
    /// shape differ.
    pub fn check_model(
        &self,
        model: &Model,
        source: &dyn Source,
    ) -> Result<Likeness, StatisticsError> {
        let other = |problem| StatisticsError::OtherModel {
            path: self.path.clone(),
            problem,
        };
        let found = Identity::of(model, source)?;
        let own = &self.provenance().model;
        let likeness = own.likeness(&found);
        if own.architecture != found.architecture {
            return likeness.map_err(other);
        }
        let by_name = model.by_name();
        for group in self.groups() {
            for weight in &group.weights {
                let Some(tensor) = by_name.get(weight.as_str()) else {
                    return Err(other(format!("`{}` has no `{weight}`", found.name)));
                };
                let slices: u64 = tensor.shape.iter().skip(2).product();
                let shape = (group.width as u64, group.slices as u64);
                if (tensor.shape[0], slices) != shape {
                    return Err(other(format!(
                        "`{weight}` reads {} elements in {} slices, expected {} in {}",
                        tensor.shape[0], slices, shape.0, shape.1
                    )));
                }
            }
        }
        likeness.map_err(other)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // one block is a list of one range
mod tests {
    use super::*;
    use crate::accumulate::{Accumulator, add_panels};
    use crate::writer::StatisticsWriter;

    fn write(path: &Path, values: &[f32], blocks: Vec<Range<usize>>) {
        let provenance = Provenance {
            dwindle: "0".into(),
            model: Identity::new(&dwindle_formats::gguf::Metadata::new(), Vec::new()),
            text: "text".into(),
            text_sha256: String::new(),
            tokens: 2,
            chunks: 1,
            ctx: 2,
        };
        let group = Group {
            weights: vec!["a.weight".into(), "b.weight".into()],
            width: 3,
            slices: 1,
            blocks,
        };
        let mut sums = [Accumulator::new(3, 1, &group.blocks)];
        sums[0].push(values, None);
        sums[0].close();
        add_panels(&mut sums);
        let mut writer = StatisticsWriter::create(path, provenance, vec![group]).unwrap();
        writer.write(0, &sums[0]).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn checksums_do_not_make_nonsense_true() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.safetensors");
        let good = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        write(&path, &good, vec![0..3]);
        let statistics = Statistics::open(&path).unwrap();
        let gram = statistics.gram("b.weight", 0).unwrap().unwrap();
        assert_eq!(
            gram.values,
            [8.5, 11.0, 13.5, 11.0, 14.5, 18.0, 13.5, 18.0, 22.5]
        );
        assert_eq!((gram.mean, gram.tokens), (&[2.5f32, 3.5, 4.5][..], 2));
        statistics.release("b.weight");
        assert_eq!(statistics.gram("a.weight", 0).unwrap(), Some(gram));

        for bad in [f32::NAN, f32::INFINITY, 3e38] {
            let mut values = good;
            values[4] = bad;
            write(&path, &values, vec![0..3]);
            let error = Statistics::open(&path).unwrap_err().to_string();
            assert!(error.contains("damaged at `a.weight`: a mean"), "{error}");
        }
        for blocks in [vec![0..2], vec![0..2, 1..3], vec![1..3], vec![0..1, 2..3]] {
            write(&path, &good, blocks);
            let error = Statistics::open(&path).unwrap_err();
            assert!(matches!(error, StatisticsError::Foreign { .. }), "{error}");
        }
    }
}
