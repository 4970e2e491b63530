//! From rows to figures, with their standard errors, as `llama-perplexity` computes them.

use serde::{Deserialize, Serialize};

use super::softmax::RowDivergence;

/// A measured value with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

/// How well a model predicts a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// e to the mean negative log-likelihood of a token.
    pub perplexity: Estimate,
    /// The mean negative log-likelihood of a token.
    pub nll: Estimate,
    /// Tokens of context.
    pub ctx: u32,
    /// Chunks of the text.
    pub chunks: usize,
    /// Tokens whose prediction was scored.
    pub scored: usize,
}

/// How far a model's predictions are from its reference's.
///
/// Probabilities and shares are fractions of one, not percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The reference's perplexity, from its log-probabilities in 16 bits (as `llama-perplexity`
    /// prints it, about 0.04 % below the exact figure).
    pub reference_perplexity: Estimate,
    /// Perplexity over the reference's perplexity.
    pub perplexity_ratio: Estimate,
    /// The logarithm of that ratio.
    pub ln_perplexity_ratio: Estimate,
    /// Perplexity less the reference's perplexity.
    pub perplexity_difference: Estimate,
    /// Correlation between both models' log-likelihoods.
    pub nll_correlation: f64,
    /// Mean Kullback-Leibler divergence of a token's distribution from the reference's.
    pub kld: Estimate,
    /// Its median.
    pub kld_median: f64,
    /// Its 90th percentile.
    pub kld_90: f64,
    /// Its 95th percentile.
    pub kld_95: f64,
    /// Its 99th percentile.
    pub kld_99: f64,
    /// Its 99.9th percentile.
    pub kld_99_9: f64,
    /// Its maximum.
    pub kld_max: f64,
    /// Share of tokens whose most probable prediction is the reference's.
    pub same_top: Estimate,
    /// Mean change of the probability of the right token.
    pub mean_p_change: Estimate,
    /// Root of the mean square of that change.
    pub rms_p_change: Estimate,
    /// Its largest magnitude.
    pub max_p_change: f64,
    /// Mean cosine similarity of the rows of logits; none when the reference came from a cache,
    /// which keeps probabilities only.
    pub logit_cosine: Option<f64>,
}

/// Sums of negative log-likelihoods.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NllSums {
    sum: f64,
    squares: f64,
    count: usize,
}

impl NllSums {
    pub fn add(&mut self, nll: f64) {
        self.sum += nll;
        self.squares += nll * nll;
        self.count += 1;
    }

    pub fn perplexity(&self) -> f64 {
        (self.sum / self.count.max(1) as f64).exp()
    }

    pub fn finish(&self, ctx: u32, chunks: usize) -> Perplexity {
        let nll = estimate(self.sum, self.squares, self.count);
        Perplexity {
            perplexity: exp(nll),
            nll,
            ctx,
            chunks,
            scored: self.count,
        }
    }
}

/// Sums over rows of two models.
#[derive(Debug, Clone, Default)]
pub(super) struct DivergenceSums {
    nll: (f64, f64),
    nll_base: (f64, f64),
    products: f64,
    kld: (f64, f64),
    p_diff: (f64, f64),
    p_diff_fourth: f64,
    max_p_diff: f32,
    same_top: usize,
    cosine: f64,
    klds: Vec<f32>,
}

impl DivergenceSums {
    pub fn add(&mut self, row: &RowDivergence, cosine: f64) {
        // The products are taken in the width that llama-perplexity takes them in.
        let single = |sums: &mut (f64, f64), v: f32| {
            sums.0 += f64::from(v);
            sums.1 += f64::from(v * v);
        };
        single(&mut self.nll, row.nll);
        single(&mut self.nll_base, row.nll_base);
        single(&mut self.p_diff, row.p_diff);
        self.products += f64::from(row.nll * row.nll_base);
        self.kld.0 += row.kld;
        self.kld.1 += row.kld * row.kld;
        self.p_diff_fourth += f64::from(row.p_diff * row.p_diff).powi(2);
        self.max_p_diff = self.max_p_diff.max(row.p_diff.abs());
        self.same_top += usize::from(row.same_top);
        self.cosine += cosine;
        self.klds.push(row.kld as f32);
    }

    pub fn mean_kld(&self) -> f64 {
        self.kld.0 / self.klds.len().max(1) as f64
    }

