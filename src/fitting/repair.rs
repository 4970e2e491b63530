//! Fits a pruned model block by block; each block repairs what those before it lost.
//!
//! The residual stream is a sum: what attention and feed-forward layers give is added to it.
//! Running the original and the copy side by side, the difference of their streams is known at each
//! layer from what both read, without the stream itself. The matrix that ends a layer is fitted so
//! that what the copy adds meets what the original adds and that difference too, by least squares
//! over all tokens; then the copy continues with it.

use std::collections::HashMap;

use super::side_by_side::{FitError, FitText, SideBySide};
use crate::architecture::{self, ModelTensor, Traits};
use crate::blockwise::{ROWS_PER_ELEMENT, Reason, Unfitted};
use crate::llama::lockstep::Pair;
use crate::llama::model::Model;
use crate::method::refit::{forward, regress};
use crate::plan::{Subject, TensorError, TransformError};
use crate::structure::{Block, Blocks, Fits, Inputs, Kept, Narrowed, Whole, narrowed};

/// How firmly a matrix is held to what it was, if it loses columns and if it does not, as a
/// fraction of its input's mean square.
const RIDGE: [f64; 2] = [0.5, 5.0];

/// Fits what ends each layer of a reduced model. `original` is the checkpoint, `running` the same
/// loaded so that its weights can be replaced; afterwards it computes what the reduced model does.
/// Of `fits`, from calibration, those of narrowed matrices are what they are held to. Gives the
/// matrices, and those that were not fitted.
///
/// # Errors
/// [`FitError`].
pub fn repair(
    whole: &Whole<'_>,
    kept: &Kept,
    fits: &Fits,
    [original, running]: [&Model; 2],
    text: &FitText<'_>,
    done: &mut dyn FnMut(usize, usize),
) -> Result<(Fits, Vec<Unfitted>), FitError> {
    let (subject, blocks) = (whole.subject, &whole.blocks);
    let model = subject.model;
    let is_dense = |b: &Block| b.ffn.as_ref().is_some_and(|f| f.experts == 1);
    if !Traits::of(&model.architecture).residual || !blocks.all.iter().all(is_dense) {
        return Err(FitError::Stream {
            architecture: model.architecture.clone(),
        });
    }
    turn_queries(whole, kept, running)?;
    let mut models = SideBySide::new(original, running, text)?;
    let ends = Ends::of(kept, blocks, model);
    let layers = models.inputs().to_vec();
    let end_of = |i: usize| {
        layers[i]
            .readers
            .iter()
            .find_map(|r| ends.by_name.get(r.weight.as_str()))
    };
    let wanted: Vec<bool> = (0..layers.len()).map(|i| end_of(i).is_some()).collect();
    let total = wanted.iter().filter(|w| **w).count();
    let mut repair = Repair {
        subject,
        fits,
        scale: model
            .metadata
            .get(&format!("{}.residual_scale", model.architecture))
            .and_then(|v| v.as_f64())
            .unwrap_or(1.0) as f32,
        difference: Vec::new(),
        at_the_end: models.reach_the_end(),
        changed: false,
        made: Fits::new(),
        unfitted: Vec::new(),
    };
    let mut count = 0;
    models.run(&wanted, &mut |Pair { first, second }| {
        let end = end_of(second.input);
        let fitted = end.map(|end| repair.layer(end, first, second.values));
        if let Some(values) = fitted.transpose()?.flatten() {
            for reader in &layers[second.input].readers {
                second.replace(reader, &values)?;
            }
        }
        count += 1;
        done(count, total);
        Ok(())
    })?;
    Ok((repair.made, repair.unfitted))
}

/// Gives the copy queries without the removed rotary pairs.
fn turn_queries(whole: &Whole<'_>, kept: &Kept, running: &Model) -> Result<(), FitError> {
    let (subject, blocks) = (whole.subject, &whole.blocks);
    let model = subject.model;
    let Some(pairs) = &kept.pairs else {
        return Ok(());
    };
    for (number, block) in blocks.all.iter().enumerate() {
        for index in block.attention.iter().flat_map(|a| &a.q) {
            let tensor = &model.tensors[*index];
            let w = subject.values(tensor);
            let w = w.map_err(TensorError::of(&tensor.name))?;
            let turned = pairs.turn(&w, tensor, number, model, blocks.key_length);
            running.replace(&tensor.name, &turned)?;
        }
    }
    Ok(())
}

/// The matrices that end layers.
struct Ends {
    by_name: HashMap<String, End>,
}

struct End {
    tensor: usize,
    columns: Columns,
}

enum Columns {
    All,
    Some(Inputs),
    /// The block is removed.
    None,
}

impl Ends {
    fn of(kept: &Kept, blocks: &Blocks, model: &architecture::Model) -> Ends {
        let mut by_name = HashMap::new();
        let mut add = |tensor: usize, columns| {
            by_name.insert(model.tensors[tensor].name.clone(), End { tensor, columns });
        };
        for (kept, block) in kept.blocks.iter().zip(&blocks.all) {
            let attention = block.attention.as_ref().map(|a| a.output);
            let ffn = block.ffn.as_ref().map(|f| f.down);
            for tensor in attention.into_iter().chain(ffn) {
                let columns = match kept {
                    Some(_) => Columns::All,
                    None => Columns::None,
                };
                add(tensor, columns);
            }
        }
        for Narrowed { tensor, inputs, .. } in narrowed(kept, blocks) {
            add(tensor, Columns::Some(inputs));
        }
        Ends { by_name }
    }
}

