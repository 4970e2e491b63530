//! Shares a budget of parameters over the blocks.

use rayon::prelude::*;

use super::blocks::{FeedForward, Whole, parameters};
use super::form;
use super::kept::Kept;
use super::orders::{Orders, left};
use super::pairs::Pairs;
use super::{StructureError, experts, heads};
use crate::method::allocate::{Choice, choose};
use crate::method::nystrom::Elimination;
use crate::plan::Structure;

/// The smallest fraction of a feed-forward layer's columns that a budget keeps.
const LEAST_WIDTH: f64 = 0.25;

/// Decides what is kept besides rotary pairs, which were chosen before. Widths are multiples of
/// `granule` where the layers are that wide. `done` is called when the columns of one more block
/// are in order.
///
/// # Errors
/// [`StructureError`].
pub fn decide(
    whole: &Whole<'_>,
    wanted: &Structure,
    pairs: Option<Pairs>,
    granule: usize,
    done: &(dyn Fn() + Sync),
) -> Result<Kept, StructureError> {
    let blocks = &whole.blocks;
    super::check::check(wanted, whole.subject.model, blocks)?;
    let drop = wanted.drop.numbers();
    let stays = |block: &usize| !drop.contains(block);
    let staying: Vec<usize> = (0..blocks.all.len()).filter(stays).collect();
    let orders = Orders(whole);
    let mut kept = Kept::without(drop, pairs, blocks);
    heads::choose(&mut kept, wanted, &orders)?;
    experts::choose(&mut kept, wanted, &orders)?;
    form::architecture(&kept, whole.subject.model, blocks)?;
    if wanted.ffn.is_none() && wanted.keep.is_none() {
        return Ok(kept);
    }
    let layers: Vec<(usize, &FeedForward)> = staying
        .iter()
        .map(|i| Ok((*i, orders.ffn(*i)?)))
        .collect::<Result<_, StructureError>>()?;
    // At least this many columns are kept: only the order of the others is needed.
    let least = |ffn: &FeedForward| match wanted.ffn {
        Some(fraction) => rounded(fraction * ffn.width as f64, ffn.width, granule),
        None => ((ffn.width as f64 * LEAST_WIDTH) as usize).max(1),
    };
    let sweeps: Vec<Vec<Elimination>> = layers
        .par_iter()
        .map(|(_, ffn)| orders.columns(ffn, least(ffn)).inspect(|_| done()))
        .collect::<Result<_, _>>()?;
    let widths = match (wanted.ffn, wanted.keep) {
        (Some(_), _) => layers.iter().map(|(_, ffn)| least(ffn)).collect(),
        (None, keep) => orders.share(&layers, &sweeps, keep.unwrap_or(1.0), granule)?,
    };
    for (((block, ffn), sweeps), width) in layers.iter().zip(&sweeps).zip(widths) {
        if let Some(kept) = kept.blocks[*block].as_mut().filter(|_| width < ffn.width) {
            kept.columns = sweeps.iter().map(|s| left(s, ffn.width, width)).collect();
        }
    }
    Ok(kept)
}

/// Widths of a layer with what each costs.
type Widths = Vec<(usize, Choice)>;

/// One item of all layers, whose widths are the same.
fn together(items: &[Widths]) -> Widths {
    let sum = |i: usize| {
        let choices = items.iter().map(|item| item[i].1);
        let none = Choice {
            cost: 0,
            error: 0.0,
        };
        choices.fold(none, |s, c| Choice {
            cost: s.cost + c.cost,
            error: s.error + c.error,
        })
    };
    let widths = items[0].iter().enumerate();
    widths.map(|(i, (width, _))| (*width, sum(i))).collect()
}

/// A width as a multiple of the granule, at least one.
fn rounded(width: f64, full: usize, granule: usize) -> usize {
    if full < 2 * granule {
        return (width.round() as usize).clamp(1, full);
    }
    let granules = (width / granule as f64).round() as usize;
    (granules * granule).clamp(granule, full)
}