    pub fn finish(mut self, with_cosine: bool) -> Divergence {
        let n = self.klds.len();
        let count = n.max(1) as f64;
        let of = |sums: (f64, f64)| estimate(sums.0, sums.1, n);
        let (ln_ppl, ln_base) = (of(self.nll), of(self.nll_base));
        let covariance = if n < 10 {
            0.0
        } else {
            let means = (self.nll.0 / count) * (self.nll_base.0 / count);
            (self.products / count - means) / (count - 1.0)
        };
        let spread =
            |a: f64, b: f64, covariance: f64| (a * a + b * b - 2.0 * covariance).max(0.0).sqrt();
        let ln_ratio = Estimate {
            value: ln_ppl.value - ln_base.value,
            error: spread(ln_ppl.error, ln_base.error, covariance),
        };
        let (ppl, base) = (exp(ln_ppl), exp(ln_base));
        let mean_square = estimate(self.p_diff.1, self.p_diff_fourth, n);
        let rms = mean_square.value.sqrt();
        let same_top = self.same_top as f64 / count;
        let errors = ln_ppl.error * ln_base.error;
        self.klds.sort_by(f32::total_cmp);
        let at = |fraction| f64::from(percentile(&self.klds, fraction));
        Divergence {
            reference_perplexity: base,
            perplexity_ratio: exp(ln_ratio),
            ln_perplexity_ratio: ln_ratio,
            perplexity_difference: Estimate {
                value: ppl.value - base.value,
                error: spread(ppl.error, base.error, ppl.value * base.value * covariance),
            },
            nll_correlation: ratio(covariance, errors),
            kld: of(self.kld),
            kld_median: at(0.5),
            kld_90: at(0.9),
            kld_95: at(0.95),
            kld_99: at(0.99),
            kld_99_9: at(0.999),
            kld_max: at(1.0),
            same_top: Estimate {
                value: same_top,
                error: (same_top * (1.0 - same_top) / (count - 1.0).max(1.0)).sqrt(),
            },
            mean_p_change: of(self.p_diff),
            rms_p_change: Estimate {
                value: rms,
                error: ratio(0.5 * mean_square.error, rms),
            },
            max_p_change: self.max_p_diff.into(),
            logit_cosine: with_cosine.then_some(self.cosine / count),
        }
    }
}

/// A quotient, zero where there is nothing to divide by.
fn ratio(of: f64, by: f64) -> f64 {
    if by > 0.0 { of / by } else { 0.0 }
}

/// The mean and its standard error; ten values or fewer have none.
fn estimate(sum: f64, squares: f64, count: usize) -> Estimate {
    if count == 0 {
        return Estimate::default();
    }
    let n = count as f64;
    let value = sum / n;
    let variance = squares / n - value * value;
    let error = if variance > 0.0 && count > 10 {
        (variance / (n - 1.0)).sqrt()
    } else {
        0.0
    };
    Estimate { value, error }
}

fn exp(e: Estimate) -> Estimate {
    let value = e.value.exp();
    Estimate {
        value,
        error: value * e.error,
    }
}

/// Interpolated, in single precision, of sorted values.
fn percentile(sorted: &[f32], fraction: f32) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    if fraction >= 1.0 {
        return sorted[last];
    }
    let position = fraction * last as f32;
    let index = (position as usize).min(last);
    let part = position - index as f32;
    (1.0 - part) * sorted[index] + part * sorted[(index + 1).min(last)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate() {
        let sorted: Vec<f32> = (0..=100u8).map(f32::from).collect();
        assert_eq!(percentile(&sorted, 0.5), 50.0);
        assert_eq!(percentile(&sorted, 1.0), 100.0);
        assert_eq!(percentile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_certain_model_has_perplexity_one() {
        let mut sums = NllSums::default();
        (0..20).for_each(|_| sums.add(0.0));
        let found = sums.finish(512, 1);
        assert_eq!(
            found.perplexity,
            Estimate {
                value: 1.0,
                error: 0.0
            }
        );
        assert_eq!(found.scored, 20);
    }

    #[test]
    fn equal_models_have_ratio_one() {
        let mut sums = DivergenceSums::default();
        for i in 0..50u8 {
            let nll = f32::from(i) / 10.0;
            let row = RowDivergence {
                nll,
                nll_base: nll,
                kld: 0.0,
                p_diff: 0.0,
                same_top: true,
            };
            sums.add(&row, 1.0);
        }
        let found = sums.finish(true);
        assert_eq!(found.perplexity_ratio.value, 1.0);
        assert!(found.perplexity_ratio.error < 1e-6);
        assert!((found.nll_correlation - 1.0).abs() < 1e-6);
        assert_eq!((found.same_top.value, found.logit_cosine), (1.0, Some(1.0)));
    }
}
