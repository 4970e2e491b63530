//! Packs a state: chunks of cells side by side, in their order, each without knowledge of others.

use std::io::Write;
use std::ops::Range;

use dwindle_formats::gguf::TensorType;
use dwindle_formats::packed::{PackedWriter, Place};
use dwindle_formats::state::{Part, Rows, Section, State, Stream, describe};
use rayon::prelude::*;

use crate::cells::{Cells, bytes_from, bytes_of};
use crate::chunked_svd::{self, Ranks};
use crate::codebook::Codebook;
use crate::error::KvError;
use crate::lossless;
use crate::parts::{attentions, turns_of, widths};
use crate::rotated::{self, Known};
use crate::settings::{Method, Settings};
use crate::transform::{Encoder, Transform};

/// How to pack.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// Bit by bit as it is.
    Lossless,
    /// By a codebook, with this step.
    Transform(&'a Encoder<'a>, f32),
    /// As leading singular triples.
    ChunkedSvd(Ranks),
    /// In one of ggml's types, after a Hadamard matrix where a head of so many elements allows it.
    Quantize(TensorType),
}

/// What became of a state.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Packing {
    /// How it was packed.
    #[serde(flatten)]
    pub settings: Settings,
    /// Cells.
    pub cells: usize,
    /// Bytes of the state.
    pub state_bytes: u64,
    /// Bytes that its keys and values take in F16.
    pub f16_bytes: u64,
    /// Bytes of the packed file.
    pub bytes: u64,
}

impl Packing {
    /// Bytes of keys and values in F16 for each byte of the packed file.
    pub fn ratio(&self) -> f64 {
        self.f16_bytes as f64 / self.bytes.max(1) as f64
    }
}

/// How a record was packed: the first byte of its payload.
pub(crate) const RAW: u8 = 0;
pub(crate) const CODED: u8 = 1;

/// Packs the state in `bytes`, `chunk` cells a record. `heads` are the elements of a head's key and value, where they are
/// known; a codebook knows them.
///
/// # Errors
/// [`KvError`]: it is no state, or another model's than the codebook.
pub fn pack(
    bytes: &[u8],
    way: Way<'_>,
    chunk: usize,
    heads: Option<[usize; 2]>,
    out: impl Write,
    progress: &mut dyn FnMut(usize),
) -> Result<Packing, KvError> {
    let mut state = dwindle_formats::state::read(bytes)?;
    let known = match way {
        Way::Lossless => Known::Needless,
        Way::Transform(encoder, _) => Known::By(encoder),
        _ => Known::Not,
    };
    let rotated = rotated::settle(&mut state, bytes, &known)?;
    let mut packer = Packer::new(bytes, &state, way, chunk, heads)?;
    packer.settings.rotated = rotated;
    let settings = serde_json::to_vec(&packer.settings).map_err(std::io::Error::from)?;
    let mut writer = PackedWriter::new(out, &settings, &describe(&state, bytes))?;
    let places = packer.places();
    // As many at once as keep all threads busy.
    for batch in places.chunks(2 * rayon::current_num_threads()) {
        let packed: Vec<_> = batch.par_iter().map(|p| packer.record(p)).collect();
        for (place, payload) in batch.iter().zip(packed) {
            writer.record(*place, &payload?)?;
            progress(place.cells as usize);
        }
    }
    let (_, written) = writer.finish()?;
    Ok(Packing {
        settings: packer.settings,
        cells: cells_of(&state),
        state_bytes: bytes.len() as u64,
        f16_bytes: f16_bytes(&state),
        bytes: written,
    })
}

/// Cells of all streams.
pub(crate) fn cells_of(state: &State) -> usize {
    let streams = attentions(state).flat_map(|a| &a.streams);
    streams.map(|s| s.positions.len()).sum()
}

fn f16_bytes(state: &State) -> u64 {
    let of = |stream: &Stream| {
        let rows = stream.rows.iter();
        let parts = rows.flat_map(|r| r.keys.iter().chain(&r.values));
        stream.positions.len() as u64 * parts.map(|p| u64::from(p.width) * 2).sum::<u64>()
    };
    attentions(state).flat_map(|a| &a.streams).map(of).sum()
}

/// Whether the codec for whole attention works on this section: the first. Others have sliding windows, and are carried
/// bit by bit.
pub(crate) fn is_coded(section: u32) -> bool {
    section == 0
}

struct Packer<'a> {
    bytes: &'a [u8],
    state: &'a State,
    way: Way<'a>,
    settings: Settings,
}

