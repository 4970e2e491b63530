//! What calibration learned of a model's keys and values: the coordinates in which they take the fewest bits.
//!
//! Neighbouring layers form groups. In a group, keys (before RoPE) and values each have a mean, a metric that says what an
//! error of them costs, and components, orthonormal in that metric, in the order of how much the model's own rows vary
//! along them.

mod file;
mod making;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::cells::Cells;
use crate::error::KvError;
use crate::turns::Rotary;

pub use making::{Cut, Metrics, Moments};

/// Keys or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Keys.
    Keys,
    /// Values.
    Values,
}

/// The shape of what a model keeps of a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Geometry {
    /// Elements of each layer's keys.
    pub keys: Vec<usize>,
    /// Elements of each layer's values.
    pub values: Vec<usize>,
    /// Elements of a head's key.
    pub key_head: usize,
    /// Elements of a head's value.
    pub value_head: usize,
    /// The rotation of each layer's keys; none without RoPE.
    pub rotary: Option<Vec<Rotary>>,
}

/// Layers that are coded together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Their keys or their values.
    pub kind: Kind,
    /// Which layers.
    pub layers: Range<usize>,
    /// The mean of each element.
    pub mean: Vec<f32>,
    /// For each head a symmetric matrix M, row by row: an error e of the head costs eᵀMe.
    pub metric: Vec<f32>,
    /// The components, as rows of as many elements as the group has.
    pub basis: Vec<f32>,
    /// How many of the first components are kept with 16 bits; the others have 8.
    pub precise: usize,
    /// The standard deviation along each component.
    pub deviations: Vec<f32>,
}

/// How much finer some cells are coded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Finer {
    /// Cells with fewer than so many before, or after, them.
    pub within: usize,
    /// Their step, in steps of those in the middle.
    pub factor: f32,
}

/// How cells are coded by their place in a text. What stands first draws attention from everywhere, what stands last from
/// what follows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Places {
    /// How many of the first cells are kept bit by bit.
    pub exact: usize,
    /// The first cells, in the order of `within`.
    pub first: Vec<Finer>,
    /// The last cells, in the order of `within`.
    pub last: Vec<Finer>,
}

impl Places {
    /// The step of a cell with so many before and after it, in steps of those in the middle.
    pub fn factor(&self, before: usize, after: usize) -> f32 {
        let of = |list: &[Finer], distance: usize| {
            let found = list.iter().find(|finer| distance < finer.within);
            found.map_or(1.0, |finer| finer.factor)
        };
        of(&self.first, before).min(of(&self.last, after))
    }

    /// Whether a range of so many cells has some with a finer step.
    pub fn are_finer(&self, range: &Range<usize>, count: usize) -> bool {
        let reach = |list: &[Finer]| list.iter().map(|f| f.within).max().unwrap_or(0);
        range.start < reach(&self.first) || range.end.saturating_add(reach(&self.last)) > count
    }

    fn is_sound(&self) -> bool {
        let mut all = self.first.iter().chain(&self.last);
        self.exact <= 1 << 10 && all.all(|f| f.factor > 1e-3 && f.factor <= 1.0)
    }
}

/// What a step gave on texts that the codebook was not made from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The step.
    pub step: f32,
    /// Bytes of keys and values in F16 for each packed one.
    pub ratio: f64,
    /// The mean divergence of what the model then says, in nats.
    pub kld: f64,
}

/// Where a codebook comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// A digest of the model.
    pub model: String,
    /// llama.cpp's name of the model's family.
    pub architecture: String,
    /// The name of the text.
    pub text: String,
    /// Tokens that were measured.
    pub tokens: u64,
}

/// A codebook.
#[derive(Debug, Clone, PartialEq)]
pub struct Codebook {
    /// Where it comes from.
    pub origin: Origin,
    /// What it fits.
    pub geometry: Geometry,
    /// Groups: of keys and of values, each in the order of layers.
    pub groups: Vec<Group>,
    /// How cells are coded by their place.
    pub places: Places,
    /// In the order of steps.
    pub trials: Vec<Trial>,
}

impl Geometry {
    /// Elements of a layer.
    pub fn width(&self, kind: Kind, layer: usize) -> usize {
        match kind {
            Kind::Keys => self.keys[layer],
            Kind::Values => self.values[layer],
        }
    }

    /// Elements of a head.
    pub fn head(&self, kind: Kind) -> usize {
        match kind {
            Kind::Keys => self.key_head,
            Kind::Values => self.value_head,
        }
    }

    /// Elements of some layers.
    pub fn width_of(&self, kind: Kind, layers: Range<usize>) -> usize {
        layers.map(|layer| self.width(kind, layer)).sum()
    }

    /// Layers with such rows.
    pub fn layers(&self, kind: Kind) -> usize {
        match kind {
            Kind::Keys => self.keys.len(),
            Kind::Values => self.values.len(),
        }
    }

    /// The rows of some layers side by side.
    pub(crate) fn gather(&self, kind: Kind, layers: Range<usize>, cells: &Cells) -> Vec<f32> {
        let width = self.width_of(kind, layers.clone());
        let mut rows = vec![0.0; width * cells.positions.len()];
        let mut begin = 0;
        for layer in layers {
            let source = match kind {
                Kind::Keys => &cells.keys[layer],
                Kind::Values => &cells.values[layer],
            };
            let len = self.width(kind, layer);
            for (to, from) in rows.chunks_exact_mut(width).zip(source.chunks_exact(len)) {
                to[begin..begin + len].copy_from_slice(from);
            }
            begin += len;
        }
        rows
    }

