//! What a sweep has found: files of several sizes, and what they say.

use serde::Serialize;

use crate::eval::Evaluation;

/// A file that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    pub bytes: u64,
    pub kld: f64,
    pub kld_error: f64,
    pub perplexity: f64,
    /// Perplexity over the checkpoint's.
    pub ratio: f64,
    pub same_top: f64,
    /// On the second text.
    pub gate_kld: Option<f64>,
}

/// One size.
#[derive(Debug, Serialize)]
pub struct Row {
    pub file_type: Option<String>,
    pub plain: Option<Point>,
    pub own: Point,
    pub predicted_kld: f64,
}

/// Predictions held against measurements.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Predicted and measured.
    pub files: Vec<(f64, f64)>,
    /// Spearman's rank correlation.
    pub correlation: f64,
}

/// What the user wants to be told of.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// The least part of the checkpoint's memory to save.
    pub memory_reduction: Option<f64>,
    /// The most part by which perplexity may rise.
    pub quality_loss: Option<f64>,
}

impl Check {
    /// Of pairs of a predicted and a measured divergence.
    pub fn of(files: Vec<(f64, f64)>) -> Check {
        Check {
            correlation: rank_correlation(&files),
            files,
        }
    }
}

impl Point {
    /// What was measured of a file.
    pub fn new(bytes: u64, found: &Evaluation, gate: Option<&Evaluation>) -> Point {
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
pub fn ratio(rows: &[Row]) -> Option<f64> {
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

/// The recommendations, each in a sentence.
pub fn recommend(rows: &[Row], whole: u64, wishes: Wishes) -> Vec<String> {
    let words = |row: &Row| {
        format!(
            "{} bytes ({:.0} % less than the checkpoint; perplexity {:+.2} %, KL divergence {:.4})",
            row.own.bytes,
            (1.0 - row.own.bytes as f64 / whole as f64) * 100.0,
            (row.own.ratio - 1.0) * 100.0,
            row.own.kld
        )
    };
    let mut out = Vec::new();
    if let Some(part) = wishes.memory_reduction {
        let most = (1.0 - part) * whole as f64;
        let fits = rows.iter().filter(|r| r.own.bytes as f64 <= most);
        out.push(match fits.min_by(|a, b| a.own.kld.total_cmp(&b.own.kld)) {
            Some(row) => format!(
                "At least {:.0} % less memory: {}.",
                part * 100.0,
                words(row)
            ),
            None => format!(
                "None of these files takes {:.0} % less memory; give smaller `--sizes`.",
                part * 100.0
            ),
        });
    }
    if let Some(loss) = wishes.quality_loss {
        let good = rows.iter().filter(|r| r.own.ratio <= 1.0 + loss);
        out.push(match good.min_by_key(|r| r.own.bytes) {
            Some(row) => format!("At most {:.1} % worse: {}.", loss * 100.0, words(row)),
            None => format!(
                "None of these files is within {:.1} %; give larger `--sizes`.",
                loss * 100.0
            ),
        });
    }
    if let Some(row) = knee(rows) {
        out.push(format!("The knee: {}.", words(row)));
    }
    out
}

/// The size farthest below the line from the smallest to the largest (Satopää and others, 2011).
fn knee(rows: &[Row]) -> Option<&Row> {
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
    fn wishes_are_met_or_said_to_be_out_of_reach() {
        let rows = [row(90, 0.01), row(50, 0.02), row(40, 0.3), row(30, 0.9)];
        assert_eq!(knee(&rows).unwrap().own.bytes, 50);
        let told = |memory_reduction, quality_loss| {
            let wishes = Wishes {
                memory_reduction,
                quality_loss,
            };
            recommend(&rows, 100, wishes).remove(0)
        };
        assert!(told(Some(0.45), None).contains(": 50 bytes"));
        assert!(told(Some(0.9), None).starts_with("None"));
        assert!(told(None, Some(0.05)).contains(": 50 bytes"));
        assert!(told(None, Some(0.001)).starts_with("None"));
    }
}