impl<'a> Packer<'a> {
    fn new(
        bytes: &'a [u8],
        state: &'a State,
        way: Way<'a>,
        chunk: usize,
        heads: Option<[usize; 2]>,
    ) -> Result<Packer<'a>, KvError> {
        let streams = attentions(state).take(1).flat_map(|a| &a.streams);
        let all: Vec<&Rows> = streams.filter_map(|s| s.rows.as_ref()).collect();
        let (mut model, mut heads) = (None, heads);
        let method = match way {
            Way::Lossless => Method::Lossless,
            Way::Transform(encoder, step) => {
                check_step(step)?;
                let codebook = encoder.codebook;
                for rows in &all {
                    codebook
                        .geometry
                        .check(&widths(&rows.keys), &widths(&rows.values))?;
                }
                heads = Some([codebook.geometry.key_head, codebook.geometry.value_head]);
                model = Some(codebook.origin.model.clone());
                Method::Transform {
                    codebook: codebook.digest(),
                    step,
                }
            }
            Way::ChunkedSvd(ranks) => Method::ChunkedSvd { ranks },
            Way::Quantize(ty) => Method::Quantize {
                ty: ty.name().to_ascii_lowercase(),
                turns: turns_for(ty, heads, all.first().copied()),
            },
        };
        Ok(Packer {
            bytes,
            state,
            way,
            settings: Settings {
                dwindle: env!("CARGO_PKG_VERSION").to_string(),
                method,
                chunk,
                model,
                heads,
                rotated: None,
            },
        })
    }

    fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for (section, stream, count) in streams(self.state) {
            for first in (0..count).step_by(self.settings.chunk.max(1)) {
                places.push(Place {
                    section,
                    stream,
                    first: first as u32,
                    cells: (count - first).min(self.settings.chunk.max(1)) as u32,
                });
            }
        }
        places
    }

    fn record(&self, place: &Place) -> Result<Vec<u8>, KvError> {
        let Section::Attention(attention) = &self.state.sections[place.section as usize] else {
            return Err(KvError::Nothing);
        };
        let stream = &attention.streams[place.stream as usize];
        let rows = stream.rows.as_ref().ok_or(KvError::Nothing)?;
        let cells = place.first as usize..(place.first + place.cells) as usize;
        if !is_coded(place.section) || matches!(self.way, Way::Lossless) {
            let payload = self.raw(rows, stream.positions.len(), &cells)?;
            return Ok([vec![RAW], payload].concat());
        }
        let read = Cells::read(self.bytes, rows, &stream.positions, cells.clone())?;
        let payload = match self.way {
            Way::Transform(encoder, step) => {
                let codebook = encoder.codebook;
                let transform = Transform { codebook, step };
                let Some(coded) = transform.encode(&encoder.analyse(read)) else {
                    // What is too far from the mean for so small a step stays as it is.
                    let payload = self.raw(rows, stream.positions.len(), &cells)?;
                    return Ok([vec![RAW], payload].concat());
                };
                let exact = exact(codebook, &cells);
                let mut payload = match exact.is_empty() {
                    true => Vec::new(),
                    false => self.raw(rows, stream.positions.len(), &exact)?,
                };
                payload.extend(coded);
                // Zeros behind the end change nothing.
                let least = elements(rows) * cells.len() * 2 / lossless::EXPANSION;
                payload.resize(payload.len().max(least), 0);
                payload
            }
            Way::ChunkedSvd(ranks) => chunked_svd::encode(&read, &ranks)?,
            Way::Quantize(ty) => self.quantized(ty, &read, rows)?,
            Way::Lossless => Vec::new(),
        };
        Ok([vec![CODED], payload].concat())
    }

    /// The rows' own bytes, each layer's packed for itself.
    fn raw(&self, rows: &Rows, count: usize, cells: &Range<usize>) -> Result<Vec<u8>, KvError> {
        let mut out = Vec::new();
        let keys = rows.keys.iter().map(|part| (part, false));
        let values = rows.values.iter().map(|part| (part, rows.is_transposed));
        for (part, is_transposed) in keys.chain(values) {
            let bytes = bytes_of(self.bytes, part, is_transposed, count, cells);
            let packed = lossless::encode(part.ty, &bytes, part.width as usize)?;
            out.extend((packed.len() as u32).to_le_bytes());
            out.extend(packed);
        }
        Ok(out)
    }

    fn quantized(&self, ty: TensorType, cells: &Cells, rows: &Rows) -> Result<Vec<u8>, KvError> {
        let Method::Quantize { turns, .. } = self.settings.method else {
            return Ok(Vec::new());
        };
        let mut out = Vec::new();
        for (layers, parts, turn) in [
            (&cells.keys, &rows.keys, turns[0]),
            (&cells.values, &rows.values, turns[1]),
        ] {
            for (layer, part) in layers.iter().zip(parts) {
                out.extend(bytes_from(ty, layer, part.width as usize, turn)?);
            }
        }
        Ok(out)
    }
}

/// A step with which something can be coded.
pub(crate) fn check_step(step: f32) -> Result<(), KvError> {
    match step.is_normal() && step > 0.0 {
        true => Ok(()),
        false => Err(KvError::Settings(format!("the step is {step}"))),
    }
}

/// Elements of a cell.
pub(crate) fn elements(rows: &Rows) -> usize {
    let parts = rows.keys.iter().chain(&rows.values);
    parts.map(|p| p.width as usize).sum()
}

/// Those of some cells that are kept as they are.
pub(crate) fn exact(codebook: &Codebook, cells: &Range<usize>) -> Range<usize> {
    cells.start..codebook.places.exact.clamp(cells.start, cells.end)
}

/// The streams of attention that have cells: section, stream and how many.
pub(crate) fn streams(state: &State) -> Vec<(u32, u32, usize)> {
    let mut streams = Vec::new();
    for (s, section) in state.sections.iter().enumerate() {
        if let Section::Attention(attention) = section {
            for (t, stream) in attention.streams.iter().enumerate() {
                if !stream.positions.is_empty() {
                    streams.push((s as u32, t as u32, stream.positions.len()));
                }
            }
        }
    }
    streams
}

/// Where heads are unknown, the largest matrix that any head allows.
fn turns_for(ty: TensorType, heads: Option<[usize; 2]>, rows: Option<&Rows>) -> [u32; 2] {
    let divide = |parts: &[Part]| parts.iter().all(|p| p.width.is_multiple_of(64));
    match (heads, rows) {
        (Some(heads), _) => turns_of(ty, heads),
        (None, Some(rows)) if divide(&rows.keys) && divide(&rows.values) => turns_of(ty, [64, 64]),
        _ => [0, 0],
    }
}
