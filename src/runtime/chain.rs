//! A container's factored tensors as chains of operands, which a device multiplies one after the
//! other instead of the whole matrix.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use dwindle_formats::container::{Container, Form, Over, StoredTensor};
use dwindle_formats::gguf::TensorType;

use super::stock::StockError;
use crate::ggml;
use crate::llama::device::weights::{Contraction, Fetch, Link, Operand, Weights};
use crate::llama::feed::BoxError;
use crate::mapped::Mapping;
use crate::method::tensor::transpose;

/// The type of operands that are made from factors and not the factors themselves.
const MADE: TensorType = TensorType::F16;

/// The tensor whose rows are looked up, and which is also the output matrix where there is no
/// other.
const EMBEDDINGS: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

/// Where an operand's data come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Origin {
    /// A part as it is.
    Part(usize),
    /// A part of rows of r elements, each with n rows: the rows as columns.
    Transposed(usize),
    /// Rows of a part in single precision: the first, and how many.
    Rows(usize, usize, usize),
    /// Σ_k weights[i, k]·parts[k] for a range of slices i: the first, and how many.
    Mixed {
        /// The part with the weights: one element per thing to mix in each row.
        weights: usize,
        first: usize,
        count: usize,
        /// The part that is mixed, in as many equal runs.
        of: usize,
    },
}

/// Builds the weights of a device from a container's plan.
struct Chains<'a> {
    container: &'a Container,
    weights: Weights,
    origins: Vec<Origin>,
    known: HashMap<(Origin, Vec<u64>), usize>,
}

/// A container's weights as a device needs them, and the function that makes their operands.
/// Tensors that `dense` names stay matrices, and so does what no chain can express.
pub(super) fn chains(
    container: &Arc<Container>,
    bytes: &Arc<Mapping>,
    dense: &HashSet<String>,
) -> (Weights, Fetch) {
    let mut chains = Chains {
        container,
        weights: Weights::default(),
        origins: Vec::new(),
        known: HashMap::new(),
    };
    for (index, tensor) in container.plan.tensors.iter().enumerate() {
        if dense.contains(&tensor.name) {
            continue;
        }
        if let Some(contraction) = chains.contraction(index, tensor) {
            chains
                .weights
                .contractions
                .insert(tensor.name.clone(), contraction);
        }
    }
    let Chains {
        weights, origins, ..
    } = chains;
    let (container, bytes) = (container.clone(), bytes.clone());
    let lens: Vec<u64> = weights.operands.iter().map(|o| o.shape[0]).collect();
    let fetch = move |operand: usize| {
        make(
            &container,
            &bytes,
            &origins[operand],
            lens[operand] as usize,
        )
    };
    (weights, Box::new(fetch))
}