struct Repair<'a> {
    subject: Subject<'a>,
    fits: &'a Fits,
    /// What every layer's result is multiplied by before it is added.
    scale: f32,
    /// The original's stream less the copy's, in rows.
    difference: Vec<f32>,
    at_the_end: Vec<bool>,
    changed: bool,
    made: Fits,
    unfitted: Vec<Unfitted>,
}

impl Repair<'_> {
    /// Fits the matrix that ends a layer: the values of the same shape that the copy continues
    /// with, or none where nothing changes.
    fn layer(
        &mut self,
        end: &End,
        original: &[f32],
        now: &[f32],
    ) -> Result<Option<Vec<f32>>, FitError> {
        let tensor = &self.subject.model.tensors[end.tensor];
        let fitted = self.fit(end, tensor, original, now);
        tensor.release(self.subject.source);
        Ok(fitted.map_err(TensorError::of(&tensor.name))?)
    }

    fn fit(
        &mut self,
        end: &End,
        tensor: &ModelTensor,
        original: &[f32],
        now: &[f32],
    ) -> Result<Option<Vec<f32>>, TransformError> {
        let (n, rows) = (tensor.shape[0] as usize, tensor.shape[1] as usize);
        let tokens = original.len() / n;
        if self.difference.is_empty() {
            self.difference = vec![0.0; tokens * rows];
        }
        if self.difference.len() > tokens * rows {
            self.keep_the_end(rows);
        }
        if matches!(end.columns, Columns::All) && !self.changed {
            return Ok(None);
        }
        let w = self.subject.values(tensor)?;
        // What the copy's layer should add.
        let mut target = forward(original, &w, n, rows);
        let scale = self.scale;
        let pairs = target.iter_mut().zip(&self.difference);
        pairs.for_each(|(t, d)| *t += d / scale);
        self.changed = true;
        let (all, added) = match &end.columns {
            Columns::None => (vec![0.0; w.len()], None),
            // Too little was seen to change it.
            Columns::All if !self.is_enough(tensor, n, tokens, false) => {
                let added = forward(now, &w, n, rows);
                (w, Some(added))
            }
            Columns::All => {
                let fitted = regress(now, n, &target, &w, RIDGE[1])?;
                let added = forward(now, &fitted, n, rows);
                self.made.insert(end.tensor, fitted.clone());
                (fitted, Some(added))
            }
            Columns::Some(inputs) => {
                let prior = &self.fits[&end.tensor];
                let width = inputs.width();
                let picked = narrow(inputs, now, n);
                let fitted = if self.is_enough(tensor, width, tokens, true) {
                    regress(&picked, width, &target, prior, RIDGE[0])?
                } else {
                    prior.clone()
                };
                let added = forward(&picked, &fitted, width, rows);
                let all = widen(inputs, &fitted, n);
                self.made.insert(end.tensor, fitted);
                (all, Some(added))
            }
        };
        if let Some(added) = added {
            target.iter_mut().zip(added).for_each(|(t, a)| *t -= a);
        }
        target.iter_mut().for_each(|t| *t *= scale);
        self.difference = target;
        Ok(Some(all))
    }

    /// Whether enough was seen of a matrix's input to fit it; where not, that is noted. `measured`
    /// says whether it is fitted by calibration instead.
    fn is_enough(
        &mut self,
        tensor: &ModelTensor,
        width: usize,
        tokens: usize,
        measured: bool,
    ) -> bool {
        let needed = ROWS_PER_ELEMENT * width;
        if tokens < needed {
            self.unfitted.push(Unfitted {
                weights: vec![tensor.name.clone()],
                width,
                reason: Reason::TooFewTokens {
                    tokens,
                    needed,
                    measured,
                },
            });
        }
        tokens >= needed
    }

    /// In the last layer only some tokens continue.
    fn keep_the_end(&mut self, width: usize) {
        let rows = self.difference.chunks(width).zip(&self.at_the_end);
        let kept = rows.filter(|(_, stays)| **stays).flat_map(|(row, _)| row);
        self.difference = kept.copied().collect();
    }
}

/// Rows of n inputs as they reach a matrix that reads less.
fn narrow(inputs: &Inputs, rows: &[f32], n: usize) -> Vec<f32> {
    match inputs {
        Inputs::Values(projection) => projection.narrow(rows, n),
        Inputs::Columns(lists) => {
            let of_row = |row: &[f32]| lists[0].iter().map(|c| row[*c]).collect::<Vec<_>>();
            rows.chunks(n).flat_map(of_row).collect()
        }
    }
}

/// A matrix that reads less as one that reads all n inputs.
fn widen(inputs: &Inputs, w: &[f32], n: usize) -> Vec<f32> {
    match inputs {
        Inputs::Values(projection) => projection.widen(w, n),
        Inputs::Columns(lists) => {
            let mut all = vec![0.0; w.len() / lists[0].len() * n];
            for (row, short) in all.chunks_mut(n).zip(w.chunks(lists[0].len())) {
                lists[0].iter().zip(short).for_each(|(c, v)| row[*c] = *v);
            }
            all
        }
    }
}
