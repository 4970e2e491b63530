//! Calibrates a codebook: reads a text, learns how keys and values vary and what errors of them cost, and tries the result
//! on a part of the text that it was not made from.

use std::ops::Range;
use std::path::Path;

use super::error::CacheError;
use super::shape::{Asked, Weights};
use super::trial::{Continuations, Window, mean};
use crate::kv::codebook::{Codebook, Cut, Finer, Kind, Metrics, Moments, Origin, Places, Trial};
use crate::kv::{Cells, Encoder, KvError, Way, approximate, costs, pack};
use crate::llama::context::ContextOptions;
use crate::llama::model::{Model, Token};
use crate::llama::queries::Asking;
use crate::llama::reading::{Passage, Wanted};
use dwindle_formats::state::{Rows, Section, State, read};

/// How a codebook is made.
#[derive(Debug, Clone, PartialEq)]
pub struct CodebookOptions {
    /// Tokens of a window.
    pub window: usize,
    /// Windows to learn from.
    pub windows: usize,
    /// Windows to try steps and scales on, from the end of the text.
    pub trials: usize,
    /// Tokens of each window whose predictions are compared.
    pub scored: usize,
    /// The most elements of layers that are coded together.
    pub group: usize,
    /// The most bytes of components and metrics, in parts of the model's parameters in F16.
    pub part: f64,
    /// Threads, `None` for one per physical core.
    pub threads: Option<u32>,
}

impl Default for CodebookOptions {
    fn default() -> CodebookOptions {
        CodebookOptions {
            window: 1792,
            windows: 16,
            trials: 3,
            scored: 128,
            group: 2048,
            part: 0.07,
            threads: None,
        }
    }
}

/// What calibration is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Windows are read.
    Reading,
    /// Layers are perturbed, one after another.
    Layers,
    /// Components are found.
    Components,
    /// Steps are tried.
    Steps,
}

/// Receives the stage, what is done of it, and how much there is.
pub type Progress<'a> = dyn FnMut(Stage, usize, usize) + 'a;

/// Calibrates a codebook for the model at `path`, which is loaded.
///
/// # Errors
/// A text that is too short, a model without attention, or llama.cpp's words.
pub fn calibrate(
    (path, model): (&Path, &Model),
    (text, origin): (&str, Origin),
    options: &CodebookOptions,
    progress: &mut Progress<'_>,
) -> Result<Codebook, CacheError> {
    let mut run = Run::new(path, model, text, options)?;
    let (moments, metrics) = run.learn(progress)?;
    let windows = run.trial_windows()?;
    let mut origin = origin;
    origin.tokens = moments.tokens();
    let scales = run.scales(&moments, &metrics, &windows, &origin, progress)?;
    progress(Stage::Components, 0, 1);
    let cut = Cut {
        is_single: false,
        bytes: (model.n_params() as f64 * 2.0 * options.part) as u64,
    };
    let scales = (&scales.0[..], &scales.1[..]);
    let mut codebook = moments.codebook(&metrics, scales, cut, origin)?;
    progress(Stage::Components, 1, 1);
    run.try_places(&mut codebook, &windows)?;
    run.try_steps(&mut codebook, &windows, progress)?;
    Ok(codebook)
}

struct Run<'m> {
    model: &'m Model,
    weights: Option<Weights>,
    asking: Asking<'m>,
    asked: Asked,
    options: CodebookOptions,
    /// Windows to learn from.
    lessons: Vec<Vec<Token>>,
    /// Windows to try on.
    trials: Vec<Vec<Token>>,
}

/// How much of a layer's variance is taken from it to see what that costs.
const PERTURBED: f64 = 0.06;
/// The costs of trials, in nats.
const COSTS: [f64; 7] = [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032];
/// Cells at the beginning that may draw attention from everywhere. Nothing is learned from them.
const SINKS: usize = 4;
/// The limits of the classes of cells by how many come before them.
const FIRST: [usize; 4] = [1, SINKS, 16, 64];
/// The same by how many come after them.
const LAST: [usize; 5] = [16, 64, 128, 256, 512];
/// Cells whose errors cost so many times what those in the middle cost are kept as they are.
const EXACT: f64 = 64.0;

