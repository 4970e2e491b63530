//! One block of the survey.

use std::collections::{BTreeMap, HashMap};

use super::super::candidates::COARSE;
use super::super::probe::Probed;
use super::kept::{Kept, State};
use super::layer::{Sums, candidates, judged};
use super::{Surveyed, Task};
use crate::blockwise::{
    Block, Checkpoint, EMBEDDING, Head, Original as _, Runner, Stream, WalkError, looked_up,
};
use crate::llama::model::{Model, Token};
use crate::plan::TensorError;
use crate::statistics::{Accumulator, TensorSurvey};
use crate::target::BudgetError;

/// The embedding also stands for the output layer in a block's graph.
const OUTPUT: &str = EMBEDDING;

pub struct Surveyor<'a> {
    task: &'a Task<'a>,
    blocks: u32,
    source: Checkpoint<'a>,
    pub head: Option<Head<'a>>,
    by_name: HashMap<&'a str, usize>,
    /// The original's stream; its first rows are those that divergences are measured on.
    stream: Stream,
    /// Streams in which something was rounded: of the embedding, then of groups of blocks.
    pub rounded: Vec<Rounded>,
    /// The stream of the model in [`COARSE`], where divergences are measured.
    pub coarse: Option<Rounded>,
    /// The group that the last of them is of.
    group: Option<usize>,
    pub found: BTreeMap<usize, Surveyed>,
    pub output: Option<(Vec<String>, Accumulator)>,
    /// What the output layer reads in the original's stream.
    pub normed: Vec<f32>,
    /// Tensors that were judged in the block that was gone through last.
    latest: Vec<usize>,
}

/// A stream in which weights were rounded.
pub struct Rounded {
    stream: Stream,
    /// What each of them does to the stream behind its block.
    pub parts: BTreeMap<usize, f64>,
    /// What the output layer reads, once the last block is behind.
    pub normed: Vec<f32>,
}

impl Rounded {
    fn new(stream: Stream, parts: BTreeMap<usize, f64>) -> Rounded {
        Rounded {
            stream,
            parts,
            normed: Vec::new(),
        }
    }

    fn advance(&mut self, runner: &mut Runner<'_>, is_last: bool) -> Result<(), WalkError> {
        if is_last {
            self.normed = runner.scored(&self.stream)?;
            return Ok(());
        }
        runner.advance(&mut self.stream)
    }
}

