//! Forms of tensors: how parts combine into a tensor, and their shapes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Part, StoredTensor};

/// The most cores of a tensor train.
const CORES: usize = 16;

/// How parts make a tensor W of shape [n, m], n inputs and m outputs; SPEC.md has the contractions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// One part of the tensor's own shape.
    Dense,
    /// `W = B·A`, in a stack of matrices each for itself.
    LowRank,
    /// `W = B·A` with the A of another tensor, which reads the same input.
    SharedLowRank {
        /// The name of that tensor; its form is `low-rank`, and it stands earlier.
        input: String,
    },
    /// `W = S + B·A`.
    SparseLowRank,
    /// `W_i = B·C_i·A` for each slice i; `C_i = Σ_k s_ik·C_k` where there is an S.
    Tucker {
        /// What the slices are.
        over: Over,
        /// Their number.
        slices: u64,
    },
    /// `W_i = B·diag(s_i)·A` for each slice i.
    Cp {
        /// What the slices are.
        over: Over,
        /// Their number.
        slices: u64,
    },
    /// A chain of cores; core k has the index i_k of rows and j_k of columns.
    TensorTrain {
        /// What the first row index counts; `None` for the rows of one matrix.
        over: Option<Over>,
        /// How many values each row index has.
        rows: Vec<u64>,
        /// How many values each column index has.
        cols: Vec<u64>,
    },
    /// One slice of a stack over layers, whose parts belong to another tensor.
    Slice {
        /// The name of that tensor, which is slice 0 and stands earlier.
        of: String,
        /// Which slice.
        index: u64,
    },
}

/// What a tensor of three ways has for its first way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// Equal runs of a matrix's rows.
    Heads,
    /// The matrices of a tensor of shape [n, m, e].
    Experts,
    /// Tensors of the same shape.
    Layers,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Over::Heads => "heads",
            Over::Experts => "experts",
            Over::Layers => "layers",
        })
    }
}

impl Form {
    /// The tensors that a stack over layers stands for, the one that holds it included; 1 for
    /// every other form.
    pub fn stacked(&self) -> u64 {
        match self {
            Form::Tucker { over, slices } | Form::Cp { over, slices } if *over == Over::Layers => {
                *slices
            }
            Form::TensorTrain { over, rows, .. } if *over == Some(Over::Layers) => {
                rows.first().copied().unwrap_or(1)
            }
            _ => 1,
        }
    }

    /// The earlier tensor that holds parts of this one.
    pub fn lender(&self) -> Option<&str> {
        match self {
            Form::SharedLowRank { input } => Some(input),
            Form::Slice { of, .. } => Some(of),
            _ => None,
        }
    }
}

/// Checks a tensor's parts against its form; parts of other tensors are not looked at.
pub(super) fn check(tensor: &StoredTensor) -> Result<(), String> {
    let shape = &tensor.shape;
    let parts = Parts {
        tensor,
        seen: tensor.parts.iter().collect(),
    };
    match &tensor.form {
        Form::Dense => match tensor.parts.as_slice() {
            [part] if part.name == tensor.name && part.shape == *shape => Ok(()),
            _ => Err(parts.wrong("one part of its own name and shape")),
        },
        Form::LowRank => parts.low_rank(true, false),
        Form::SharedLowRank { .. } => parts.low_rank(false, false),
        Form::SparseLowRank => parts.low_rank(true, true),
        Form::Tucker { over, slices } => parts.tucker(*over, *slices),
        Form::Cp { over, slices } => parts.cp(*over, *slices),
        Form::TensorTrain { over, rows, cols } => parts.train(*over, rows, cols),
        Form::Slice { index: 0, .. } => {
            Err("slice 0 of a stack is the tensor that holds it".into())
        }
        Form::Slice { .. } if tensor.parts.is_empty() => Ok(()),
        Form::Slice { .. } => Err(parts.wrong("no part")),
    }
}