impl Orders<'_> {
    /// Shares a budget: one width for each layer, or where the architecture has but one, that.
    fn share(
        &self,
        layers: &[(usize, &FeedForward)],
        sweeps: &[Vec<Elimination>],
        keep: f64,
        granule: usize,
    ) -> Result<Vec<usize>, StructureError> {
        let apart = form::allows_irregular(self.subject.model, &self.blocks);
        let mut items: Vec<Widths> = Vec::new();
        for ((_, ffn), sweeps) in layers.iter().zip(sweeps) {
            let weight = if apart { self.sensitivity(ffn)? } else { 1.0 };
            items.push(self.choices(ffn, sweeps, weight, granule));
        }
        if !apart {
            if items.iter().any(|item| item.len() != items[0].len()) {
                return Err(form::differ(&self.subject.model.architecture));
            }
            items = vec![together(&items)];
        }
        let choices: Vec<Vec<Choice>> = items
            .iter()
            .map(|item| item.iter().map(|(_, choice)| *choice).collect())
            .collect();
        let largest = |item: &Vec<Choice>| item.iter().map(|c| c.cost).max().unwrap_or(0);
        let all: u64 = choices.iter().map(largest).sum();
        let blocks = parameters(self.subject.model, |_| true) as f64;
        // Parameters of the kept blocks that no choice changes.
        let fixed = parameters(self.subject.model, |b| layers.iter().any(|(i, _)| *i == b)) - all;
        let budget = (keep * blocks) as i128 - i128::from(fixed);
        let least: u64 = choices
            .iter()
            .filter_map(|i| i.iter().map(|c| c.cost).min())
            .sum();
        if budget < i128::from(least) {
            let least = (fixed + least) as f64 / blocks;
            return Err(StructureError::Target {
                what: "`keep`",
                found: keep.to_string(),
                expected: format!("{least:.3} or more of this model's blocks"),
            });
        }
        let taken = choose(&choices, budget as u64).map_err(|source| StructureError::Method {
            tensor: self.tensor(layers[0].1.down).name.clone(),
            source,
        })?;
        let widths = taken.shares.iter().zip(&items).map(|(i, item)| item[*i].0);
        let widths: Vec<usize> = widths.collect();
        Ok((0..layers.len())
            .map(|i| widths[i.min(widths.len() - 1)])
            .collect())
    }

    fn sensitivity(&self, ffn: &FeedForward) -> Result<f64, StructureError> {
        let tensor = &self.tensor(ffn.down).name;
        let known = self
            .subject
            .measured
            .diagnosis
            .and_then(|d| d.sensitivity(tensor));
        known.ok_or_else(|| StructureError::DiagnosisMissing {
            tensor: tensor.clone(),
        })
    }

    /// Widths of a layer with their parameters and what they cost the output.
    fn choices(
        &self,
        ffn: &FeedForward,
        sweeps: &[Elimination],
        weight: f64,
        granule: usize,
    ) -> Vec<(usize, Choice)> {
        let down = &self.tensor(ffn.down).name;
        let tokens = |slice: usize| self.subject.measured.tokens(down, slice) as f64;
        let total: f64 = (0..ffn.experts).map(tokens).sum();
        let parameters = |index: &usize| self.tensor(*index).elements();
        let all: u64 = ffn.rows.iter().chain([&ffn.down]).map(parameters).sum();
        let granule = if ffn.width < 2 * granule { 1 } else { granule };
        let most = sweeps.iter().map(|s| s.order.len()).min().unwrap_or(0);
        (0..=most / granule)
            .map(|steps| {
                let width = (ffn.width - 1) / granule * granule + granule - steps * granule;
                let width = width.min(ffn.width);
                let gone = ffn.width - width;
                let error = |(slice, sweep): (usize, &Elimination)| match gone {
                    0 => 0.0,
                    _ if total > 0.0 => tokens(slice) / total * sweep.errors[gone - 1],
                    _ => sweep.errors[gone - 1],
                };
                let choice = Choice {
                    cost: all / ffn.width as u64 * width as u64,
                    error: weight * sweeps.iter().enumerate().map(error).sum::<f64>(),
                };
                (width, choice)
            })
            .collect()
    }
}