impl<'a> Surveyor<'a> {
    pub fn new(
        task: &'a Task<'a>,
        blocks: u32,
        stream: Stream,
    ) -> Result<Surveyor<'a>, BudgetError> {
        let tensors = task.subject.model.tensors.iter().enumerate();
        Ok(Surveyor {
            blocks,
            source: Checkpoint::new(task.subject),
            head: Head::new(task.subject),
            by_name: tensors.map(|(i, t)| (t.name.as_str(), i)).collect(),
            stream,
            rounded: Vec::new(),
            coarse: None,
            group: None,
            found: BTreeMap::new(),
            output: None,
            normed: Vec::new(),
            latest: Vec::new(),
            task,
        })
    }

    /// The group of a block.
    fn group_of(&self, block: u32) -> usize {
        let groups = self.task.groups.clamp(1, self.blocks.max(1) as usize);
        block as usize * groups / self.blocks as usize
    }

    /// Whether a block is surveyed by this part.
    fn is_own(&self, block: u32) -> bool {
        self.task.part.has(self.group_of(block))
    }

    /// Whether the last block, and the output layer with it, are surveyed by this part.
    pub fn has_output(&self) -> bool {
        self.is_own(self.blocks.saturating_sub(1))
    }

    /// Rows that divergences are measured on.
    fn measured(&self) -> usize {
        let sequences = self
            .task
            .measured
            .min(self.task.cut.sequences(&self.stream));
        sequences * self.task.cut.ctx
    }

    /// A stream whose embedding is rounded; the first part has it.
    pub fn embedding(&mut self, tokens: &[Token]) -> Result<(), BudgetError> {
        if !self.task.part.is_first() {
            return Ok(());
        }
        let Some(&index) = self.by_name.get(OUTPUT) else {
            return Ok(());
        };
        let tensor = &self.task.subject.model.tensors[index];
        if !tensor.is_weight() {
            return Ok(());
        }
        // Its types are judged by what the output layer reads, where it is that layer's weight too.
        let surveyed = Surveyed {
            candidates: candidates(self.task, index, None)?,
            importance: Vec::new(),
            kld: 0.0,
        };
        let ty = surveyed.candidates.probe.ty;
        let rows = self.measured();
        if rows == 0 {
            self.found.insert(index, surveyed);
            return Ok(());
        }
        let values = looked_up(&self.task.subject, index, ty, &tokens[..rows])
            .map_err(TensorError::of(&tensor.name))?;
        let mut stream = Stream::new(rows, self.stream.width(), self.task.scratch)?;
        stream.write(0, &values)?;
        self.rounded
            .push(Rounded::new(stream, BTreeMap::from([(index, 1.0)])));
        self.found.insert(index, surveyed);
        Ok(())
    }

    /// Goes through a block.
    pub fn block(&mut self, number: u32) -> Result<(), BudgetError> {
        let block = Block::new(self.task.subject.model, number);
        let source = &self.source;
        let model = block.load(&self.task.cut, |i| source.ty(i), &|i, ty| {
            source.bytes(i, ty)
        })?;
        let mut runner = Runner::new(&model, &block, &self.task.cut)?;
        let is_last = number + 1 == self.blocks;
        let is_own = self.is_own(number);
        let rows = self.measured();
        let before = self.stream.read(0, rows)?;
        let sums = self.observe(&mut runner, (is_own, is_last))?;
        let weights = match is_own {
            true => self.judge(&block, &runner, sums)?,
            false => Vec::new(),
        };
        self.latest.clone_from(&weights);
        if rows == 0 {
            return Ok(());
        }
        let group = Some(self.group_of(number));
        let current = match is_own && self.group == group {
            true => self.rounded.pop(),
            false => None,
        };
        self.group = group;
        for rounded in &mut self.rounded {
            rounded.advance(&mut runner, is_last)?;
        }
        if is_last {
            self.normed = runner.scored(&self.copy(&before)?)?;
        }
        if is_own {
            let behind = self.stream.read(0, rows)?;
            let parts = self.parts(&block, (&model, &mut runner), &weights, [&before, &behind])?;
            // All of the block's weights are rounded now.
            let mut rounded = match current {
                Some(rounded) => rounded,
                None => Rounded::new(self.copy(&before)?, BTreeMap::new()),
            };
            rounded.parts.extend(parts);
            rounded.advance(&mut runner, is_last)?;
            self.rounded.push(rounded);
        }
        drop(runner);
        drop(model);
        if self.task.part.is_first() {
            self.advance_coarse(&block, &before, is_last)?;
        }
        Ok(())
    }

    /// Goes through a block with its weights in [`COARSE`]. `before` are the rows before the first block.
    fn advance_coarse(
        &mut self,
        block: &Block<'_>,
        before: &[f32],
        is_last: bool,
    ) -> Result<(), BudgetError> {
        let source = &self.source;
        let ty = |index: usize| {
            let tensor = &self.task.subject.model.tensors[index];
            match tensor.is_weight() && tensor.row_len().is_multiple_of(COARSE.block_len()) {
                true => COARSE,
                false => source.ty(index),
            }
        };
        let model = block.load(&self.task.cut, ty, &|i, ty| source.bytes(i, ty))?;
        let mut runner = Runner::new(&model, block, &self.task.cut)?;
        let mut coarse = match self.coarse.take() {
            Some(coarse) => coarse,
            None => Rounded::new(self.copy(before)?, BTreeMap::new()),
        };
        coarse.advance(&mut runner, is_last)?;
        self.coarse = Some(coarse);
        Ok(())
    }

    /// Keeps what was found up to a block.
    pub fn keep(&self, kept: &Kept<'_>, number: u32) -> Result<(), BudgetError> {
        let state = State {
            next: number + 1,
            group: self.group,
            parts: self.rounded.iter().map(|r| r.parts.clone()).collect(),
        };
        let found = self.latest.iter().map(|i| self.found[i].described());
        let found: Vec<TensorSurvey> = found.collect();
        let rounded = self.rounded.iter().chain(&self.coarse).map(|r| &r.stream);
        let streams: Vec<&Stream> = std::iter::once(&self.stream).chain(rounded).collect();
        Ok(kept.keep(&state, &found, &streams)?)
    }

    /// Takes over what an earlier run found. Gives the block that is next.
    pub fn resume(&mut self, kept: &Kept<'_>) -> Result<u32, BudgetError> {
        let Some((state, found)) = kept.read() else {
            return Ok(0);
        };
        let model = self.task.subject.model;
        let found = found.into_iter().map(|t| {
            let index = self.by_name.get(t.name.as_str())?;
            Surveyed::read(t, *index, model)
        });
        let Some(found) = found.collect::<Option<Vec<_>>>() else {
            return Ok(0);
        };
        let mut rounded = Vec::new();
        let mut coarse = None;
        let new = |parts| -> Result<Rounded, BudgetError> {
            let stream = Stream::new(self.measured(), self.stream.width(), self.task.scratch)?;
            Ok(Rounded::new(stream, parts))
        };
        if self.measured() > 0 && self.task.part.is_first() {
            coarse = Some(new(BTreeMap::new())?);
        }
        for parts in state.parts {
            rounded.push(new(parts)?);
        }
        let streams = rounded.iter_mut().chain(&mut coarse);
        let streams = streams.map(|r| &mut r.stream);
        let mut streams: Vec<&mut Stream> =
            std::iter::once(&mut self.stream).chain(streams).collect();
        let file = |i: usize| kept.stream(state.next, i);
        let mut all = streams.iter().enumerate();
        if !all.all(|(i, stream)| stream.fits(&file(i))) {
            return Ok(0);
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.restore(&file(i))?;
        }
        self.rounded = rounded;
        self.coarse = coarse;
        self.group = state.group;
        for surveyed in found {
            self.found.insert(surveyed.candidates.index, surveyed);
        }
        Ok(state.next)
    }

    /// Runs the original's stream through the block, and sums what its layers read where the block is this
    /// part's own. The graph is run alike in both cases, so that the stream is the same in all parts.
    fn observe(
        &mut self,
        runner: &mut Runner<'_>,
        (is_own, is_last): (bool, bool),
    ) -> Result<Vec<Option<Sums>>, BudgetError> {
        let inputs = runner.inputs().to_vec();
        let is_summed = |i: usize| {
            let name = inputs[i].name();
            !inputs[i].readers.is_empty() && (name != OUTPUT || is_last)
        };
        let new = |i: usize| {
            let width = inputs[i].width;
            (is_own && is_summed(i)).then(|| match inputs[i].name() == OUTPUT {
                true => Sums::of_output(width),
                false => Sums::new(width, inputs[i].slices),
            })
        };
        let mut sums: Vec<Option<Sums>> = (0..inputs.len()).map(new).collect();
        let behind = runner.behind;
        let wanted: Vec<bool> = (0..inputs.len())
            .map(|i| i == behind || is_summed(i))
            .collect();
        let cut = &self.task.cut;
        for batch in cut.batches(0..cut.sequences(&self.stream)) {
            let rows = self.stream.read(batch.rows.start, batch.rows.len())?;
            let stream = &mut self.stream;
            runner.run(&batch, &rows, &wanted, &mut |seen| {
                match &mut sums[seen.input] {
                    Some(sums) => sums.add(seen.values, seen.slices),
                    None if seen.input == behind => stream.write(batch.rows.start, seen.values)?,
                    None => {}
                }
                Ok(())
            })?;
        }
        sums.iter_mut().flatten().for_each(Sums::close);
        match (0..inputs.len()).find(|i| sums[*i].as_ref().is_some_and(|s| !s.is_finite())) {
            Some(i) => Err(BudgetError::NotFinite {
                weight: inputs[i].name().to_string(),
            }),
            None => Ok(sums),
        }
    }

    /// Judges the weights of the block, and gives their positions.
    fn judge(
        &mut self,
        block: &Block<'_>,
        runner: &Runner<'_>,
        sums: Vec<Option<Sums>>,
    ) -> Result<Vec<usize>, BudgetError> {
        let mut weights = Vec::new();
        for (input, sums) in runner.inputs().iter().zip(sums) {
            let Some(sums) = sums else {
                continue;
            };
            if input.name() == OUTPUT {
                self.judge_output(sums)?;
                continue;
            }
            let names = input.readers.iter().map(|r| block.name_there(&r.weight));
            let tensors: Vec<usize> = names
                .filter_map(|n| self.by_name.get(n.as_str()).copied())
                .filter(|i| self.task.subject.model.tensors[*i].is_weight())
                .collect();
            if tensors.is_empty() {
                continue;
            }
            for surveyed in judged(self.task, &tensors, &sums)? {
                self.found.insert(surveyed.candidates.index, surveyed);
            }
            weights.extend(tensors);
        }
        // What no product shows.
        for index in block.tensors() {
            let tensor = &self.task.subject.model.tensors[*index];
            if tensor.is_weight() && !self.found.contains_key(index) {
                let surveyed = Surveyed {
                    candidates: candidates(self.task, *index, None)?,
                    importance: Vec::new(),
                    kld: 0.0,
                };
                self.found.insert(*index, surveyed);
                weights.push(*index);
            }
        }
        Ok(weights)
    }

    fn judge_output(&mut self, sums: Sums) -> Result<(), BudgetError> {
        let Some(index) = self.head.as_ref().map(|h| h.tensor) else {
            return Ok(());
        };
        if !self.task.subject.model.tensors[index].is_weight() {
            return Ok(());
        }
        for surveyed in judged(self.task, &[index], &sums)? {
            self.found.insert(index, surveyed);
        }
        let name = self.task.subject.model.tensors[index].name.clone();
        self.output = Some((vec![name], sums.into_accumulator()));
        Ok(())
    }

    fn probed(&self, index: usize) -> Result<Probed, BudgetError> {
        let tensor = &self.task.subject.model.tensors[index];
        let surveyed = &self.found[&index];
        let ty = surveyed.candidates.probe.ty;
        let probed = Probed::new(&self.task.subject, tensor, ty, &surveyed.importance);
        tensor.release(self.task.subject.source);
        Ok(probed.map_err(TensorError::of(&tensor.name))?)
    }

    /// What each weight, rounded alone, does to the stream behind the block. Leaves all of them rounded.
    fn parts(
        &self,
        block: &Block<'_>,
        (model, runner): (&Model, &mut Runner<'_>),
        weights: &[usize],
        [before, behind]: [&[f32]; 2],
    ) -> Result<BTreeMap<usize, f64>, BudgetError> {
        let mut parts = BTreeMap::new();
        let mut rounded = Vec::new();
        for index in weights {
            let tensor = &self.task.subject.model.tensors[*index];
            let name = block.name_here(&tensor.name);
            if !model.has_weight(&name) {
                continue;
            }
            let probed = self.probed(*index)?;
            let values = probed.values().map_err(TensorError::of(&tensor.name))?;
            model.replace(&name, &values)?;
            drop(values);
            rounded.push((tensor, name.clone(), probed));
            let mut stream = self.copy(before)?;
            runner.advance(&mut stream)?;
            let found = stream.read(0, stream.rows())?;
            parts.insert(*index, relative_energy(behind, &found, self.stream.width()));
            let ty = self.source.ty(*index);
            let bytes = self
                .source
                .bytes(*index, ty)
                .map_err(WalkError::Treatment)?;
            model.replace_bytes(&name, &bytes)?;
        }
        for (tensor, name, probed) in rounded {
            let values = probed.values().map_err(TensorError::of(&tensor.name))?;
            model.replace(&name, &values)?;
        }
        Ok(parts)
    }

    fn copy(&self, rows: &[f32]) -> Result<Stream, BudgetError> {
        let width = self.stream.width();
        let mut stream = Stream::new(rows.len() / width, width, self.task.scratch)?;
        stream.write(0, rows)?;
        Ok(stream)
    }
}

/// The energy of a difference of rows, each relative to its own row's.
fn relative_energy(rows: &[f32], others: &[f32], width: usize) -> f64 {
    let pairs = rows.chunks(width).zip(others.chunks(width));
    pairs
        .map(|(a, b)| {
            let energy: f64 = a.iter().map(|v| f64::from(v * v)).sum();
            let lost: f64 = a
                .iter()
                .zip(b)
                .map(|(a, b)| f64::from((a - b).powi(2)))
                .sum();
            if energy > 0.0 { lost / energy } else { 0.0 }
        })
        .sum()
}