impl Chains<'_> {
    fn contraction(&mut self, index: usize, tensor: &StoredTensor) -> Option<Contraction> {
        let lookup = tensor.name == EMBEDDINGS;
        if lookup {
            return self.table(index, tensor);
        }
        let branches = match &tensor.form {
            // What llama.cpp can compute with as stored in the file is better left to it, but it
            // does not lay out the weights of other devices than its own for its fast kernels.
            Form::Dense if tensor.shape.len() > 1 && tensor.parts[0].ty.is_quantized() => {
                vec![vec![Link::Matrix(self.part(index, tensor, 0)?)]]
            }
            Form::Dense => return None,
            Form::LowRank => vec![vec![
                Link::Matrix(self.part(index, tensor, 0)?),
                Link::Matrix(self.part(index, tensor, 1)?),
            ]],
            Form::SharedLowRank { input } => {
                let lender = self.container.index_of(input)?;
                let holder = &self.container.plan.tensors[lender];
                vec![vec![
                    Link::Matrix(self.part(lender, holder, 0)?),
                    Link::Matrix(self.part(index, tensor, 0)?),
                ]]
            }
            Form::SparseLowRank => vec![
                vec![Link::Matrix(self.part(index, tensor, 0)?)],
                vec![
                    Link::Matrix(self.part(index, tensor, 1)?),
                    Link::Matrix(self.part(index, tensor, 2)?),
                ],
            ],
            Form::Slice { of, index: slice } => {
                let lender = self.container.index_of(of)?;
                let holder = &self.container.plan.tensors[lender];
                vec![self.multilinear(lender, holder, *slice as usize)?]
            }
            _ => vec![self.multilinear(index, tensor, 0)?],
        };
        Some(Contraction {
            branches,
            rows: None,
        })
    }

    /// The embeddings: rows are looked up in the output factor.
    fn table(&mut self, index: usize, tensor: &StoredTensor) -> Option<Contraction> {
        if tensor.form != Form::LowRank || tensor.shape.len() != 2 {
            return None;
        }
        let tied = self.container.index_of(OUTPUT).is_none();
        let a = self.container.parts_of(index).start;
        let b = self.part(index, tensor, 1)?;
        let (n, rank) = (tensor.shape[0], tensor.parts[0].shape[1]);
        let back = self.operand(
            Origin::Transposed(a),
            &format!("{}.t", tensor.parts[0].name),
            MADE,
            vec![rank, n],
        );
        let branches = if tied {
            vec![vec![
                Link::Matrix(self.part(index, tensor, 0)?),
                Link::Matrix(b),
            ]]
        } else {
            Vec::new()
        };
        Some(Contraction {
            branches,
            rows: Some([b, back]),
        })
    }

    /// The chain of a tensor of three ways, or of one slice of a stack over layers.
    fn multilinear(
        &mut self,
        index: usize,
        holder: &StoredTensor,
        slice: usize,
    ) -> Option<Vec<Link>> {
        match &holder.form {
            Form::Tucker { over, slices } => self.tucker(index, holder, *over, *slices, slice),
            Form::Cp { over, .. } => self.cp(index, holder, *over, slice),
            Form::TensorTrain { over, rows, cols } => {
                self.train(index, holder, *over, [rows, cols], slice)
            }
            _ => None,
        }
    }

    fn tucker(
        &mut self,
        index: usize,
        holder: &StoredTensor,
        over: Over,
        slices: u64,
        slice: usize,
    ) -> Option<Vec<Link>> {
        let place = |suffix: &str| place(holder, suffix);
        let core = place("core")?;
        let [r2, r1, r0] = holder.parts[core].shape[..] else {
            return None;
        };
        let first = self.container.parts_of(index).start;
        let mut links = Vec::new();
        if let Some(a) = place("a") {
            links.push(Link::Matrix(self.part(index, holder, a)?));
        }
        let (from, count) = match over {
            Over::Layers => (slice, 1),
            Over::Heads | Over::Experts => (0, slices as usize),
        };
        let shape = match over {
            Over::Layers => vec![r2, r1],
            Over::Heads => vec![r2, r1 * slices],
            Over::Experts => vec![r2, r1, slices],
        };
        let name = &slice_name(&holder.parts[core].name, over, slice);
        let middle = match place("s") {
            Some(s) => {
                let origin = Origin::Mixed {
                    weights: first + s,
                    first: from,
                    count,
                    of: first + core,
                };
                self.operand(origin, &format!("{name}.mixed"), MADE, shape)
            }
            None if over == Over::Layers => {
                let origin = Origin::Rows(first + core, slice * r1 as usize, r1 as usize);
                self.operand(origin, name, TensorType::F32, shape)
            }
            // As many slices as the core has: its layout fits already.
            None => {
                debug_assert_eq!(r0, slices);
                let ty = holder.parts[core].ty;
                if !multiplies(ty) {
                    return None;
                }
                self.operand(Origin::Part(first + core), name, ty, shape)
            }
        };
        links.push(Link::Matrix(middle));
        if let Some(b) = place("b") {
            links.push(Link::Matrix(self.part(index, holder, b)?));
        }
        Some(links)
    }

    fn cp(
        &mut self,
        index: usize,
        holder: &StoredTensor,
        over: Over,
        slice: usize,
    ) -> Option<Vec<Link>> {
        let s = place(holder, "s")?;
        let [rank, slices] = holder.parts[s].shape[..] else {
            return None;
        };
        let part = self.container.parts_of(index).start + s;
        let (from, count, shape) = match over {
            Over::Layers => (slice, 1, vec![rank]),
            Over::Heads | Over::Experts => (0, slices as usize, vec![rank, slices]),
        };
        let scales = self.operand(
            Origin::Rows(part, from, count),
            &slice_name(&holder.parts[s].name, over, slice),
            TensorType::F32,
            shape,
        );
        let a = self.part(index, holder, place(holder, "a")?)?;
        let b = self.part(index, holder, place(holder, "b")?)?;
        let middle = match over {
            Over::Heads => Link::Spread(scales),
            Over::Layers | Over::Experts => Link::Scale(scales),
        };
        Some(vec![Link::Matrix(a), middle, Link::Matrix(b)])
    }

    /// From the last core to the first: each takes its column index out of the state, which the
    /// core before it then has as the fastest, and puts its row index behind those of later cores.
    fn train(
        &mut self,
        index: usize,
        holder: &StoredTensor,
        over: Option<Over>,
        [rows, cols]: [&[u64]; 2],
        slice: usize,
    ) -> Option<Vec<Link>> {
        let first = self.container.parts_of(index).start;
        // A core that counts experts or layers mixes the core behind it.
        let mixes = matches!(over, Some(Over::Experts | Over::Layers));
        let begin = usize::from(mixes);
        let mut links = Vec::new();
        for k in (begin..rows.len()).rev() {
            let core = if mixes && k == 1 {
                self.mixed_core(first, holder, over, [rows, cols], slice)?
            } else {
                self.part(index, holder, k)?
            };
            links.push(Link::Matrix(core));
            let later: u64 = rows[k + 1..].iter().product();
            let alone = k == begin && later == 1;
            if rows[k] > 1 && !alone {
                links.push(Link::Turn(rows[k]));
            }
        }
        Some(links)
    }

    fn mixed_core(
        &mut self,
        first: usize,
        holder: &StoredTensor,
        over: Option<Over>,
        [rows, cols]: [&[u64]; 2],
        slice: usize,
    ) -> Option<usize> {
        let width = holder.parts[1].shape[0];
        debug_assert_eq!(cols[0], 1);
        let (from, count, shape) = match over {
            Some(Over::Experts) if rows[2..].iter().all(|m| *m == 1) => {
                (0, rows[0] as usize, vec![width, rows[1], rows[0]])
            }
            Some(Over::Layers) => (slice, 1, vec![width, rows[1]]),
            // A product with chosen experts takes one column of each token.
            _ => return None,
        };
        let origin = Origin::Mixed {
            weights: first,
            first: from,
            count,
            of: first + 1,
        };
        let name = slice_name(&holder.parts[1].name, over?, slice);
        Some(self.operand(origin, &format!("{name}.mixed"), MADE, shape))
    }

    /// A part as an operand.
    fn part(&mut self, index: usize, tensor: &StoredTensor, part: usize) -> Option<usize> {
        let at = self.container.parts_of(index).start + part;
        let part = tensor.parts.get(part)?;
        (part.shape.len() <= 3 && multiplies(part.ty))
            .then(|| self.operand(Origin::Part(at), &part.name, part.ty, part.shape.clone()))
    }

    fn operand(&mut self, origin: Origin, name: &str, ty: TensorType, shape: Vec<u64>) -> usize {
        let Chains {
            weights, origins, ..
        } = self;
        *self
            .known
            .entry((origin.clone(), shape.clone()))
            .or_insert_with(|| {
                origins.push(origin);
                weights.operands.push(Operand {
                    name: name.to_string(),
                    ty,
                    shape,
                });
                origins.len() - 1
            })
    }
}

