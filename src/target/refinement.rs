//! Local search: refines a choice of types by writing and measuring files.
//!
//! Sensitivities are measured with all but a few tensors whole. Where all are rounded, errors of
//! some roles and depths cost more than their sum, of others less. So what an error counts gets one
//! factor for each role and for each quarter of the depth, and the factors are found by pattern
//! search (Hooke and Jeeves, 1961) over measured divergences, at the same bytes.

use std::collections::BTreeMap;

use dwindle_formats::gguf::TensorType;

use super::{BudgetError, Chosen, Costs, Task, of_size};
use crate::architecture::role;

/// By what a factor is tried larger and smaller at first.
const FIRST_STEP: f64 = 2.0;

/// The step from which no more is tried.
const LAST_STEP: f64 = 1.1;

/// The fraction of a divergence by which a file must be better; less is taken for chance.
const LEAST_GAIN: f64 = 0.003;

/// Parts of the depth that have a factor of their own.
const DEPTHS: usize = 4;

/// The search. It proposes files; the caller writes them, measures them and reports the result,
/// until none is proposed any more.
pub struct Refinement<'a> {
    task: Task<'a>,
    bytes: u64,
    /// Positions of tensors that share a factor.
    classes: Vec<Vec<usize>>,
    /// The best so far: what errors count, the types, and the measured divergence.
    best: (Costs, Chosen, f64),
    /// What is being measured.
    proposed: Option<(Costs, Chosen)>,
    tried: Vec<BTreeMap<String, TensorType>>,
    step: f64,
    /// The class that is next, and whether its factor is to grow or to fall.
    at: usize,
    grows: bool,
    /// Whether this round over all classes has bettered anything.
    has_gained: bool,
    left: usize,
}

impl<'a> Refinement<'a> {
    /// Begins with a choice and the divergence that was measured of it; at most `files` are
    /// proposed.
    pub fn new(
        costs: &Costs,
        task: Task<'a>,
        (chosen, kld): (Chosen, f64),
        files: usize,
    ) -> Refinement<'a> {
        Refinement {
            task,
            bytes: chosen.bytes,
            classes: classes(costs),
            tried: vec![chosen.assignment.types.clone()],
            best: (costs.clone(), chosen, kld),
            proposed: None,
            step: FIRST_STEP,
            at: 0,
            grows: true,
            has_gained: false,
            left: files,
        }
    }

    /// The next file to make and to measure.
    ///
    /// # Errors
    /// A type that can't be written.
    pub fn propose(&mut self) -> Result<Option<Chosen>, BudgetError> {
        while self.left > 0 && self.step >= LAST_STEP && !self.classes.is_empty() {
            let factor = if self.grows {
                self.step
            } else {
                1.0 / self.step
            };
            let costs = self.best.0.with_factor(&self.classes[self.at], factor);
            let chosen = of_size(&costs, &self.task, self.bytes)?;
            if self.tried.contains(&chosen.assignment.types) {
                self.turn();
                continue;
            }
            self.tried.push(chosen.assignment.types.clone());
            self.left -= 1;
            self.proposed = Some((costs, chosen.clone()));
            return Ok(Some(chosen));
        }
        Ok(None)
    }

    /// Tells what the file that was proposed diverges by.
    pub fn found(&mut self, kld: f64) {
        match self.proposed.take() {
            // What was good is tried once more, farther.
            Some((costs, chosen)) if kld < (1.0 - LEAST_GAIN) * self.best.2 => {
                self.best = (costs, chosen, kld);
                self.has_gained = true;
            }
            _ => self.turn(),
        }
    }

    /// What errors count, and the best choice.
    pub fn finish(self) -> (Costs, Chosen) {
        (self.best.0, self.best.1)
    }

    /// Goes on to the other direction, the next class, or a smaller step.
    fn turn(&mut self) {
        self.grows = !self.grows;
        if !self.grows {
            return;
        }
        self.at += 1;
        if self.at == self.classes.len() {
            self.at = 0;
            if !std::mem::take(&mut self.has_gained) {
                self.step = self.step.sqrt();
            }
        }
    }
}

/// Tensors of a role, and tensors of a range of layers.
fn classes(costs: &Costs) -> Vec<Vec<usize>> {
    let names: Vec<&str> = costs.names().collect();
    let layers = names.iter().filter_map(|n| role(n).0).max().unwrap_or(0) as usize + 1;
    let mut roles: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut depths = vec![Vec::new(); DEPTHS.min(layers)];
    for (i, name) in names.iter().enumerate() {
        let (layer, role) = role(name);
        roles.entry(role).or_default().push(i);
        if let Some(layer) = layer {
            let depth = layer as usize * depths.len() / layers;
            depths[depth].push(i);
        }
    }
    let all = roles.into_values().chain(depths);
    all.filter(|class| class.len() < names.len()).collect()
}
