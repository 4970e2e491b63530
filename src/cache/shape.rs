//! What a model's keys and values look like, and what an error of them costs.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::CacheError;
use crate::architecture::{self, Model as Described};
use crate::checkpoint::Source;
use crate::kv::codebook::{Geometry, Metrics};
use crate::kv::{Pairing, Rotary, angles};
use crate::llama::model::Model;
use crate::llama::queries::Queries;

/// Queries of each layer, as sums of their products before RoPE.
#[derive(Debug, Default)]
pub struct Asked {
    rotary: Option<Rotary>,
    layers: BTreeMap<usize, Layer>,
}

#[derive(Debug)]
struct Layer {
    key_head: usize,
    value_head: usize,
    seen: usize,
    /// Of each head of keys, a matrix row by row.
    products: Vec<Vec<f64>>,
}

/// The weights of a checkpoint that say more than a running model shows.
pub struct Weights {
    source: Box<dyn Source>,
    model: Described,
}

impl Weights {
    /// Those of a checkpoint; `None` where they can't be read, as in a container of factors.
    pub fn open(path: &Path) -> Option<Weights> {
        let (source, model) = architecture::open(path).ok()?;
        Some(Weights { source, model })
    }

    /// A weight, and the length of its rows.
    fn matrix(&self, name: &str) -> Option<(usize, Vec<f32>)> {
        let tensor = self.model.tensors.iter().find(|t| t.name == name)?;
        let rows = 0..tensor.row_count();
        let values = architecture::values(tensor, self.source.as_ref(), rows).ok()?;
        Some((*tensor.shape.first()? as usize, values))
    }
}

impl Asked {
    /// Adds the queries of tokens at these positions.
    pub fn add(&mut self, model: &Model, weights: Option<&Weights>, q: Queries<'_>, first: usize) {
        if self.layers.is_empty() {
            self.rotary = rotary(model, weights, q.key_head);
        }
        let (head, heads, askers) = (q.key_head.max(1), q.key_heads.max(1), q.query_heads.max(1));
        let layer = self.layers.entry(q.layer).or_insert_with(|| Layer {
            key_head: head,
            value_head: q.value_head,
            seen: 0,
            products: vec![vec![0.0; head * head]; heads],
        });
        layer.seen = layer.seen.max(q.seen);
        let tokens = q.rows.len() / head / askers;
        let mut rows = q.rows.to_vec();
        if let Some(rotary) = &self.rotary {
            let positions: Vec<i32> = (0..tokens).map(|t| (first + t) as i32).collect();
            for head_rows in rows.chunks_mut((tokens * head).max(1)) {
                rotary.turn_rows(&positions, head_rows, head, true);
            }
        }
        for (h, rows) in rows.chunks((tokens * head).max(1)).enumerate() {
            let products = &mut layer.products[h * heads / askers];
            // A few tokens of each batch say as much as all.
            for row in rows.chunks_exact(head).step_by(4) {
                for (i, a) in row.iter().enumerate() {
                    let line = &mut products[i * head..(i + 1) * head];
                    line.iter_mut()
                        .zip(row)
                        .for_each(|(p, b)| *p += f64::from(a * b));
                }
            }
        }
    }

    /// Layers that keep the whole text, in order: those with sliding windows see less.
    fn whole(&self) -> Vec<(usize, &Layer)> {
        let most = self.layers.values().map(|l| l.seen).max();
        let layers = self.layers.iter().map(|(number, layer)| (*number, layer));
        layers
            .filter(|(_, layer)| Some(layer.seen) == most)
            .collect()
    }

    /// The shape, given the widths of what is saved.
    ///
    /// # Errors
    /// No layer's queries were seen, or of others than are saved.
    pub fn geometry(&self, keys: Vec<usize>, values: Vec<usize>) -> Result<Geometry, CacheError> {
        let layers = self.whole();
        let (_, first) = layers.first().ok_or(CacheError::NoAttention)?;
        let heads = |layer: &Layer| (layer.key_head, layer.value_head);
        let is_alike = layers.iter().all(|(_, layer)| heads(layer) == heads(first));
        let divides = |widths: &[usize], head: usize| {
            head > 0 && widths.iter().all(|w| w.is_multiple_of(head))
        };
        let fits = layers.len() == keys.len()
            && is_alike
            && divides(&keys, first.key_head)
            && (values.is_empty() || divides(&values, first.value_head));
        if !fits {
            return Err(CacheError::NoAttention);
        }
        let rotary = self.rotary.as_ref();
        Ok(Geometry {
            rotary: rotary.map(|r| vec![r.clone(); keys.len()]),
            key_head: first.key_head,
            value_head: first.value_head,
            keys,
            values,
        })
    }