/// Whether ggml has products with matrices of a type. Its own products leave the others out; the
/// way through their values says what is wrong with them.
fn multiplies(ty: TensorType) -> bool {
    let plain = [TensorType::F32, TensorType::F16, TensorType::BF16];
    plain.contains(&ty) || ty.is_quantized() && ggml::readable(ty)
}

/// Of a stack over layers each slice has its own.
fn slice_name(part: &str, over: Over, slice: usize) -> String {
    match over {
        Over::Layers => format!("{part}.{slice}"),
        Over::Heads | Over::Experts => part.to_string(),
    }
}

fn place(holder: &StoredTensor, suffix: &str) -> Option<usize> {
    let named = |name: &str| {
        name.strip_prefix(&holder.name)
            .and_then(|rest| rest.strip_prefix('.'))
            == Some(suffix)
    };
    holder.parts.iter().position(|p| named(&p.name))
}

/// The bytes of an operand whose rows have `width` elements.
fn make(
    container: &Container,
    bytes: &Mapping,
    origin: &Origin,
    width: usize,
) -> Result<Vec<u8>, BoxError> {
    let part = |at: usize| -> Result<Vec<u8>, BoxError> {
        let decoded = container.decode(bytes, at)?;
        bytes.release(container.range(at));
        Ok(decoded)
    };
    let values = |at: usize| -> Result<Vec<f32>, BoxError> {
        let stored = container.part(at);
        let len = stored.shape.iter().product::<u64>() as usize;
        let mut out = zeros(len, &stored.name)?;
        ggml::dequantize(stored.ty, &part(at)?, &mut out)?;
        Ok(out)
    };
    match *origin {
        Origin::Part(at) => part(at),
        Origin::Transposed(at) => {
            let shape = &container.part(at).shape;
            let turned = transpose(&values(at)?, shape[1] as usize, shape[0] as usize);
            Ok(ggml::quantized(MADE, &turned, width, None)?)
        }
        Origin::Rows(at, from, count) => {
            let row = container.part(at).shape[0] as usize;
            let values = values(at)?;
            Ok(ggml::quantized(
                TensorType::F32,
                &values[from * row..(from + count) * row],
                width,
                None,
            )?)
        }
        Origin::Mixed {
            weights,
            first,
            count,
            of: of_part,
        } => {
            let per_slice = container.part(weights).shape[0] as usize;
            let (mix, of) = (values(weights)?, values(of_part)?);
            let run = of.len() / per_slice;
            let mut out = zeros(count.saturating_mul(run), &container.part(of_part).name)?;
            for (i, out) in out.chunks_exact_mut(run).enumerate() {
                for (k, run) in of.chunks_exact(run).enumerate() {
                    let weight = mix[(first + i) * per_slice + k];
                    out.iter_mut().zip(run).for_each(|(o, v)| *o += weight * v);
                }
            }
            if out.iter().any(|v| v.abs() > half::f16::MAX.to_f32()) {
                return Err(Box::new(StockError::Range {
                    tensor: container.part(weights).name.clone(),
                }));
            }
            Ok(ggml::quantized(MADE, &out, width, None)?)
        }
    }
}

/// Small factors may claim a large product: that must end in an error and not in an abort.
fn zeros(elements: usize, tensor: &str) -> Result<Vec<f32>, StockError> {
    let mut out = Vec::new();
    out.try_reserve_exact(elements)
        .map_err(|_| StockError::TooLarge {
            tensor: tensor.to_string(),
            elements,
        })?;
    out.resize(elements, 0.0);
    Ok(out)
}
