//! Decompositions, against torch.

use std::process::Command;
use std::time::Instant;

use dwindle::architecture::{self, role, values};
use dwindle::method::gram::Gram;
use dwindle::method::low_rank::decompose;
use dwindle::method::svd;
use dwindle::method::whitened::DAMPING;
use dwindle::statistics::Statistics;
use faer::Mat;
use rayon::prelude::*;

use super::{Bench, Result, left_out, seconds};

impl Bench {
    /// Plain svd of one role.
    pub fn svd(&self) -> Result<()> {
        let (source, model) = architecture::open(&self.model)?;
        let mut matrices = Vec::new();
        for tensor in &model.tensors {
            if role(&tensor.name).1 == "attn_k" && tensor.shape.len() == 2 {
                let w = values(tensor, source.as_ref(), 0..tensor.row_count())?;
                matrices.push((w, tensor.shape[1] as usize, tensor.shape[0] as usize));
            }
        }
        let Some(python) = &self.args.python else {
            left_out("torch.linalg.svd", "--python");
            return Ok(());
        };
        let (_, m, n) = matrices[0];
        let script = format!(
            "import torch, time\n\
             torch.manual_seed(0)\n\
             ws = [torch.randn({m}, {n}) for _ in range({})]\n\
             torch.linalg.svd(ws[0], full_matrices=False)\n\
             t = time.perf_counter()\n\
             for w in ws: torch.linalg.svd(w, full_matrices=False)\n\
             print(time.perf_counter() - t)",
            matrices.len()
        );
        self.pair(
            &format!(
                "SVD of {} attn_k of {m} x {n}, against torch",
                matrices.len()
            ),
            || {
                let start = Instant::now();
                matrices.par_iter().for_each(|(w, m, n)| {
                    let half = (m * n) / (m + n) / 2;
                    let d = svd::decompose(w, *m, *n).expect("weights are finite");
                    std::hint::black_box(d.factors(w, *m, *n, half));
                });
                Ok(start.elapsed().as_secs_f64())
            },
            || {
                let output = Command::new(python).args(["-c", &script]).output()?;
                Ok(String::from_utf8(output.stdout)?.trim().parse()?)
            },
        )
    }

    /// Whitened svd of every matrix in the blocks at keep 0.8, against the usual way to the same
    /// factors: Cholesky, product, svd and triangular solution in double precision. And how far its
    /// error is from the optimum.
    pub fn whitened_svd(&self) -> Result<()> {
        let (Some(python), Some(text)) = (&self.args.python, &self.args.text) else {
            left_out("whitened torch.linalg.svd", "--python and --text");
            return Ok(());
        };
        let stats = self.path("whitening.safetensors");
        let mut calibrate = self.dwindle(&["calibrate", "--chunks", "8", "--text"]);
        calibrate.arg(text).arg(&self.model).arg("-o").arg(&stats);
        seconds(&mut calibrate)?;
        let statistics = Statistics::open(&stats)?;
        let (source, model) = architecture::open(&self.model)?;
        let mut matrices = Vec::new();
        for tensor in &model.tensors {
            if role(&tensor.name).0.is_some()
                && let [n, m] = tensor.shape[..]
                && let Some(gram) = statistics.gram(&tensor.name, 0)?
            {
                let w = values(tensor, source.as_ref(), 0..tensor.row_count())?;
                let gram = Gram::new(gram.values, gram.n)?;
                matrices.push((w, m as usize, n as usize, gram));
            }
        }
        let shapes: Vec<[usize; 2]> = matrices.iter().map(|(_, m, n, _)| [*m, *n]).collect();
        let script = whitened_script(&shapes);
        let rank = |m: usize, n: usize| m * n * 4 / 5 / (m + n);
        let factors = || {
            let made = matrices.par_iter().with_max_len(1).map(|(w, m, n, gram)| {
                let d = decompose(w, *m, *n, Some(*gram)).expect("weights are finite");
                d.factors(w, *m, *n, rank(*m, *n)).expect("the rank fits")
            });
            made.collect::<Vec<_>>()
        };
        let name = format!("whitened SVD of {} matrices, against torch", matrices.len());
        self.pair(
            &name,
            || {
                let start = Instant::now();
                std::hint::black_box(factors());
                Ok(start.elapsed().as_secs_f64())
            },
            || {
                let output = Command::new(python).args(["-c", &script]).output()?;
                Ok(String::from_utf8(output.stdout)?.trim().parse()?)
            },
        )?;
        let excess = matrices
            .par_iter()
            .zip(factors())
            .map(|((w, m, n, gram), f)| {
                let product = svd::multiply_out(&f.a, &f.b, *n, *m, rank(*m, *n));
                gram.output_error(w, &product, *m) / optimum(w, *m, *n, *gram, rank(*m, *n)) - 1.0
            });
        let largest = excess.reduce(|| 0.0, f64::max);
        println!(
            "{:<54} {:>9.4} % at most",
            "its error above the optimum",
            100.0 * largest
        );
        Ok(())
    }
}

/// What torch's users do for the same factors, in Python.
fn whitened_script(shapes: &[[usize; 2]]) -> String {
    format!(
        "import torch, time\n\
             torch.manual_seed(0)\n\
             shapes = {shapes:?}\n\
             grams = {{}}\n\
             for m, n in shapes:\n    \
                 x = torch.randn(n, 2 * n, dtype=torch.float64)\n    \
                 grams[n] = x @ x.T\n\
             ws = [torch.randn(m, n) for m, n in shapes]\n\
             t = time.perf_counter()\n\
             for w in ws:\n    \
                 w = w.double()\n    \
                 l = torch.linalg.cholesky(grams[w.shape[1]])\n    \
                 u, s, v = torch.linalg.svd(w @ l, full_matrices=False)\n    \
                 r = w.numel() * 4 // 5 // sum(w.shape)\n    \
                 s = s[:r].sqrt()\n    \
                 b = (u[:, :r] * s).float()\n    \
                 a = torch.linalg.solve_triangular(l, v[:r], upper=False, left=False)\n    \
                 a = (s[:, None] * a).float()\n\
             print(time.perf_counter() - t)"
    )
}

/// The least output error of a rank: the squared singular values of W·L beyond it.
fn optimum(w: &[f32], m: usize, n: usize, gram: Gram<'_>, rank: usize) -> f64 {
    let w = Mat::from_fn(m, n, |i, j| f64::from(w[i * n + j]));
    let mut g = Mat::from_fn(n, n, |i, j| f64::from(gram.values[i * n + j]));
    for i in 0..n {
        g[(i, i)] += DAMPING * gram.mean_square();
    }
    let l = g
        .llt(faer::Side::Lower)
        .expect("a damped Gram is definite")
        .L()
        .to_owned();
    let wl = w * l;
    let s = wl.singular_values().expect("svd converges");
    s[rank..].iter().rev().map(|s| s * s).sum()
}
