//! Writes and measures the best files of several sizes.

use std::path::PathBuf;

use dwindle_formats::output::Scratch;
use fs_err as fs;
use rand::{RngExt, SeedableRng};

use super::frontier::{Check, Point, Row};
use super::meter::Meter;
use super::{Choosing, Error, FOLLOWING, Study, Text, Workbench, refined};
use crate::plan::Plan;
use crate::progress::Unit;
use crate::statistics::digest;
use crate::target::{BudgetError, Chosen, Costs, Rung, of_size, planned};

/// What a sweep makes.
pub struct Sweep<'a> {
    /// Sizes in bytes, with the file type of llama-quantize's to make and measure beside ours, if
    /// any.
    pub sizes: Vec<(Option<Rung>, u64)>,
    /// How types are chosen.
    pub choosing: &'a Choosing,
    /// What types are chosen by.
    pub study: &'a Study,
    /// The text that files are measured on.
    pub eval: &'a Text,
    /// A second text that files are measured on.
    pub gate: Option<&'a Text>,
    /// Chunks on which files are measured.
    pub chunks: usize,
    /// Files of random types to make, whose predictions are compared with measurements.
    pub check: Option<u64>,
}

/// Makes and measures the files, the largest first.
///
/// # Errors
/// A size that no file has, and whatever ends a measurement.
pub fn sweep(bench: &Workbench<'_>, sweep: Sweep<'_>) -> Result<(Vec<Row>, Option<Check>), Error> {
    let measured = Measuring::new(bench, &sweep)?;
    let costs = sweep.study.costs(bench, &sweep.choosing.types)?;
    let check = sweep.check;
    let rows = measured.rows(sweep, &costs)?;
    let check = check
        .map(|files| measured.check(&costs, files))
        .transpose()?;
    Ok((rows, check))
}

/// Where files are made and measured.
struct Measuring<'a> {
    bench: &'a Workbench<'a>,
    study: &'a Study,
    meter: Meter<'a>,
    gate: Option<Meter<'a>>,
    dir: Scratch,
}

impl<'a> Measuring<'a> {
    fn new(bench: &'a Workbench<'a>, sweep: &Sweep<'a>) -> Result<Measuring<'a>, Error> {
        let meter = |text: &Text| Meter::new(bench, sweep.study, text, sweep.chunks);
        Ok(Measuring {
            bench,
            study: sweep.study,
            meter: meter(sweep.eval)?,
            gate: sweep.gate.map(meter).transpose()?,
            dir: Scratch::new_in(bench.scratch)?,
        })
    }

    /// Makes and measures a file, if no earlier run has.
    fn point(&self, plan: &Plan) -> Result<Point, Error> {
        let kept = self.kept(plan)?;
        let found = fs::read(&kept).ok();
        if let Some(point) = found.and_then(|json| serde_json::from_slice(&json).ok()) {
            return Ok(point);
        }
        let file = self.dir.path().join("file.gguf");
        let bytes = self.bench.write(plan, &file)?;
        let gate = self.gate.as_ref().map(|g| g.evaluate(&file)).transpose()?;
        let found = self.meter.evaluate(&file)?;
        fs::remove_file(&file)?;
        let point = Point::new(bytes, &found, gate.as_ref());
        let json = serde_json::to_vec(&point).map_err(std::io::Error::from)?;
        dwindle_formats::output::write(&kept, &json)?;
        Ok(point)
    }

    /// Where what was measured of a file stays.
    fn kept(&self, plan: &Plan) -> Result<PathBuf, Error> {
        let file = self.study.key(self.bench, plan, FOLLOWING)?;
        let gate = self.gate.as_ref().map_or("", |gate| &gate.key);
        let measured = format!(
            "{file} {} {gate} {:?}",
            self.meter.key, self.bench.placement
        );
        let key = digest(measured.as_bytes());
        Ok(self
            .study
            .workspace
            .file(&format!("point-{}.json", &key[..16])))
    }

    fn rows(&self, sweep: Sweep<'_>, costs: &Costs) -> Result<Vec<Row>, Error> {
        let chosen = self.chosen(sweep.sizes, costs)?;
        let progress = self.bench.progress;
        progress.begin("sizes", chosen.len() as u64, Unit::Items);
        let mut rows = Vec::new();
        for (rung, chosen) in chosen {
            let plain = rung.as_ref().map(|r| -> Result<Point, Error> {
                Ok(Point {
                    bytes: r.bytes,
                    ..self.point(&r.plan)?
                })
            });
            let better = refined(self.bench, sweep.choosing, sweep.study, costs, &chosen)?;
            let chosen = better.map_or(chosen, |(_, chosen)| chosen);
            rows.push(Row {
                plain: plain.transpose()?,
                file_type: rung.map(|r| r.file_type),
                own: self.point(&chosen.plan)?,
                predicted_kld: chosen.assignment.kld,
            });
            progress.advance(1);
        }
        progress.end();
        rows.sort_by_key(|row| std::cmp::Reverse(row.own.bytes));
        Ok(rows)
    }

    /// All files are chosen before the first is measured: a size that can't be must not be found
    /// out late.
    fn chosen(
        &self,
        sizes: Vec<(Option<Rung>, u64)>,
        costs: &Costs,
    ) -> Result<Vec<(Option<Rung>, Chosen)>, Error> {
        let mut chosen = Vec::new();
        for (rung, bytes) in sizes {
            match (of_size(costs, &self.bench.task(), bytes), rung) {
                (Err(BudgetError::TooSmall { smallest, .. }), Some(rung)) => {
                    self.bench.progress.note(&format!(
                        "`{}` is left out: it has {bytes} bytes, and the smallest file with checksums \
                         {smallest}",
                        rung.file_type
                    ));
                }
                (found, rung) => chosen.push((rung, found?)),
            }
        }
        Ok(chosen)
    }

    /// Makes files of random types and measures them.
    fn check(&self, costs: &Costs, files: u64) -> Result<Check, Error> {
        let mut numbers = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        self.bench.progress.begin("checking", files, Unit::Items);
        let mut found = Vec::new();
        for _ in 0..files {
            let assignment = costs.at_random(&mut || numbers.random::<f64>());
            let chosen = planned(&self.bench.task(), assignment)?;
            found.push((chosen.assignment.kld, self.point(&chosen.plan)?.kld));
            self.bench.progress.advance(1);
        }
        self.bench.progress.end();
        Ok(Check::of(found))
    }
}