    /// Turns all keys forward, to what is saved, or back.
    pub fn turn(&self, cells: &mut Cells, is_back: bool) {
        let Some(rotary) = &self.rotary else { return };
        let mut table = None;
        for (layer, rows) in cells.keys.iter_mut().enumerate() {
            // Layers mostly share their angles.
            if layer == 0 || rotary[layer] != rotary[layer - 1] {
                table = Some(rotary[layer].table(&cells.positions));
            }
            if let Some(table) = &table {
                table.turn(rows, self.keys[layer], self.key_head, is_back);
            }
        }
    }

    /// Whether cells of these widths are such a model's.
    ///
    /// # Errors
    /// They are another's.
    pub fn check(&self, keys: &[usize], values: &[usize]) -> Result<(), KvError> {
        let shown = |widths: &[usize]| format!("{} layers of {:?}", widths.len(), widths.first());
        for (what, found, expected) in [
            ("the shape of the keys", keys, &self.keys),
            ("the shape of the values", values, &self.values),
        ] {
            if found != expected {
                return Err(KvError::OtherModel {
                    what,
                    found: shown(found),
                    expected: shown(expected),
                });
            }
        }
        Ok(())
    }

    /// Whether the numbers fit one another, and are such as models have.
    fn is_sound(&self) -> bool {
        let divides = |widths: &[usize], head: usize| {
            let fits = |w: &usize| *w > 0 && *w <= MAX_WIDTH && w.is_multiple_of(head);
            head > 0 && widths.len() <= MAX_LAYERS && widths.iter().all(fits)
        };
        let rotary = self
            .rotary
            .as_ref()
            .is_none_or(|r| r.len() == self.keys.len() && r.iter().all(|r| r.fits(self.key_head)));
        divides(&self.keys, self.key_head) && divides(&self.values, self.value_head) && rotary
    }
}

/// More than any model has.
const MAX_LAYERS: usize = 1 << 12;
const MAX_WIDTH: usize = 1 << 22;

impl Codebook {
    /// The step at which a trial gave this divergence or less; straight between trials, in logarithms.
    pub fn step_for(&self, kld: f64) -> Option<f32> {
        let points = self
            .trials
            .iter()
            .map(|t| (t.kld.ln(), f64::from(t.step).ln()));
        between(&points.collect::<Vec<_>>(), kld.ln()).map(|step| step.exp() as f32)
    }

    /// One of its groups as a codebook of its own: of a model that has only its layers, and of those only what it codes.
    pub fn alone(&self, group: usize) -> Codebook {
        let (geometry, group) = (&self.geometry, &self.groups[group]);
        let layers = group.layers.clone();
        let (keys, values) = match group.kind {
            Kind::Keys => (geometry.keys[layers.clone()].to_vec(), Vec::new()),
            Kind::Values => (Vec::new(), geometry.values[layers.clone()].to_vec()),
        };
        let rotary = geometry
            .rotary
            .as_ref()
            .map(|r| r[layers.start..layers.start + keys.len()].to_vec());
        Codebook {
            origin: self.origin.clone(),
            geometry: Geometry {
                keys,
                values,
                rotary,
                ..geometry.clone()
            },
            groups: vec![Group {
                layers: 0..layers.len(),
                ..group.clone()
            }],
            places: Places::default(),
            trials: Vec::new(),
        }
    }

    /// The step at which errors cost about so much a cell, by the metrics: a component's cost is a twelfth of the squared
    /// step, or its variance, whichever is less.
    pub fn step_of_cost(&self, cost: f64) -> f32 {
        let deviations = || self.groups.iter().flat_map(|g| &g.deviations);
        let at = |step: f64| -> f64 {
            let uniform = step * step / 12.0;
            deviations()
                .map(|d| f64::from(*d).powi(2).min(uniform))
                .sum()
        };
        let (mut low, mut high) = (0.0, 1.0);
        let most = deviations().map(|d| f64::from(*d)).fold(0.0, f64::max) * 12f64.sqrt();
        while high < most && at(high) < cost {
            high *= 2.0;
        }
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            *(if at(middle) < cost {
                &mut low
            } else {
                &mut high
            }) = middle;
        }
        high as f32
    }

    /// The divergence that trials lead to expect of a step.
    pub fn kld_at(&self, step: f32) -> Option<f64> {
        let points = self
            .trials
            .iter()
            .map(|t| (f64::from(t.step).ln(), t.kld.ln()));
        between(&points.collect::<Vec<_>>(), f64::from(step).ln()).map(f64::exp)
    }
}

/// The ordinate at `x` of a line through points in the order of abscissas, whose ends go on straight.
fn between(points: &[(f64, f64)], x: f64) -> Option<f64> {
    let above = points.partition_point(|(a, _)| *a <= x);
    let first = above.clamp(1, points.len().checked_sub(1)?.max(1)) - 1;
    let ((a, from), (b, to)) = (*points.get(first)?, *points.get(first + 1)?);
    (b > a).then(|| from + (x - a) / (b - a) * (to - from))
}

#[cfg(test)]
mod tests {
    use super::between;

    #[test]
    fn lines_go_through_points_and_on() {
        let points = [(0.0, 1.0), (1.0, 3.0), (2.0, 4.0)];
        assert_eq!(between(&points, 0.5), Some(2.0));
        assert_eq!(between(&points, 1.5), Some(3.5));
        assert_eq!(between(&points, 3.0), Some(5.0));
        assert_eq!(between(&points, -1.0), Some(-1.0));
        assert_eq!(between(&points[..1], 0.0), None);
        assert_eq!(between(&[], 0.0), None);
    }
}
