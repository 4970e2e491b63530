//! What the parts of a tensor stand for, multiplied out.

use dwindle_formats::container::{Form, Over, StoredTensor};

use crate::method::cp::Cp;
use crate::method::svd;
use crate::method::tensor::transpose;
use crate::method::tensor_train::{Operator, Train};
use crate::method::tucker::Tucker;

/// The values of a tensor. `parts` are the values of its own parts, or of those of the tensor that
/// holds its stack; `input` is the factor that it takes from another tensor; `slice` counts in a
/// stack over layers and is 0 elsewhere.
///
/// The shapes have passed the container's checks.
pub(crate) fn multiply_out(
    holder: &StoredTensor,
    parts: &[Vec<f32>],
    input: Option<&[f32]>,
    slice: usize,
) -> Vec<f32> {
    let shape: Vec<usize> = holder.shape.iter().map(|d| *d as usize).collect();
    let parts = Parts { holder, parts };
    let n = shape[0];
    match &holder.form {
        Form::Dense | Form::Slice { .. } => parts.parts.first().cloned().unwrap_or_default(),
        Form::LowRank | Form::SharedLowRank { .. } => {
            let (m, slices) = (shape[1], shape.get(2).copied().unwrap_or(1));
            let b = parts.values("b");
            let a = input.unwrap_or(parts.values("a"));
            let rank = b.len() / (m * slices);
            a.chunks_exact(n * rank)
                .zip(b.chunks_exact(m * rank))
                .flat_map(|(a, b)| svd::multiply_out(a, b, n, m, rank))
                .collect()
        }
        Form::SparseLowRank => {
            let (a, b) = (parts.values("a"), parts.values("b"));
            let mut w = svd::multiply_out(a, b, n, shape[1], a.len() / n);
            w.iter_mut()
                .zip(parts.values("s"))
                .for_each(|(w, s)| *w += s);
            w
        }
        Form::Tucker { over, slices } => parts.tucker(n, *over, *slices as usize, slice),
        Form::Cp { over, slices } => parts.cp(n, *over, *slices as usize, slice),
        Form::TensorTrain { over, rows, cols } => parts.train(*over, rows, cols, slice),
    }
}

struct Parts<'a> {
    holder: &'a StoredTensor,
    parts: &'a [Vec<f32>],
}

impl Parts<'_> {
    fn place(&self, suffix: &str) -> Option<usize> {
        let named = |name: &str| {
            name.strip_prefix(&self.holder.name)
                .and_then(|rest| rest.strip_prefix('.'))
                == Some(suffix)
        };
        self.holder.parts.iter().position(|p| named(&p.name))
    }

    fn get(&self, suffix: &str) -> Option<&[f32]> {
        Some(&self.parts[self.place(suffix)?])
    }

    fn values(&self, suffix: &str) -> &[f32] {
        self.get(suffix).unwrap_or(&[])
    }

    /// Rows of one slice.
    fn slice_rows(&self, over: Over, slices: usize) -> usize {
        let rows = self.holder.shape[1] as usize;
        if over == Over::Heads {
            rows / slices
        } else {
            rows
        }
    }

    fn tucker(&self, n: usize, over: Over, slices: usize, slice: usize) -> Vec<f32> {
        let rows = self.slice_rows(over, slices);
        let core = self.values("core");
        let shape = self.place("core").map(|p| &self.holder.parts[p].shape);
        let Some([r2, r1, r0]) = shape.map(|s| [s[0], s[1], s[2]].map(|d| d as usize)) else {
            return Vec::new();
        };
        let s = self.get("s");
        let mut tucker = Tucker {
            dims: [slices, rows, n],
            ranks: [r0, r1, r2],
            core: core.to_vec(),
            factors: [
                s.map(<[f32]>::to_vec),
                self.get("b").map(<[f32]>::to_vec),
                self.get("a").map(|a| transpose(a, r2, n)),
            ],
            errors: Vec::new(),
        };
        if over == Over::Layers {
            tucker.dims[0] = 1;
            match s {
                Some(s) => tucker.factors[0] = Some(s[slice * r0..(slice + 1) * r0].to_vec()),
                None => {
                    let len = r1 * r2;
                    tucker.core = core[slice * len..(slice + 1) * len].to_vec();
                    tucker.ranks[0] = 1;
                }
            }
        }
        tucker.multiply_out()
    }

    fn cp(&self, n: usize, over: Over, slices: usize, slice: usize) -> Vec<f32> {
        let rows = self.slice_rows(over, slices);
        let s = self.values("s");
        let rank = s.len() / slices;
        let (dims, s) = match over {
            Over::Layers => ([1, rows, n], &s[slice * rank..(slice + 1) * rank]),
            _ => ([slices, rows, n], s),
        };
        Cp {
            dims,
            rank,
            factors: [
                s.to_vec(),
                self.values("b").to_vec(),
                transpose(self.values("a"), rank, n),
            ],
            starts: Vec::new(),
            best: 0,
        }
        .multiply_out()
    }

    fn train(&self, over: Option<Over>, rows: &[u64], cols: &[u64], slice: usize) -> Vec<f32> {
        let sizes = |v: &[u64]| v.iter().map(|n| *n as usize).collect::<Vec<_>>();
        let (mut rows, cols) = (sizes(rows), sizes(cols));
        let ranks: Vec<usize> = self.holder.parts[..rows.len() - 1]
            .iter()
            .zip(&cols)
            .map(|(part, n)| part.shape[0] as usize / n)
            .collect();
        let mut cores = self.parts.to_vec();
        if over == Some(Over::Layers) {
            rows[0] = 1;
            cores[0] = cores[0][slice * ranks[0]..(slice + 1) * ranks[0]].to_vec();
        }
        let dims = rows.iter().zip(&cols).map(|(m, n)| m * n).collect();
        Operator {
            rows,
            cols,
            train: Train { dims, ranks, cores },
        }
        .multiply_out()
    }
}