impl<'m> Run<'m> {
    fn new(
        path: &Path,
        model: &'m Model,
        text: &str,
        options: &CodebookOptions,
    ) -> Result<Run<'m>, CacheError> {
        let mut options = options.clone();
        options.window = options.window.min(model.n_ctx_train() as usize);
        if options.window < 16 {
            return Err(CacheError::Window(options.window));
        }
        options.scored = options.scored.min(options.window / 4);
        let tokens = model.tokenize(text, false, false)?;
        let begin = model.bos().filter(|_| model.add_bos());
        let body = options.window - usize::from(begin.is_some());
        let mut windows: Vec<Vec<Token>> = tokens
            .chunks_exact(body)
            .map(|body| begin.into_iter().chain(body.iter().copied()).collect())
            .collect();
        if windows.len() < 2 {
            return Err(CacheError::TextTooShort {
                tokens: tokens.len(),
                needed: 2 * body,
            });
        }
        let trials = options.trials.clamp(1, windows.len() / 2);
        let trials = windows.split_off(windows.len() - trials);
        windows.truncate(options.windows.max(1));
        let context = ContextOptions {
            ctx: options.window as u32,
            batch: 512,
            outputs: 512,
            threads: options.threads,
            ..ContextOptions::default()
        };
        Ok(Run {
            model,
            weights: Weights::open(path),
            asking: Asking::new(model, &context)?,
            asked: Asked::default(),
            options,
            lessons: windows,
            trials,
        })
    }

    /// Reads the windows to learn from.
    fn learn(&mut self, progress: &mut Progress<'_>) -> Result<(Moments, Metrics), CacheError> {
        let mut moments = None;
        let lessons = std::mem::take(&mut self.lessons);
        for (i, window) in lessons.iter().enumerate() {
            progress(Stage::Reading, i, lessons.len());
            let bytes = self.read(window)?;
            let kept = Kept::of(&bytes)?;
            let (cells, rows) = (kept.cells(&bytes)?, &kept.rows);
            if moments.is_none() {
                let widths = |parts: &[dwindle_formats::state::Part]| {
                    parts.iter().map(|p| p.width as usize).collect()
                };
                let geometry = self
                    .asked
                    .geometry(widths(&rows.keys), widths(&rows.values))?;
                moments = Some((Moments::new(&geometry, self.options.group), geometry));
            }
            if let Some((moments, _)) = &mut moments {
                moments.add(cells.piece(SINKS.min(cells.positions.len())..cells.positions.len()));
            }
        }
        let (moments, geometry) = moments.ok_or(CacheError::NoAttention)?;
        let metrics = self.asked.metrics(&geometry, self.weights.as_ref());
        Ok((moments, metrics))
    }

    /// The state behind a window.
    fn read(&mut self, window: &[Token]) -> Result<Vec<u8>, CacheError> {
        self.asking.context().forget(0);
        let size = self.asking.context().n_batch();
        let mut first = 0;
        for batch in Passage::first(0, window).batches(size, Wanted::Nothing) {
            let (asked, model, weights) = (&mut self.asked, self.model, self.weights.as_ref());
            self.asking
                .decode(&batch, &mut |q| asked.add(model, weights, q, first))?;
            first += batch.len();
        }
        Ok(self.asking.context().sequence_state(0))
    }

    fn trial_windows(&mut self) -> Result<Vec<Window>, CacheError> {
        let scored = self.options.scored;
        let mut continuations = Continuations::new(self.asking.context());
        let windows = self.trials.iter();
        windows
            .map(|tokens| continuations.window(tokens, scored))
            .collect()
    }

    /// What an error costs in each layer, in nats for each unit of its metric: each is perturbed as coding would, alone.
    fn scales(
        &mut self,
        moments: &Moments,
        metrics: &Metrics,
        windows: &[Window],
        origin: &Origin,
        progress: &mut Progress<'_>,
    ) -> Result<(Vec<f64>, Vec<f64>), CacheError> {
        let ones = (
            vec![1.0; metrics.keys.len()],
            vec![1.0; metrics.values.len()],
        );
        let cut = Cut {
            is_single: true,
            bytes: u64::MAX,
        };
        let single = moments.codebook(metrics, (&ones.0, &ones.1), cut, origin.clone())?;
        let mut found = ones;
        let total = single.groups.len();
        for i in 0..total {
            progress(Stage::Layers, i, total);
            let (kind, layer) = (single.groups[i].kind, single.groups[i].layers.start);
            let own = single.alone(i);
            let deviations = own.groups[0].deviations.iter();
            let energy: f64 = deviations.map(|d| f64::from(*d).powi(2)).sum();
            let step = own.step_of_cost(energy * PERTURBED);
            let encoder = Encoder::new(&own)?;
            let (mut divergence, mut cost) = (0.0, 0.0);
            for window in windows {
                let whole = Kept::of(&window.state)?;
                let kept = Kept {
                    rows: only(&whole.rows, kind, layer),
                    positions: whole.positions,
                };
                let cells = kept.cells(&window.state)?;
                let mut near = approximate(&encoder, step, &cells)?;
                near.take_first(&cells, SINKS);
                cost += mean_cost(&own, &cells, &near);
                divergence += self.cost_of(window, &near, &kept.rows)?;
            }
            let scale = divergence.max(1e-9) / cost.max(f64::MIN_POSITIVE);
            match kind {
                Kind::Keys => found.0[layer] = scale,
                Kind::Values => found.1[layer] = scale,
            }
        }
        Ok(found)
    }

    /// The mean divergence of what follows when these cells stand in the place of the window's.
    fn cost_of(&mut self, window: &Window, cells: &Cells, rows: &Rows) -> Result<f64, CacheError> {
        let mut state = window.state.clone();
        cells.write(&mut state, rows)?;
        let mut continuations = Continuations::new(self.asking.context());
        Ok(mean(&continuations.divergences(window, &state)?).0)
    }

    /// Finds out how much more errors of the first and the last cells cost than of those in the middle.
    fn try_places(
        &mut self,
        codebook: &mut Codebook,
        windows: &[Window],
    ) -> Result<(), CacheError> {
        let step = codebook.step_of_cost(COSTS[4]);
        let encoder = Encoder::new(codebook)?;
        let read = windows.first().map_or(0, |w| w.read);
        let mut pairs = Vec::new();
        for window in windows {
            let kept = Kept::of(&window.state)?;
            let cells = kept.cells(&window.state)?;
            pairs.push((
                window,
                approximate(&encoder, step, &cells)?,
                cells,
                kept.rows,
            ));
        }
        let mut weight = |chosen: Range<usize>| {
            let (mut divergence, mut cost) = (0.0, 0.0);
            for (window, near, cells, rows) in &pairs {
                let changed = mixed(cells, near, chosen.clone());
                cost += mean_cost(codebook, cells, &changed);
                divergence += self.cost_of(window, &changed, rows)?;
            }
            Ok::<f64, CacheError>(divergence.max(1e-9) / cost.max(f64::MIN_POSITIVE))
        };
        let limits = |all: &[usize]| -> Vec<usize> {
            all.iter()
                .copied()
                .filter(|limit| limit * 4 <= read)
                .collect()
        };
        let (first, last) = (limits(&FIRST), limits(&LAST));
        let ends = |list: &[usize]| list.last().copied().unwrap_or(0);
        let middle = weight(ends(&first)..read - ends(&last))?;
        let mut places = Places::default();
        let mut begin = 0;
        for within in first {
            let found = weight(begin..within)?;
            if found > EXACT * middle && places.exact == begin {
                places.exact = within;
            }
            places.first.push(finer(within, found, middle));
            begin = within;
        }
        let mut begin = 0;
        for within in last {
            let found = weight(read - within..read - begin)?;
            places.last.push(finer(within, found, middle));
            begin = within;
        }
        codebook.places = places;
        Ok(())
    }

    /// Notes what steps give.
    fn try_steps(
        &mut self,
        codebook: &mut Codebook,
        windows: &[Window],
        progress: &mut Progress<'_>,
    ) -> Result<(), CacheError> {
        let mut trials = Vec::new();
        let encoder = Encoder::new(codebook)?;
        for (i, cost) in COSTS.into_iter().enumerate() {
            progress(Stage::Steps, i, COSTS.len());
            let step = codebook.step_of_cost(cost);
            let (mut all, mut packed) = (0, 0);
            let mut divergence = 0.0;
            for window in windows {
                let kept = Kept::of(&window.state)?;
                let way = Way::Transform(&encoder, step);
                let nowhere = std::io::sink();
                let done = pack(&window.state, way, CHUNK, None, nowhere, &mut |_| ())?;
                all += done.f16_bytes;
                packed += done.bytes;
                let near = approximate(&encoder, step, &kept.cells(&window.state)?)?;
                divergence += self.cost_of(window, &near, &kept.rows)?;
            }
            trials.push(Trial {
                step,
                ratio: all as f64 / packed as f64,
                kld: (divergence / windows.len() as f64).max(1e-12),
            });
        }
        codebook.trials = trials;
        Ok(())
    }
}

