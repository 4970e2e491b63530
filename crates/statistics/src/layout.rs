//! The layout of a statistics file, which its reader and its writer share.
//!
//! A statistics file is a safetensors file. Its `__metadata__` has one entry, `dwindle.statistics`,
//! with a [`Document`] as JSON. Each group of weights that read the same input is named after the
//! first of them and has these tensors, all little-endian:
//!
//! | tensor | type, shape | content |
//! |---|---|---|
//! | `<group>.tokens` | U64 `[slices]` | rows that each slice has got |
//! | `<group>.digests` | U8 `[1 + slices · blocks, 32]` | SHA-256 of the group's description and its small tensors, then of each Gram matrix |
//! | `<group>.mean` | F32 `[slices, width]` | mean of each element |
//! | `<group>.diagonal` | F32 `[slices, width]` | mean square of each element |
//! | `<group>.gram` | F32 `[slices, width, width]` | XᵀX / tokens, symmetric |
//!
//! A slice is an expert, or a head where a weight stacks heads. An input wider than the limit of
//! its calibration has several blocks: `<group>.gram.0` of `[slices, n, n]` holds the products of
//! the first block's elements among themselves, and so on; products across blocks are taken as
//! zero.

use std::collections::HashMap;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::identity::Identity;

/// The version of this layout.
pub(super) const VERSION: u32 = 1;

/// The key in `__metadata__`.
pub(super) const KEY: &str = "dwindle.statistics";

/// Where statistics come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The version of dwindle that measured.
    pub dwindle: String,
    /// The model that was run.
    pub model: Identity,
    /// The text's file name.
    pub text: String,
    /// SHA-256 of the whole text, in hexadecimal digits.
    pub text_sha256: String,
    /// Tokens that were evaluated.
    pub tokens: u64,
    /// Chunks that the tokens were evaluated in, each for itself.
    pub chunks: u64,
    /// Tokens of a chunk.
    pub ctx: u32,
}

/// Weights that read the same input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The weights' names, in the order of evaluation. The first is the group's name.
    pub weights: Vec<String>,
    /// Elements of a row of the input.
    pub width: usize,
    /// Experts, or heads, that the weights stack; 1 in an ordinary layer.
    pub slices: usize,
    /// Ranges of elements whose products are there: one over all of them, or several in order.
    pub blocks: Vec<Range<usize>>,
}

impl Group {
    /// The name of the first weight.
    pub fn name(&self) -> &str {
        self.weights.first().map_or("", String::as_str)
    }
}

/// The description that stands in the metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Document {
    pub version: u32,
    pub provenance: Provenance,
    pub groups: Vec<Group>,
}

/// Where the tensors of a group are: byte ranges of the file's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    pub tokens: Range<usize>,
    pub digests: Range<usize>,
    pub mean: Range<usize>,
    pub diagonal: Range<usize>,
    pub grams: Vec<Range<usize>>,
}

/// One tensor of the file.
struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Entry {
    /// `None` if the size overflows.
    fn bytes(&self) -> Option<usize> {
        let elements = self
            .shape
            .iter()
            .try_fold(1usize, |n, d| n.checked_mul(*d))?;
        elements.checked_mul(self.dtype.bitsize() / 8)
    }
}

/// The tensors of a group: tokens, digests, mean, diagonal, Gram matrices.
fn entries(group: &Group) -> Option<Vec<Entry>> {
    let name = group.name();
    let entry = |suffix: &str, dtype, shape: &[usize]| Entry {
        name: format!("{name}.{suffix}"),
        dtype,
        shape: shape.to_vec(),
    };
    let (slices, width) = (group.slices, group.width);
    let digests = slices.checked_mul(group.blocks.len())?.checked_add(1)?;
    let mut entries = vec![
        entry("tokens", Dtype::U64, &[slices]),
        entry("digests", Dtype::U8, &[digests, 32]),
        entry("mean", Dtype::F32, &[slices, width]),
        entry("diagonal", Dtype::F32, &[slices, width]),
    ];
    for (i, block) in group.blocks.iter().enumerate() {
        let suffix = match group.blocks.len() {
            1 => "gram".to_string(),
            _ => format!("gram.{i}"),
        };
        entries.push(entry(
            &suffix,
            Dtype::F32,
            &[slices, block.len(), block.len()],
        ));
    }
    Some(entries)
}

