//! The arithmetic of one row of logits, in the widths that `llama-perplexity` uses: its float
//! sums and its 16-bit table of the reference's log-probabilities, whose rounding is part of the
//! published figures.

/// A row's largest logit, where it stands first, and the sum of exponentials relative to it.
struct Peak {
    logit: f32,
    index: usize,
    sum_exp: f64,
}

fn peak(logits: &[f32]) -> Peak {
    let (mut index, mut logit) = (0, logits[0]);
    for (i, l) in logits.iter().enumerate().skip(1) {
        if *l > logit {
            (index, logit) = (i, *l);
        }
    }
    let sum_exp = logits.iter().map(|l| f64::from((l - logit).exp())).sum();
    Peak {
        logit,
        index,
        sum_exp,
    }
}

/// Minus the log-probability of a token.
pub(super) fn nll(logits: &[f32], token: usize) -> f64 {
    let peak = peak(logits);
    peak.sum_exp.ln() - f64::from(logits[token] - peak.logit)
}

/// Log-probabilities below this do not count in a divergence, and are not kept in a cache.
pub(super) const LEAST_LOG_PROB: f32 = -16.0;

/// A row of the reference's log-probabilities, in 16 bits each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct LogProbs {
    pub scale: f32,
    pub min: f32,
    pub steps: Vec<u16>,
}

impl LogProbs {
    /// Replaces this row by that of `logits`.
    pub fn set(&mut self, logits: &[f32]) {
        let peak = peak(logits);
        let least = logits.iter().copied().fold(f32::INFINITY, f32::min);
        let least = least.max(peak.logit + LEAST_LOG_PROB);
        let log_sum_exp = peak.sum_exp.ln() as f32;
        self.min = least - peak.logit - log_sum_exp;
        self.scale = (peak.logit - least) / 65535.0;
        self.steps.clear();
        if self.scale > 0.0 {
            let inverse = 1.0 / self.scale;
            self.steps.extend(logits.iter().map(|l| {
                if *l > least {
                    (inverse * (l - least)).round_ties_even() as u16
                } else {
                    0
                }
            }));
        } else {
            self.steps.resize(logits.len(), 0);
        }
    }

    /// The log-probability of a token.
    pub fn get(&self, token: usize) -> f32 {
        self.scale * f32::from(self.steps[token]) + self.min
    }
}

/// The KL divergence of a prediction from a reference's, in nats: Σ p·ln(p/q), in doubles and without rounding to the 16 bits of
/// llama-perplexity's files. Both are logits of the whole vocabulary.
pub fn exact_divergence(base: &[f32], logits: &[f32]) -> f64 {
    let log_sum = |row: &[f32]| {
        let peak = peak(row);
        f64::from(peak.logit)
            + row
                .iter()
                .map(|l| f64::from(l - peak.logit).exp())
                .sum::<f64>()
                .ln()
    };
    let (of_base, of_logits) = (log_sum(base), log_sum(logits));
    let pairs = base.iter().zip(logits);
    pairs
        .map(|(b, l)| {
            let p = f64::from(*b) - of_base;
            p.exp() * (p - (f64::from(*l) - of_logits))
        })
        .sum()
}

/// How the candidate's prediction of one token differs from the reference's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RowDivergence {
    pub nll: f32,
    pub nll_base: f32,
    pub kld: f64,
    pub p_diff: f32,
    pub same_top: bool,
}

pub(super) fn divergence(logits: &[f32], base: &LogProbs, token: usize) -> RowDivergence {
    let peak = peak(logits);
    let log_sum_exp = peak.sum_exp.ln() as f32;
    let nll = peak.logit + log_sum_exp - logits[token];
    let nll_base = -base.get(token);
    let log_norm = peak.logit + log_sum_exp;
    let mut kld = 0.0f64;
    let (mut top_base, mut top_log_prob) = (0, f32::NEG_INFINITY);
    for (i, (step, logit)) in base.steps.iter().zip(logits).enumerate() {
        let log_prob = base.scale * f32::from(*step) + base.min;
        if log_prob > top_log_prob {
            (top_base, top_log_prob) = (i, log_prob);
        }
        if log_prob > LEAST_LOG_PROB {
            kld += f64::from(log_prob.exp() * (log_prob - logit + log_norm));
        }
    }
    RowDivergence {
        nll,
        nll_base,
        kld,
        p_diff: (-nll).exp() - (-nll_base).exp(),
        same_top: peak.index == top_base,
    }
}

/// The cosine of the angle between two rows of logits.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [[0.0f64; LANES]; 3];
    // Independent sums, so that the loop becomes vector instructions.
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let (a, b) = (f64::from(*a), f64::from(*b));
            sums[0][i] += a * b;
            sums[1][i] += a * a;
            sums[2][i] += b * b;
        }
    }
    let [ab, aa, bb] = sums.map(|lanes| lanes.iter().sum::<f64>());
    let norm = (aa * bb).sqrt();
    if norm > 0.0 { ab / norm } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, -2.0, 3.0, -40.0];

    #[test]
    fn probabilities_sum_to_one() {
        let sum: f64 = (0..5).map(|t| (-nll(&LOGITS, t)).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn the_table_of_log_probabilities_is_close() {
        let mut base = LogProbs::default();
        base.set(&LOGITS);
        for t in 0..4 {
            let found = f64::from(-base.get(t));
            assert!((found - nll(&LOGITS, t)).abs() < 2e-4, "{t}: {found}");
        }
        assert!(base.get(4) <= LEAST_LOG_PROB);
        base.set(&[2.0; 4]);
        assert!((base.get(3) + 4.0f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let mut base = LogProbs::default();
        base.set(&LOGITS);
        let row = divergence(&LOGITS, &base, 1);
        assert!(row.kld.abs() < 1e-4 && row.same_top, "{row:?}");
        let other = divergence(&[3.0, 1.0, -2.0, 3.0, -40.0], &base, 1);
        assert!(other.kld > 0.5 && !other.same_top && other.p_diff < -0.3);
        assert!((cosine(&LOGITS, &LOGITS) - 1.0).abs() < 1e-12);
    }
}