/// The step at which an error of so much more weight costs the same for each bit.
fn finer(within: usize, weight: f64, middle: f64) -> Finer {
    Finer {
        within,
        factor: (middle / weight).sqrt().clamp(1.0 / 16.0, 1.0) as f32,
    }
}

/// Cells of a record.
pub const CHUNK: usize = 256;

/// Cells of which some stand in the place of others.
fn mixed(cells: &Cells, others: &Cells, chosen: Range<usize>) -> Cells {
    let mut out = cells.clone();
    let count = cells.positions.len().max(1);
    let pairs = out.keys.iter_mut().zip(&others.keys);
    for (own, other) in pairs.chain(out.values.iter_mut().zip(&others.values)) {
        let width = own.len() / count;
        let range = chosen.start * width..chosen.end * width;
        own[range.clone()].copy_from_slice(&other[range]);
    }
    out
}

/// Where the cells of a state of one sequence stand.
struct Kept {
    rows: Rows,
    positions: Vec<i32>,
}

impl Kept {
    fn of(bytes: &[u8]) -> Result<Kept, CacheError> {
        let state: State = read(bytes).map_err(KvError::from)?;
        let attention = state
            .sections
            .into_iter()
            .find_map(|section| match section {
                Section::Attention(attention) => Some(attention),
                Section::Recurrent { .. } => None,
            });
        let streams = attention.ok_or(CacheError::NoAttention)?.streams;
        let stream = streams.into_iter().find(|s| s.rows.is_some());
        let stream = stream.ok_or(CacheError::NoAttention)?;
        Ok(Kept {
            rows: stream.rows.ok_or(CacheError::NoAttention)?,
            positions: stream.positions,
        })
    }

    fn cells(&self, bytes: &[u8]) -> Result<Cells, CacheError> {
        let all = 0..self.positions.len();
        Ok(Cells::read(bytes, &self.rows, &self.positions, all)?)
    }
}

/// The keys or the values of one layer.
fn only(rows: &Rows, kind: Kind, layer: usize) -> Rows {
    let (keys, values) = match kind {
        Kind::Keys => (vec![rows.keys[layer]], Vec::new()),
        Kind::Values => (Vec::new(), vec![rows.values[layer]]),
    };
    Rows {
        keys,
        values,
        ..rows.clone()
    }
}

/// What errors cost by the codebook's metrics, for each cell.
fn mean_cost(codebook: &Codebook, cells: &Cells, others: &Cells) -> f64 {
    let (keys, values) = costs(codebook, cells, others);
    let all = keys.iter().chain(&values).flatten().sum::<f64>();
    all / cells.positions.len().max(1) as f64
}
