//! Recommends one of several measured files.

use serde::{Deserialize, Serialize};

use crate::eval::Evaluation;

/// A file that was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Point {
    /// Bytes of the file.
    pub bytes: u64,
    /// Mean KL divergence from the checkpoint.
    pub kld: f64,
    /// Its standard error.
    pub kld_error: f64,
    /// Perplexity.
    pub perplexity: f64,
    /// Perplexity over the checkpoint's.
    pub ratio: f64,
    /// The fraction of tokens whose most likely successor is the checkpoint's.
    pub same_top: f64,
    /// Mean KL divergence on the second text.
    pub gate_kld: Option<f64>,
}

/// One size.
#[derive(Debug, Serialize)]
pub struct Row {
    /// llama-quantize's file type of this size.
    pub file_type: Option<String>,
    /// Its file.
    pub plain: Option<Point>,
    /// Ours.
    pub own: Point,
    /// The mean KL divergence that was predicted of ours.
    pub predicted_kld: f64,
}

/// Predictions beside measurements.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Predicted and measured.
    pub files: Vec<(f64, f64)>,
    /// Spearman's rank correlation.
    pub correlation: f64,
}

impl Check {
    /// Of pairs of a predicted and a measured divergence.
    pub(super) fn of(files: Vec<(f64, f64)>) -> Check {
        Check {
            correlation: rank_correlation(&files),
            files,
        }
    }
}

impl Point {
    /// What was measured of a file.
    pub(super) fn new(bytes: u64, found: &Evaluation, gate: Option<&Evaluation>) -> Point {
        let kld = |e: &Evaluation| e.divergence.as_ref().map_or(0.0, |d| d.kld.value);
        let of =
            |get: fn(&crate::eval::Divergence) -> f64| found.divergence.as_ref().map_or(0.0, get);
        Point {
            bytes,
            kld: kld(found),
            kld_error: of(|d| d.kld.error),
            perplexity: found.perplexity.perplexity.value,
            ratio: of(|d| d.perplexity_ratio.value),
            same_top: of(|d| d.same_top.value),
            gate_kld: gate.map(kld),
        }
    }
}

/// The geometric mean of our divergence over the file types'.
pub fn mean_ratio(rows: &[Row]) -> Option<f64> {
    let logs: Vec<f64> = rows
        .iter()
        .filter_map(|r| Some((r.own.kld / r.plain.as_ref()?.kld).ln()))
        .collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// Spearman's rank correlation of pairs without ties.
fn rank_correlation(pairs: &[(f64, f64)]) -> f64 {
    let ranks = |get: fn(&(f64, f64)) -> f64| {
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by(|a, b| get(&pairs[*a]).total_cmp(&get(&pairs[*b])));
        let mut ranks = vec![0.0; pairs.len()];
        for (rank, i) in order.into_iter().enumerate() {
            ranks[i] = rank as f64;
        }
        ranks
    };
    let n = pairs.len() as f64;
    let apart = ranks(|p| p.0).into_iter().zip(ranks(|p| p.1));
    let squares: f64 = apart.map(|(a, b)| (a - b).powi(2)).sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0)).max(1.0)
}

/// The best file that takes this part less than the whole checkpoint.
pub fn thriftiest(rows: &[Row], whole: u64, less: f64) -> Option<&Row> {
    let most = (1.0 - less) * whole as f64;
    let fits = rows.iter().filter(|r| r.own.bytes as f64 <= most);
    fits.min_by(|a, b| a.own.kld.total_cmp(&b.own.kld))
}

/// The smallest file whose perplexity is at most this part above the checkpoint's.
pub fn smallest_within(rows: &[Row], loss: f64) -> Option<&Row> {
    let good = rows.iter().filter(|r| r.own.ratio <= 1.0 + loss);
    good.min_by_key(|r| r.own.bytes)
}

/// The size farthest below the line from the smallest to the largest (Satopää and others, 2011).
pub fn knee(rows: &[Row]) -> Option<&Row> {
    let (largest, smallest) = (rows.first()?, rows.last()?);
    let span = (largest.own.bytes - smallest.own.bytes) as f64;
    let fall = smallest.own.kld - largest.own.kld;
    if rows.len() < 3 || span <= 0.0 || fall <= 0.0 {
        return None;
    }
    let below = |row: &Row| {
        let x = (row.own.bytes - smallest.own.bytes) as f64 / span;
        let y = (row.own.kld - largest.own.kld) / fall;
        1.0 - x - y
    };
    rows.iter().max_by(|a, b| below(a).total_cmp(&below(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bytes: u64, kld: f64) -> Row {
        let own = Point {
            bytes,
            kld,
            kld_error: 0.0,
            perplexity: 10.0,
            ratio: 1.0 + kld,
            same_top: 0.9,
            gate_kld: None,
        };
        Row {
            file_type: None,
            plain: None,
            own,
            predicted_kld: kld,
        }
    }

    #[test]
    fn ranks_alone_count() {
        let up = [(1.0, 2.0), (2.0, 3.0), (5.0, 100.0)];
        assert_eq!(rank_correlation(&up), 1.0);
        assert_eq!(rank_correlation(&up.map(|(a, b)| (a, -b))), -1.0);
    }

    #[test]
    fn sizes_are_recommended_where_there_are_such() {
        let rows = [row(90, 0.01), row(50, 0.02), row(40, 0.3), row(30, 0.9)];
        let bytes = |row: Option<&Row>| row.map(|r| r.own.bytes);
        assert_eq!(bytes(knee(&rows)), Some(50));
        assert_eq!(bytes(thriftiest(&rows, 100, 0.45)), Some(50));
        assert_eq!(bytes(thriftiest(&rows, 100, 0.9)), None);
        assert_eq!(bytes(smallest_within(&rows, 0.05)), Some(50));
        assert_eq!(bytes(smallest_within(&rows, 0.001)), None);
    }
}