    /// What errors cost: of keys, by the queries that meet them at all distances; of values, by what the layer makes of
    /// them.
    pub fn metrics(&self, geometry: &Geometry, weights: Option<&Weights>) -> Metrics {
        let layers = self.whole();
        let keys = layers.iter().map(|(_, layer)| {
            let averaged = layer
                .products
                .iter()
                .map(|p| self.averaged(p, layer.key_head));
            averaged.flatten().collect()
        });
        let values = layers.iter().zip(&geometry.values);
        let values = values.map(|((number, layer), width)| {
            let name = format!("blk.{number}.attn_output.weight");
            let output = weights.and_then(|w| w.matrix(&name));
            of_output(output, layer.value_head, width / layer.value_head)
        });
        Metrics {
            keys: keys.collect(),
            values: values.collect(),
        }
    }

    /// Products of queries, as they meet keys at distances of which far ones are rarer.
    fn averaged(&self, products: &[f64], head: usize) -> Vec<f32> {
        let mut sum = vec![0f64; head * head];
        let distances = std::iter::successors(Some(1f64), |d| Some(d * 1.3));
        let distances = distances.take_while(|d| *d < 4096.0);
        let mut count = 0.0;
        for distance in distances {
            let turned = self.turned(products, head, distance as i32);
            sum.iter_mut()
                .zip(&turned)
                .for_each(|(s, t)| *s += f64::from(*t));
            count += 1.0;
        }
        sum.iter().map(|s| (s / count) as f32).collect()
    }

    /// R·P·Rᵀ of a symmetric P, where R turns by a distance.
    fn turned(&self, products: &[f64], head: usize, distance: i32) -> Vec<f32> {
        let scale = products
            .iter()
            .step_by(head + 1)
            .sum::<f64>()
            .max(f64::MIN_POSITIVE);
        let mut rows: Vec<f32> = products.iter().map(|p| (p / scale) as f32).collect();
        let Some(rotary) = &self.rotary else {
            return rows;
        };
        let distances = vec![distance; head];
        // Rows first, then the rows of the transpose.
        for _ in 0..2 {
            rotary.turn_rows(&distances, &mut rows, head, false);
            let transposed = (0..head * head).map(|i| rows[i % head * head + i / head]);
            rows = transposed.collect();
        }
        rows
    }
}

/// The rotation of a model's keys.
fn rotary(model: &Model, weights: Option<&Weights>, head: usize) -> Option<Rotary> {
    let rope = model.rope()?;
    let elements = rope.elements.unwrap_or(head).min(head) / 2 * 2;
    let factors = weights
        .and_then(|w| w.matrix("rope_freqs.weight"))
        .map(|f| f.1);
    let scales = (rope.base, rope.scale);
    Some(Rotary {
        pairing: match rope.is_by_halves {
            true => Pairing::Halves,
            false => Pairing::Neighbours,
        },
        // In latent attention, what is turned stands behind what is not.
        first: if rope.is_latent { head - elements } else { 0 },
        angles: angles(elements / 2, scales, rope.stretched, factors.as_deref()),
    })
}

/// For each head of values the sum of WᵀW over the columns W of the output matrix that read it; without one, the identity.
fn of_output(output: Option<(usize, Vec<f32>)>, head: usize, heads: usize) -> Vec<f32> {
    let fits = |columns: usize| columns > 0 && columns.is_multiple_of(head * heads);
    let Some((columns, output)) = output.filter(|(columns, _)| fits(*columns)) else {
        let identity = |i: usize| {
            if (i % (head * head)).is_multiple_of(head + 1) {
                1.0
            } else {
                0.0
            }
        };
        return (0..heads * head * head).map(identity).collect();
    };
    let mut sums = vec![0f64; heads * head * head];
    // Each head of values is read by as many heads of queries, which stand side by side.
    let shared = columns / head / heads;
    for row in output.chunks_exact(columns) {
        for (h, part) in row.chunks_exact(head).enumerate() {
            let sums = &mut sums[h / shared * head * head..][..head * head];
            for (i, a) in part.iter().enumerate() {
                let line = &mut sums[i * head..(i + 1) * head];
                line.iter_mut()
                    .zip(part)
                    .for_each(|(s, b)| *s += f64::from(a * b));
            }
        }
    }
    sums.iter().map(|s| *s as f32).collect()
}
