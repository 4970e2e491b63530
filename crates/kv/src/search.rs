//! Finds the step with which a state takes so many bytes.

use std::ops::Range;

use dwindle_formats::state::{Rows, Section, State, Stream, describe};
use rayon::prelude::*;

use crate::cells::Cells;
use crate::codebook::Codebook;
use crate::error::KvError;
use crate::pack::{is_coded, streams};
use crate::rotated::{self, Known};
use crate::transform::{Coefficients, Encoder, Transform};

/// Records that are tried beside those whose cells have finer steps; what they take stands for all.
const SAMPLES: usize = 8;
/// Bytes of a record around its payload.
const RECORD: f64 = 53.0;
/// How near is near enough.
const NEAR: f64 = 0.002;
/// Trials at most.
const TRIALS: usize = 12;

/// The step with which the state in `bytes` takes the given part of what its keys and values take in F16, in records of
/// `chunk` cells.
///
/// # Errors
/// It is no state, or another model's.
pub fn step_for_ratio(
    bytes: &[u8],
    encoder: &Encoder<'_>,
    ratio: f64,
    chunk: usize,
) -> Result<f32, KvError> {
    let mut state = dwindle_formats::state::read(bytes)?;
    rotated::settle(&mut state, bytes, &Known::By(encoder))?;
    let codebook = encoder.codebook;
    let chunks = chunks(&state, chunk.max(1));
    let cells: usize = chunks.iter().map(|c| c.range.len()).sum();
    if cells == 0 {
        return Err(KvError::Nothing);
    }
    let samples = few(chunks, codebook).into_par_iter().map(|(c, weight)| {
        let cells = Cells::read(bytes, c.rows, &c.stream.positions, c.range.clone())?;
        codebook.geometry.check(
            &widths(&cells.keys, c.range.len()),
            &widths(&cells.values, c.range.len()),
        )?;
        Ok((encoder.analyse(cells), weight))
    });
    let samples: Vec<(Coefficients, f64)> = samples.collect::<Result<_, KvError>>()?;
    let row = codebook
        .geometry
        .keys
        .iter()
        .chain(&codebook.geometry.values)
        .sum::<usize>()
        * 2;
    let around = carried(&state, bytes, codebook, row) / cells as f64;
    let wanted = row as f64 / ratio - around - RECORD / chunk as f64;
    let taken = |step: f64| {
        let transform = Transform {
            codebook,
            step: step as f32,
        };
        // What can't be coded is kept as it is.
        let of = |(s, weight): &(Coefficients, f64)| {
            let bytes = transform
                .encode(s)
                .map_or(s.cells() * row, |bytes| bytes.len());
            bytes as f64 * weight
        };
        let bytes: Vec<f64> = samples.par_iter().map(of).collect();
        bytes.iter().sum::<f64>() / cells as f64
    };
    Ok(solve(codebook, wanted.max(1.0), taken) as f32)
}

/// Cells that become a record.
struct Chunk<'a> {
    rows: &'a Rows,
    stream: &'a Stream,
    range: Range<usize>,
}

/// All chunks that a codebook codes.
fn chunks(state: &State, chunk: usize) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    for (section, stream, count) in streams(state) {
        let Section::Attention(attention) = &state.sections[section as usize] else {
            continue;
        };
        let stream = &attention.streams[stream as usize];
        if let (Some(rows), true) = (&stream.rows, is_coded(section)) {
            let starts = (0..count).step_by(chunk);
            chunks.extend(starts.map(|s| Chunk {
                rows,
                stream,
                range: s..(s + chunk).min(count),
            }));
        }
    }
    chunks
}

/// A few chunks, and how many each stands for: those whose cells have finer steps stand for themselves.
fn few<'a>(chunks: Vec<Chunk<'a>>, codebook: &Codebook) -> Vec<(Chunk<'a>, f64)> {
    let is_finer = |c: &Chunk<'_>| {
        let count = c.stream.positions.len();
        codebook.places.are_finer(&c.range, count)
    };
    let (finer, even): (Vec<_>, Vec<_>) = chunks.into_iter().partition(is_finer);
    let all: usize = even.iter().map(|c| c.range.len()).sum();
    let every = even.len().div_ceil(SAMPLES).max(1);
    let few: Vec<_> = even.into_iter().rev().step_by(every).collect();
    let seen: usize = few.iter().map(|c| c.range.len()).sum();
    let share = all as f64 / seen.max(1) as f64;
    let few = few.into_iter().map(|c| (c, share));
    few.chain(finer.into_iter().map(|c| (c, 1.0))).collect()
}

/// About how many bytes a packed state has for what the step does not change.
fn carried(state: &State, bytes: &[u8], codebook: &Codebook, row: usize) -> f64 {
    let mut recurrent = 0;
    let mut windowed = 0;
    for (i, section) in state.sections.iter().enumerate() {
        match section {
            Section::Recurrent { range, .. } => recurrent += range.len(),
            Section::Attention(attention) if !is_coded(i as u32) => {
                for stream in &attention.streams {
                    let parts = stream
                        .rows
                        .iter()
                        .flat_map(|r| r.keys.iter().chain(&r.values));
                    windowed += parts
                        .map(|p| p.row_bytes() * stream.positions.len())
                        .sum::<usize>();
                }
            }
            Section::Attention(_) => {}
        }
    }
    let exact = codebook.places.exact * row + windowed;
    let description = describe(state, bytes).len() - recurrent;
    // Rows bit by bit keep most of their bytes, positions a quarter.
    exact as f64 * 0.85 + recurrent as f64 + description as f64 / 4.0
}

fn widths(rows: &[Vec<f32>], count: usize) -> Vec<usize> {
    rows.iter().map(|r| r.len() / count).collect()
}

/// The step at which bytes are as wanted, or a little fewer: by straight lines through the last two trials, in logarithms.
fn solve(codebook: &Codebook, wanted: f64, taken: impl Fn(f64) -> f64) -> f64 {
    let mut step = f64::from(codebook.step_of_cost(0.004)).max(f64::MIN_POSITIVE);
    let mut last: Option<(f64, f64)> = None;
    for _ in 0..TRIALS {
        let bytes = taken(step).max(1e-3);
        if (1.0 - NEAR..=1.0).contains(&(bytes / wanted)) {
            break;
        }
        let slope = match last {
            Some((s, b)) if (s - step.ln()).abs() > 1e-6 => (bytes.ln() - b) / (step.ln() - s),
            _ => -0.8,
        };
        last = Some((step.ln(), bytes.ln()));
        let aim = (wanted * (1.0 - NEAR / 2.0)).ln();
        let slope = slope.clamp(-3.0, -0.1);
        step = (step.ln() + ((aim - bytes.ln()) / slope).clamp(-2.0, 2.0)).exp();
    }
    step
}
