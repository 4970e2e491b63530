//! What methods are given: the values of tensors, and what their layers read.

use std::borrow::Cow;

use dwindle_formats::container::Over;

use super::subject::Subject;
use dwindle_architecture::ModelTensor;
use dwindle_ggml::GgmlError;
use dwindle_method::error::MethodError;
use dwindle_method::gram::Gram;
use dwindle_method::low_rank::LowRankError;
use dwindle_method::rounding::RoundingError;
use dwindle_method::whitened::{DAMPING, Whitening};
use dwindle_statistics::StatisticsError;

/// Why a tensor can't be transformed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum TransformError {
    #[error(transparent)]
    Ggml(#[from] GgmlError),
    #[error(transparent)]
    LowRank(#[from] LowRankError),
    #[error(transparent)]
    Method(#[from] MethodError),
    #[error(transparent)]
    Rounding(#[from] RoundingError),
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}

/// Values of one or more tensors one after another, and the second moment of what they read.
pub struct Operand<'a> {
    /// All rows of all tensors.
    pub w: Vec<f32>,
    /// Elements of a row.
    pub cols: usize,
    gram: Option<Cow<'a, [f32]>>,
}

impl<'a> Operand<'a> {
    /// One matrix; of a stack, one slice.
    ///
    /// # Errors
    /// Values that can't be read, damaged statistics.
    pub fn slice(
        subject: &Subject<'a>,
        tensor: &ModelTensor,
        index: usize,
    ) -> Result<Operand<'a>, TransformError> {
        let rows = tensor.shape[1];
        let first = index as u64 * rows;
        Ok(Operand {
            w: subject.rows(tensor, first..first + rows)?,
            cols: tensor.row_len() as usize,
            gram: subject
                .measured
                .gram(&tensor.name, index)?
                .map(|g| Cow::Borrowed(g.values)),
        })
    }

    /// Values of a tensor whose input is unknown.
    pub fn unmeasured(w: Vec<f32>, tensor: &ModelTensor) -> Operand<'static> {
        Operand {
            w,
            cols: tensor.row_len() as usize,
            gram: None,
        }
    }

    /// Values whose input has this second moment, n rows of n elements for rows of n elements.
    pub fn with_gram(w: Vec<f32>, cols: usize, gram: &'a [f32]) -> Operand<'a> {
        Operand {
            w,
            cols,
            gram: Some(Cow::Borrowed(gram)),
        }
    }

    /// Tensors that read the same input, one after another, each as it is.
    ///
    /// # Errors
    /// As [`Self::slice`].
    pub fn joint(
        subject: &Subject<'a>,
        tensors: &[&ModelTensor],
    ) -> Result<Operand<'a>, TransformError> {
        let mut all = Operand::slice(subject, tensors[0], 0)?;
        for tensor in &tensors[1..] {
            all.w.extend(subject.values(tensor)?);
        }
        Ok(all)
    }

    /// The slices of a tensor of three ways, one after another. They have one Gram between them:
    /// that of all tokens of all experts, or the mean over the layers, each on its own scale.
    ///
    /// # Errors
    /// As [`Self::slice`].
    pub fn stack(
        subject: &Subject<'a>,
        tensors: &[&ModelTensor],
        over: Over,
    ) -> Result<Operand<'a>, TransformError> {
        let measured = &subject.measured;
        let mut w = Vec::new();
        for tensor in tensors {
            w.extend(subject.values(tensor)?);
        }
        let grams: Vec<(f64, Gram<'a>)> = match over {
            Over::Heads => measured
                .gram(&tensors[0].name, 0)?
                .map(|g| (1.0, g))
                .into_iter()
                .collect(),
            Over::Experts => {
                let name = &tensors[0].name;
                let mut grams = Vec::new();
                for expert in 0..tensors[0].shape[2] as usize {
                    if let Some(gram) = measured.gram(name, expert)? {
                        grams.push((measured.tokens(name, expert) as f64, gram));
                    }
                }
                grams
            }
            Over::Layers => {
                let mut grams = Vec::new();
                for tensor in tensors {
                    if let Some(gram) = measured.gram(&tensor.name, 0)? {
                        let scale = gram.mean_square();
                        grams.push((if scale > 0.0 { 1.0 / scale } else { 0.0 }, gram));
                    }
                }
                grams
            }
        };
        Ok(Operand {
            w,
            cols: tensors[0].row_len() as usize,
            gram: mean(&grams),
        })
    }

    /// Rows of all tensors.
    pub fn rows(&self) -> usize {
        self.w.len() / self.cols
    }

    /// Its second moment, taken apart, where it was measured.
    ///
    /// # Errors
    /// A second moment that can't be one.
    pub fn whitening(&self) -> Result<Option<Whitening<'_>>, TransformError> {
        let whitening = self.gram().map(|gram| Whitening::new(gram, DAMPING));
        Ok(whitening.transpose()?)
    }

    /// Its second moment, where it was measured.
    pub fn gram(&self) -> Option<Gram<'_>> {
        self.gram.as_ref().map(|values| Gram {
            values,
            n: self.cols,
        })
    }
}

fn mean<'a>(grams: &[(f64, Gram<'a>)]) -> Option<Cow<'a, [f32]>> {
    let (_, first) = grams.first()?;
    if grams.len() == 1 {
        return Some(Cow::Borrowed(first.values));
    }
    let total: f64 = grams.iter().map(|(weight, _)| weight).sum();
    let mut sum = vec![0f64; first.values.len()];
    for (weight, gram) in grams {
        let weight = if total > 0.0 { weight / total } else { 0.0 };
        sum.iter_mut()
            .zip(gram.values)
            .for_each(|(s, v)| *s += weight * f64::from(*v));
    }
    Some(sum.into_iter().map(|v| v as f32).collect())
}