impl Document {
    /// The header of a file with this description, and the places of each group's tensors. `None`
    /// if sizes overflow.
    ///
    /// Tensors whose elements need a stricter alignment come first.
    pub fn lay_out(&self) -> Option<(Vec<u8>, Vec<Places>, usize)> {
        let groups: Vec<Vec<Entry>> = self.groups.iter().map(entries).collect::<Option<_>>()?;
        let mut order: Vec<(usize, usize)> = Vec::new();
        for kind in 0..2 {
            order.extend((0..groups.len()).map(|g| (g, kind)));
        }
        for (g, entries) in groups.iter().enumerate() {
            order.extend((2..entries.len()).map(|kind| (g, kind)));
        }
        let mut ranges: Vec<Vec<Range<usize>>> =
            groups.iter().map(|e| vec![0..0; e.len()]).collect();
        let mut infos = Vec::with_capacity(order.len());
        let mut at = 0usize;
        for (g, kind) in order {
            let entry = &groups[g][kind];
            let end = at.checked_add(entry.bytes()?)?;
            ranges[g][kind] = at..end;
            let info = TensorInfo {
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                data_offsets: (at, end),
            };
            infos.push((entry.name.clone(), info));
            at = end;
        }
        let json = serde_json::to_string(self).ok()?;
        let metadata = HashMap::from([(KEY.to_string(), json)]);
        let header = Metadata::new(Some(metadata), infos).ok()?;
        let mut header = serde_json::to_vec(&header).ok()?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        Some((bytes, ranges.into_iter().map(Places::of).collect(), at))
    }

    /// The places of each group's tensors in a file with this header, or what is wrong.
    pub fn find(&self, header: &Metadata) -> Result<Vec<Places>, String> {
        let mut known = 0;
        let mut places = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            check_group(group)?;
            let overflow = || format!("`{}` has sizes that overflow", group.name());
            let mut ranges = Vec::new();
            for entry in entries(group).ok_or_else(overflow)? {
                let name = &entry.name;
                let info = header
                    .info(name)
                    .ok_or_else(|| format!("`{name}` is missing"))?;
                if info.dtype != entry.dtype || info.shape != entry.shape {
                    return Err(format!(
                        "`{name}` is {:?} of shape {:?}, expected {:?} of shape {:?}",
                        info.dtype, info.shape, entry.dtype, entry.shape
                    ));
                }
                ranges.push(info.data_offsets.0..info.data_offsets.1);
                known += 1;
            }
            places.push(Places::of(ranges));
        }
        let found = header.offset_keys().len();
        if found != known {
            return Err(format!("it has {found} tensors, expected {known}"));
        }
        Ok(places)
    }

    /// The digest of a group's description and small tensors.
    pub fn digest(&self, group: usize, tokens: &[u8], mean: &[u8], diagonal: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        let description = (self.version, &self.provenance, &self.groups[group]);
        hash.update(serde_json::to_vec(&description).unwrap_or_default());
        for bytes in [tokens, mean, diagonal] {
            hash.update(bytes);
        }
        hash.finalize().into()
    }
}

fn check_group(group: &Group) -> Result<(), String> {
    let name = group.name();
    if name.is_empty() || group.width == 0 || group.slices == 0 {
        return Err(format!("the group `{name}` is empty"));
    }
    let mut end = 0;
    for block in &group.blocks {
        if block.start != end || block.end <= end {
            return Err(format!("the blocks of `{name}` don't follow one another"));
        }
        end = block.end;
    }
    if group.blocks.is_empty() || end != group.width {
        return Err(format!("the blocks of `{name}` don't cover its width"));
    }
    Ok(())
}

impl Places {
    fn of(ranges: Vec<Range<usize>>) -> Places {
        let mut ranges = ranges.into_iter();
        let mut next = || ranges.next().unwrap_or(0..0);
        Places {
            tokens: next(),
            digests: next(),
            mean: next(),
            diagonal: next(),
            grams: ranges.collect(),
        }
    }
}
