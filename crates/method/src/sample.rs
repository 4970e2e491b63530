//! Matrices for the methods' tests.

use rand::{RngExt, SeedableRng};

/// Uniform noise.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

/// The Gram of `tokens` inputs that are correlated and of unequal scales, as activations are.
pub fn correlated(n: usize, tokens: usize, seed: u64) -> Vec<f32> {
    let mix = noise(n * n, seed);
    let z = noise(tokens * n, seed.wrapping_add(1));
    let mut x = super::linear::product_f32(&z, &mix, tokens, n, n);
    for (i, v) in x.iter_mut().enumerate() {
        *v *= if i % n % 7 == 3 { 10.0 } else { 1.0 };
    }
    let mut gram = vec![0f32; n * n];
    for (i, row) in gram.chunks_exact_mut(n).enumerate() {
        for (j, v) in row.iter_mut().enumerate() {
            let sum: f64 = x
                .chunks_exact(n)
                .map(|t| f64::from(t[i]) * f64::from(t[j]))
                .sum();
            *v = (sum / tokens as f64) as f32;
        }
    }
    gram
}

/// The sum of squares, in double precision.
pub fn energy(w: &[f32]) -> f64 {
    w.iter().map(|v| f64::from(*v).powi(2)).sum()
}

/// ‖a − b‖ / ‖a‖.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    (energy(&difference) / energy(a)).sqrt()
}