/// Checks a tensor whose parts are elsewhere against the tensor that has them.
pub(super) fn check_lent(
    tensor: &StoredTensor,
    lender: Option<&StoredTensor>,
) -> Result<(), String> {
    let Some(name) = tensor.form.lender() else {
        return Ok(());
    };
    let lender = lender.ok_or_else(|| format!("there is no tensor `{name}` before it"))?;
    let fits = match &tensor.form {
        Form::SharedLowRank { .. } => {
            let rank = |t: &StoredTensor| t.parts.last().map(|p| p.shape[0]);
            lender.form == Form::LowRank
                && (lender.shape.len(), lender.shape[0]) == (2, tensor.shape[0])
                && rank(lender) == rank(tensor)
        }
        Form::Slice { index, .. } => lender.shape == tensor.shape && *index < lender.form.stacked(),
        _ => true,
    };
    if fits {
        Ok(())
    } else {
        Err(format!(
            "`{name}` does not hold what this tensor takes from it"
        ))
    }
}

struct Parts<'a> {
    tensor: &'a StoredTensor,
    seen: Vec<&'a Part>,
}

impl Parts<'_> {
    fn get(&self, suffix: &str) -> Option<&Part> {
        let named = |p: &&&Part| {
            p.name
                .strip_prefix(&self.tensor.name)
                .and_then(|rest| rest.strip_prefix('.'))
                == Some(suffix)
        };
        self.seen.iter().find(named).copied()
    }

    /// That the parts are exactly these, in this order; where a shape is `None`, the part is
    /// absent.
    fn are(&self, expected: &[(&str, Option<Vec<u64>>)]) -> Result<(), String> {
        let wanted: Vec<(String, &Vec<u64>)> = expected
            .iter()
            .filter_map(|(suffix, shape)| {
                let name = format!("{}.{suffix}", self.tensor.name);
                Some((name, shape.as_ref()?))
            })
            .collect();
        let same = wanted.len() == self.seen.len()
            && wanted
                .iter()
                .zip(&self.seen)
                .all(|((name, shape), part)| *name == part.name && **shape == part.shape);
        if same {
            return Ok(());
        }
        let list: Vec<String> = wanted.iter().map(|(n, s)| format!("`{n}` {s:?}")).collect();
        Err(self.wrong(&list.join(", ")))
    }

    fn wrong(&self, expected: &str) -> String {
        let found: Vec<String> = self
            .seen
            .iter()
            .take(4)
            .map(|p| format!("`{}` {:?}", p.name, p.shape))
            .collect();
        format!(
            "as {} of shape {:?} it has {expected}, found {}",
            name_of(&self.tensor.form),
            self.tensor.shape,
            if found.is_empty() {
                "no part".into()
            } else {
                found.join(", ")
            }
        )
    }

    fn low_rank(&self, own_input: bool, sparse: bool) -> Result<(), String> {
        let shape = &self.tensor.shape;
        let stack = own_input && !sparse && shape.len() == 3;
        if shape.len() != 2 && !stack {
            return Err(self.wrong("two dimensions"));
        }
        let b = self.get("b").ok_or_else(|| self.wrong("a part `.b`"))?;
        let rank = b.shape[0];
        let with_stack = |mut matrix: Vec<u64>| {
            matrix.extend(&shape[2..]);
            matrix
        };
        self.are(&[
            ("s", sparse.then(|| shape.clone())),
            ("a", own_input.then(|| with_stack(vec![shape[0], rank]))),
            ("b", Some(with_stack(vec![rank, shape[1]]))),
        ])
    }

    /// Rows of one slice.
    fn slice_rows(&self, over: Over, slices: u64) -> Result<u64, String> {
        let shape = &self.tensor.shape;
        let rows = match (over, shape.as_slice()) {
            (Over::Heads, [_, m]) if slices > 0 && m % slices == 0 => m / slices,
            (Over::Experts, [_, m, e]) if *e == slices => *m,
            (Over::Layers, [_, m]) if slices > 0 => *m,
            _ => return Err(format!("{slices} {over} don't fit its shape {shape:?}")),
        };
        Ok(rows)
    }

    fn tucker(&self, over: Over, slices: u64) -> Result<(), String> {
        let rows = self.slice_rows(over, slices)?;
        let core = self.get("core").map(|p| p.shape.as_slice());
        let Some(&[r2, r1, r0]) = core else {
            return Err(self.wrong("a part `.core` of three dimensions"));
        };
        // A way that is whole has no factor.
        let factor = |rank: u64, len: u64, shape: [u64; 2]| (rank != len).then(|| shape.to_vec());
        let n = self.tensor.shape[0];
        self.are(&[
            ("a", factor(r2, n, [n, r2])),
            ("core", Some(vec![r2, r1, r0])),
            ("b", factor(r1, rows, [r1, rows])),
            ("s", factor(r0, slices, [r0, slices])),
        ])
    }

    fn cp(&self, over: Over, slices: u64) -> Result<(), String> {
        let rows = self.slice_rows(over, slices)?;
        let s = self.get("s").ok_or_else(|| self.wrong("a part `.s`"))?;
        let rank = s.shape[0];
        self.are(&[
            ("a", Some(vec![self.tensor.shape[0], rank])),
            ("b", Some(vec![rank, rows])),
            ("s", Some(vec![rank, slices])),
        ])
    }

    fn train(&self, over: Option<Over>, rows: &[u64], cols: &[u64]) -> Result<(), String> {
        let shape = &self.tensor.shape;
        let product = |sizes: &[u64]| sizes.iter().try_fold(1u64, |acc, n| acc.checked_mul(*n));
        let first = rows.first().copied().unwrap_or(0);
        let fits = (2..=CORES).contains(&rows.len())
            && rows.len() == cols.len()
            && product(cols) == Some(shape[0])
            && product(rows).is_some_and(|all| all > 0)
            && match (over, shape.as_slice()) {
                (None | Some(Over::Heads), [_, m]) => product(rows) == Some(*m),
                (Some(Over::Experts), [_, m, e]) => {
                    (first, cols[0]) == (*e, 1) && product(&rows[1..]) == Some(*m)
                }
                (Some(Over::Layers), [_, m]) => cols[0] == 1 && product(&rows[1..]) == Some(*m),
                _ => false,
            };
        if !fits {
            return Err(format!(
                "a tensor train of rows {rows:?} and columns {cols:?} does not fit its shape {shape:?}"
            ));
        }
        let mut expected = Vec::new();
        let mut before = 1;
        for (k, (m, n)) in rows.iter().zip(cols).enumerate() {
            let last = k + 1 == rows.len();
            let found = self.seen.get(k).map_or(0, |p| p.shape[0]);
            let behind = if last { 1 } else { found / n };
            let core = n.checked_mul(behind).zip(m.checked_mul(before));
            let (row, height) = core.ok_or_else(|| self.wrong("cores of countable size"))?;
            expected.push((format!("core{k}"), Some(vec![row, height])));
            before = behind;
        }
        let expected: Vec<(&str, Option<Vec<u64>>)> = expected
            .iter()
            .map(|(name, shape)| (name.as_str(), shape.clone()))
            .collect();
        self.are(&expected)
    }
}

fn name_of(form: &Form) -> &'static str {
    match form {
        Form::Dense => "a dense tensor",
        Form::LowRank => "a low-rank tensor",
        Form::SharedLowRank { .. } => "a low-rank tensor with another's input factor",
        Form::SparseLowRank => "a sparse plus low-rank tensor",
        Form::Tucker { .. } => "a Tucker decomposition",
        Form::Cp { .. } => "a CP decomposition",
        Form::TensorTrain { .. } => "a tensor train",
        Form::Slice { .. } => "a slice of a stack",
    }
}
