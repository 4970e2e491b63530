//! Rounding for the layer's output, with ggml's own types.

use dwindle::ggml;
use dwindle::method::gram::Gram;
use dwindle::method::rounding::grid::Grid;
use dwindle::method::rounding::{Curvature, DAMPING, errors, round};
use dwindle_formats::gguf::TensorType;
use rand::{RngExt, SeedableRng};

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

/// The Gram of correlated inputs of unequal scales: sums of few shared directions.
fn correlated(n: usize, seed: u64) -> Vec<f32> {
    let (directions, tokens) = (noise(n * n, seed), 2 * n);
    let mut gram = vec![0f32; n * n];
    for t in 0..tokens {
        let mixed = &directions[t % n * n..][..n];
        let own = noise(n, seed + 1 + t as u64);
        let scaled = |i: usize| if i % 7 == 3 { 10.0 } else { 1.0 };
        let x: Vec<f32> = (0..n)
            .map(|i| scaled(i) * (mixed[i] * own[0] * 8.0 + own[i]))
            .collect();
        for (row, a) in gram.chunks_exact_mut(n).zip(&x) {
            for (v, b) in row.iter_mut().zip(&x) {
                *v += a * b / tokens as f32;
            }
        }
    }
    gram
}

fn total(w: &[f32], rows: usize, c: &Curvature, ty: TensorType, bytes: &[u8]) -> f64 {
    errors(w, rows, c, ty, bytes).unwrap().iter().sum()
}

fn writable() -> impl Iterator<Item = TensorType> {
    dwindle::llama::backend::init();
    TensorType::all().filter(|ty| ty.is_quantized() && ggml::writable(*ty))
}

#[test]
fn the_output_is_nearer_in_every_type() {
    let (rows, n) = (24, 512);
    let (w, g) = (noise(rows * n, 3), correlated(n, 4));
    let gram = Gram::new(&g, n).unwrap();
    let curvature = Curvature::new(gram, DAMPING).unwrap();
    let importance: Vec<f32> = gram.diagonal().map(|v| v as f32).collect();
    for ty in writable() {
        let row_bytes = ty.bytes(&[n as u64]).unwrap() as usize;
        let mut nearest = vec![0; rows * row_bytes];
        ggml::quantize(ty, &w, n, Some(&importance), &mut nearest).unwrap();
        let fitted = round(&w, rows, &curvature, ty, Some(&importance)).unwrap();
        let ratio =
            total(&w, rows, &curvature, ty, &fitted) / total(&w, rows, &curvature, ty, &nearest);
        let most = if Grid::of(ty).is_some() { 0.7 } else { 1.0 };
        assert!(ratio <= most, "{ty}: {ratio}");
        // Rows are rounded apart from one another.
        let half = &w[..rows / 2 * n];
        let half = round(half, rows / 2, &curvature, ty, Some(&importance));
        assert_eq!(half.unwrap(), fitted[..rows / 2 * row_bytes]);
    }
}

#[test]
fn what_a_type_holds_exactly_stays() {
    let (rows, n) = (4, 256);
    let g = correlated(n, 9);
    let curvature = Curvature::new(Gram::new(&g, n).unwrap(), DAMPING).unwrap();
    for ty in writable().filter(|ty| Grid::of(*ty).is_some()) {
        let row_bytes = ty.bytes(&[n as u64]).unwrap() as usize;
        let mut bytes = vec![0; rows * row_bytes];
        ggml::quantize(ty, &noise(rows * n, 5), n, None, &mut bytes).unwrap();
        let mut w = vec![0f32; rows * n];
        ggml::dequantize(ty, &bytes, &mut w).unwrap();
        let scale: f64 = w.iter().map(|v| f64::from(v * v)).sum();
        let fitted = round(&w, rows, &curvature, ty, None).unwrap();
        let nearest = total(&w, rows, &curvature, ty, &bytes);
        assert!(total(&w, rows, &curvature, ty, &fitted) <= nearest.max(1e-3 * scale));
    }
}

#[test]
fn every_grid_reads_what_ggml_reads_and_writes_it_back() {
    let grids: Vec<Grid> = writable().filter_map(Grid::of).collect();
    assert_eq!(grids.len(), 12);
    for grid in grids {
        let values = noise(grid.len * 16, 7);
        let mut bytes = vec![0; grid.bytes() * 16];
        ggml::quantize(grid.ty, &values, grid.len, None, &mut bytes).unwrap();
        let mut read = vec![0f32; values.len()];
        ggml::dequantize(grid.ty, &bytes, &mut read).unwrap();
        for (block, read) in bytes.chunks(grid.bytes()).zip(read.chunks(grid.len)) {
            let parts = grid.load(block);
            for (i, v) in read.iter().enumerate() {
                let own = grid.value(&parts, i);
                let near = (own - v).abs() <= 1e-5 * v.abs().max(1e-2);
                assert!(near, "{:?} {i}: {own} {v}", grid.ty);
                assert_eq!(grid.nearest(grid.level(parts.codes[i])), parts.codes[i]);
            }
            let mut again = vec![0xa5; block.len()];
            grid.store(&parts, &mut again);
            assert_eq!(again, block, "{:?}", grid.ty);
        }
    }
}
