//! Codebooks as files: safetensors, whose metadata say what fits what, with a digest of all numbers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use dwindle_formats::output::Draft;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Codebook, Geometry, Group, Kind, Origin, Places, Trial};
use crate::error::KvError;

const KEY: &str = "dwindle.codebook";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    origin: Origin,
    geometry: Geometry,
    groups: Vec<GroupShape>,
    places: Places,
    trials: Vec<Trial>,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct GroupShape {
    kind: Kind,
    layers: [usize; 2],
    precise: usize,
    components: usize,
}

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Metrics need little precision: rows are divided among components by whatever they are.
fn coarse(values: &[f32]) -> Tensor {
    Tensor {
        dtype: Dtype::BF16,
        shape: vec![values.len()],
        bytes: values
            .iter()
            .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
            .collect(),
    }
}

fn floats(values: &[f32]) -> Tensor {
    Tensor {
        dtype: Dtype::F32,
        shape: vec![values.len()],
        bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

impl Codebook {
    /// Rounds the components to the bits that a file keeps of them, so that a codebook is the same before and after it was
    /// written.
    pub fn round(&mut self) {
        let geometry = self.geometry.clone();
        for group in &mut self.groups {
            let width = group.mean.len();
            group
                .metric
                .iter_mut()
                .for_each(|v| *v = bf16::from_f32(*v).to_f32());
            let (high, low) = group.basis.split_at_mut(group.precise * width);
            high.iter_mut()
                .for_each(|v| *v = f16::from_f32(*v).to_f32());
            for row in low.chunks_exact_mut(width) {
                for (layer, scale) in in_layers(&geometry, group.kind, &group.layers, row) {
                    layer
                        .iter_mut()
                        .for_each(|v| *v = (*v / scale).round() * scale);
                }
            }
        }
    }

    /// A digest of all numbers, by which packed states know their codebook.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for tensor in self.tensors() {
            hash.update(&tensor.1.bytes);
        }
        let rest = serde_json::to_vec(&(&self.geometry, &self.places));
        hash.update(rest.unwrap_or_default());
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::new();
        for (i, group) in self.groups.iter().enumerate() {
            let width = group.mean.len();
            let (high, low) = group.basis.split_at(group.precise * width);
            let (mut codes, mut scales) = (Vec::with_capacity(low.len()), Vec::new());
            let mut rows = low.to_vec();
            for row in rows.chunks_exact_mut(width) {
                for (layer, scale) in in_layers(&self.geometry, group.kind, &group.layers, row) {
                    scales.push(scale);
                    codes.extend(layer.iter().map(|v| (*v / scale).round() as i8 as u8));
                }
            }
            let high: Vec<u8> = high
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect();
            let tensor = |dtype, rows: usize, bytes| Tensor {
                dtype,
                shape: vec![rows, width],
                bytes,
            };
            tensors.push((format!("{i}.mean"), floats(&group.mean)));
            tensors.push((format!("{i}.metric"), coarse(&group.metric)));
            tensors.push((format!("{i}.deviations"), floats(&group.deviations)));
            tensors.push((format!("{i}.high"), tensor(Dtype::F16, group.precise, high)));
            let rows = group.deviations.len() - group.precise;
            tensors.push((format!("{i}.low"), tensor(Dtype::I8, rows, codes)));
            tensors.push((format!("{i}.scales"), floats(&scales)));
        }
        tensors
    }

    /// Writes the codebook to a file. Gives its bytes.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write(&self, path: &Path) -> std::io::Result<u64> {
        let shape = |group: &Group| GroupShape {
            kind: group.kind,
            layers: [group.layers.start, group.layers.end],
            precise: group.precise,
            components: group.deviations.len(),
        };
        let document = Document {
            version: VERSION,
            origin: self.origin.clone(),
            geometry: self.geometry.clone(),
            groups: self.groups.iter().map(shape).collect(),
            places: self.places.clone(),
            trials: self.trials.clone(),
            sha256: self.digest(),
        };
        let json = serde_json::to_string(&document)?;
        let metadata = HashMap::from([(KEY.to_string(), json)]);
        let bytes = safetensors::serialize(self.tensors(), Some(metadata))
            .map_err(std::io::Error::other)?;
        let mut draft = Draft::new(path)?;
        draft.write_all(&bytes)?;
        draft.finish()?;
        Ok(bytes.len() as u64)
    }

    /// Reads a codebook from a file's bytes.
    ///
    /// # Errors
    /// They are none, or damaged.
    pub fn read(bytes: &[u8]) -> Result<Codebook, KvError> {
        let damaged = |problem: &str| KvError::Codebook(problem.to_string());
        let (_, header) =
            SafeTensors::read_metadata(bytes).map_err(|e| KvError::Codebook(e.to_string()))?;
        let json = header.metadata().as_ref().and_then(|m| m.get(KEY));
        let json = json.ok_or_else(|| damaged(&format!("its metadata has no `{KEY}`")))?;
        let document: Document =
            serde_json::from_str(json).map_err(|e| KvError::Codebook(e.to_string()))?;
        if document.version != VERSION {
            let found = document.version;
            return Err(damaged(&format!(
                "its version is {found}, expected {VERSION}"
            )));
        }
        let tensors =
            SafeTensors::deserialize(bytes).map_err(|e| KvError::Codebook(e.to_string()))?;
        let geometry = document.geometry;
        let sound = geometry.is_sound()
            && covers(&geometry, &document.groups)
            && document.places.is_sound();
        if !sound {
            return Err(damaged("its numbers don't fit one another"));
        }
        let groups = document.groups.iter().enumerate();
        let groups = groups.map(|(i, shape)| group(&tensors, &geometry, i, shape));
        let codebook = Codebook {
            origin: document.origin,
            groups: groups.collect::<Result<_, _>>()?,
            geometry,
            places: document.places,
            trials: document.trials,
        };
        match codebook.digest() == document.sha256 {
            true => Ok(codebook),
            false => Err(damaged("its checksum differs")),
        }
    }
}

/// Whether the groups are those of all layers, keys first.
fn covers(geometry: &Geometry, groups: &[GroupShape]) -> bool {
    let mut groups = groups.iter().peekable();
    for kind in [Kind::Keys, Kind::Values] {
        let mut next = 0;
        while next < geometry.layers(kind) {
            match groups.next() {
                Some(g) if g.kind == kind && g.layers[0] == next && g.layers[1] > next => {
                    next = g.layers[1];
                }
                _ => return false,
            }
        }
        if next != geometry.layers(kind) {
            return false;
        }
    }
    groups.peek().is_none()
}

/// The tensors of one group.
struct Numbers<'a> {
    tensors: &'a SafeTensors<'a>,
    index: usize,
}

impl<'a> Numbers<'a> {
    fn short(&self) -> KvError {
        KvError::Codebook(format!("group {} lacks numbers", self.index))
    }

    /// A tensor's bytes, as many as there must be.
    fn bytes(&self, name: &str, dtype: Dtype, len: Option<usize>) -> Result<&'a [u8], KvError> {
        let name = format!("{}.{name}", self.index);
        let view = self.tensors.tensor(&name).map_err(|_| self.short())?;
        match view.dtype() == dtype && Some(view.data().len()) == len {
            true => Ok(view.data()),
            false => Err(self.short()),
        }
    }

    fn floats(&self, name: &str, count: usize) -> Result<Vec<f32>, KvError> {
        let bytes = self.bytes(name, Dtype::F32, count.checked_mul(4))?;
        let (fours, _) = bytes.as_chunks::<4>();
        self.sound(fours.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    fn halves(&self, name: &str, dtype: Dtype, count: Option<usize>) -> Result<Vec<f32>, KvError> {
        let bytes = self.bytes(name, dtype, count.and_then(|count| count.checked_mul(2)))?;
        let (twos, _) = bytes.as_chunks::<2>();
        let values = twos.iter().map(|b| match dtype {
            Dtype::BF16 => bf16::from_le_bytes(*b).to_f32(),
            _ => f16::from_le_bytes(*b).to_f32(),
        });
        self.sound(values.collect())
    }

    fn sound(&self, values: Vec<f32>) -> Result<Vec<f32>, KvError> {
        match values.iter().all(|v| v.is_finite()) {
            true => Ok(values),
            false => Err(KvError::Codebook(format!(
                "group {} has no numbers",
                self.index
            ))),
        }
    }

    /// The components that are kept with 8 bits, of layers of these widths.
    fn coarse(&self, rows: usize, widths: &[usize]) -> Result<Vec<f32>, KvError> {
        let width: usize = widths.iter().sum();
        let codes = self.bytes("low", Dtype::I8, rows.checked_mul(width))?;
        let scales = rows.checked_mul(widths.len()).ok_or_else(|| self.short())?;
        let scales = self.floats("scales", scales)?;
        let mut basis = Vec::with_capacity(codes.len());
        for (row, scales) in codes
            .chunks_exact(width)
            .zip(scales.chunks_exact(widths.len()))
        {
            let mut rest = row;
            for (width, scale) in widths.iter().zip(scales) {
                let (codes, more) = rest.split_at(*width);
                basis.extend(codes.iter().map(|c| f32::from(c.cast_signed()) * scale));
                rest = more;
            }
        }
        self.sound(basis)
    }
}

fn group(
    tensors: &SafeTensors<'_>,
    geometry: &Geometry,
    index: usize,
    shape: &GroupShape,
) -> Result<Group, KvError> {
    let (kind, layers) = (shape.kind, shape.layers[0]..shape.layers[1]);
    let numbers = Numbers { tensors, index };
    let widths: Vec<usize> = layers.clone().map(|l| geometry.width(kind, l)).collect();
    let width: usize = widths.iter().sum();
    let precise = shape.precise;
    let coarse = shape.components.checked_sub(precise);
    let coarse = coarse
        .filter(|_| shape.components <= width)
        .ok_or_else(|| numbers.short())?;
    let mut basis = numbers.halves("high", Dtype::F16, precise.checked_mul(width))?;
    basis.extend(numbers.coarse(coarse, &widths)?);
    Ok(Group {
        mean: numbers.floats("mean", width)?,
        metric: numbers.halves(
            "metric",
            Dtype::BF16,
            width.checked_mul(geometry.head(kind)),
        )?,
        deviations: numbers.floats("deviations", shape.components)?,
        basis,
        precise,
        kind,
        layers,
    })
}

/// The parts of a component by layers, each with the scale of its 8-bit codes.
fn in_layers<'a>(
    geometry: &Geometry,
    kind: Kind,
    layers: &std::ops::Range<usize>,
    mut row: &'a mut [f32],
) -> Vec<(&'a mut [f32], f32)> {
    let mut parts = Vec::with_capacity(layers.len());
    for layer in layers.clone() {
        let (part, rest) = row.split_at_mut(geometry.width(kind, layer));
        let largest = part.iter().fold(0f32, |most, v| most.max(v.abs()));
        // The quotient of the largest must round to 127 again, so that codes of codes are the same.
        let scale = largest / 127.0;
        parts.push((part, if scale > 0.0 { scale } else { 1.0 }));
        row = rest;
    }
    parts
}
