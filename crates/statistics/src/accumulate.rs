//! Sums over the rows of one layer input: squares, products, means.
//!
//! Rows are collected into panels of [`PANEL`]; a panel's products are made in single precision
//! and added up in double precision. Only tiles on and below the diagonal are kept. A tile is the
//! work of one thread, and panels are cut by row count alone, so that sums do not depend on the
//! number of threads, the batch or the memory.

use std::cell::RefCell;
use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows whose products are summed in single precision.
const PANEL: usize = 512;

/// The most rows and columns of a tile: its single-precision product stays in the second-level
/// cache.
const TILE: usize = 192;

/// Sums of one input.
#[derive(Debug)]
pub struct Accumulator {
    width: usize,
    blocks: Vec<Range<usize>>,
    slices: Vec<SliceSums>,
}

/// Sums of one slice of the weights that read an input.
#[derive(Debug)]
struct SliceSums {
    rows: u64,
    sums: Vec<f64>,
    squares: Vec<f64>,
    tiles: Vec<Tile>,
    /// Rows that don't fill a panel yet.
    open: Vec<f32>,
    /// Full panels that are to be added.
    panels: Vec<Vec<f32>>,
}

/// Part of a Gram matrix, columns of `rows` elements one after another.
#[derive(Debug)]
struct Tile {
    rows: Range<usize>,
    cols: Range<usize>,
    values: Vec<f64>,
}

/// Equal ranges of at most `most`, in order.
pub fn cut(range: Range<usize>, most: usize) -> Vec<Range<usize>> {
    let len = range.len();
    let parts = len.div_ceil(most).max(1);
    let at = |i: usize| range.start + len * i / parts;
    (0..parts).map(|i| at(i)..at(i + 1)).collect()
}

impl Accumulator {
    /// Sums for rows of `width` elements and `slices` of them, with the products of elements that
    /// are in the same one of `blocks`; none for squares and means alone.
    pub fn new(width: usize, slices: usize, blocks: &[Range<usize>]) -> Accumulator {
        let slice = || SliceSums {
            rows: 0,
            sums: vec![0.0; width],
            squares: vec![0.0; width],
            tiles: blocks.iter().flat_map(tiles).collect(),
            open: Vec::new(),
            panels: Vec::new(),
        };
        Accumulator {
            width,
            blocks: blocks.to_vec(),
            slices: (0..slices).map(|_| slice()).collect(),
        }
    }

    /// Bytes that an accumulator will need, panels in progress not included.
    pub fn bytes(width: usize, slices: usize, blocks: &[Range<usize>]) -> u64 {
        let products: u64 = blocks
            .iter()
            .flat_map(spans)
            .map(|(rows, cols)| rows.len() as u64 * cols.len() as u64 * 8)
            .sum();
        let (width, slices) = (width as u64, slices as u64);
        slices.saturating_mul(products + width * 16 + PANEL as u64 * width * 4)
    }

    /// Takes rows over, one after another in `values`; for each slice the rows that go to it, where
    /// there is more than one. Returns the bytes of the panels that they have filled; those wait
    /// for [`add_panels`].
    pub fn push(&mut self, values: &[f32], slices: Option<&[Vec<u32>]>) -> u64 {
        let width = self.width;
        let mut filled = 0;
        match slices {
            None => filled += self.slices[0].push(values, width),
            Some(slices) => {
                for (sums, rows) in self.slices.iter_mut().zip(slices) {
                    for row in rows {
                        let at = *row as usize * width;
                        filled += sums.push(&values[at..at + width], width);
                    }
                }
            }
        }
        filled
    }

    /// Makes panels of what remains.
    pub fn close(&mut self) {
        for slice in &mut self.slices {
            if !slice.open.is_empty() {
                slice.panels.push(std::mem::take(&mut slice.open));
            }
        }
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The blocks whose products are summed, in order.
    pub fn blocks(&self) -> Vec<Range<usize>> {
        self.blocks.clone()
    }

    /// Rows that each slice has got.
    pub fn rows(&self) -> impl Iterator<Item = u64> {
        self.slices.iter().map(|s| s.rows)
    }

    /// Whether all sums are numbers.
    pub fn is_finite(&self) -> bool {
        let finite = |v: &Vec<f64>| v.iter().fold(true, |all, v| all & v.is_finite());
        self.slices.iter().all(|s| finite(&s.squares))
    }

    /// The mean of each element over the rows of a slice; zeros without rows.
    pub fn mean(&self, slice: usize) -> Vec<f32> {
        let s = &self.slices[slice];
        s.sums.iter().map(|v| (v / s.count()) as f32).collect()
    }

    /// The mean square of each element over the rows of a slice; zeros without rows.
    pub fn diagonal(&self, slice: usize) -> Vec<f32> {
        let s = &self.slices[slice];
        s.squares.iter().map(|v| (v / s.count()) as f32).collect()
    }

    /// The sum of the squares of each element over the rows of a slice.
    pub fn squares(&self, slice: usize) -> Vec<f32> {
        let squares = self.slices[slice].squares.iter();
        squares.map(|v| *v as f32).collect()
    }

    /// Mean products of a slice, of one block: its rows in order, some at a time.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn gram_rows<E>(
        &self,
        slice: usize,
        block: &Range<usize>,
        mut write: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let s = &self.slices[slice];
        let count = s.count();
        let width = block.len();
        for strip in cut(block.clone(), TILE) {
            let mut values = vec![0f32; strip.len() * width];
            for tile in &s.tiles {
                let height = tile.rows.len();
                if tile.rows == strip {
                    for (j, column) in tile.values.chunks(height).enumerate() {
                        let at = tile.cols.start - block.start + j;
                        for (i, v) in column.iter().enumerate() {
                            values[i * width + at] = (v / count) as f32;
                        }
                    }
                }
                // Above the diagonal stands the mirror image.
                if tile.cols == strip {
                    let at = tile.rows.start - block.start;
                    for (j, column) in tile.values.chunks(height).enumerate() {
                        let row = &mut values[j * width + at..][..height];
                        for (out, v) in row.iter_mut().zip(column) {
                            *out = (v / count) as f32;
                        }
                    }
                }
            }
            // The diagonal's sums are exact, and agree with those that stand alone.
            for (i, at) in strip.clone().enumerate() {
                values[i * width + at - block.start] = (s.squares[at] / count) as f32;
            }
            write(&values)?;
        }
        Ok(())
    }
}

/// The places of a block's tiles on and below the diagonal.
fn spans(block: &Range<usize>) -> Vec<(Range<usize>, Range<usize>)> {
    let parts = cut(block.clone(), TILE);
    let lower = parts.iter().enumerate();
    lower
        .flat_map(|(i, rows)| parts[..=i].iter().map(|cols| (rows.clone(), cols.clone())))
        .collect()
}

fn tiles(block: &Range<usize>) -> Vec<Tile> {
    let tile = |(rows, cols): (Range<usize>, Range<usize>)| Tile {
        values: vec![0.0; rows.len() * cols.len()],
        rows,
        cols,
    };
    spans(block).into_iter().map(tile).collect()
}

impl SliceSums {
    fn push(&mut self, mut values: &[f32], width: usize) -> u64 {
        self.rows += (values.len() / width) as u64;
        let full = PANEL * width;
        let mut filled = 0;
        while !values.is_empty() {
            if self.open.capacity() == 0 {
                self.open.reserve_exact(full);
            }
            let (now, later) = values.split_at(values.len().min(full - self.open.len()));
            self.open.extend_from_slice(now);
            values = later;
            if self.open.len() == full {
                self.panels.push(std::mem::take(&mut self.open));
                filled += full as u64 * 4;
            }
        }
        filled
    }

    fn count(&self) -> f64 {
        self.rows.max(1) as f64
    }
}

/// One thread's share of adding panels.
enum Task<'a> {
    Moments(&'a mut [f64], &'a mut [f64]),
    Tile(&'a mut Tile),
}

/// Adds all panels that wait, on the threads of the current pool.
pub fn add_panels(accumulators: &mut [Accumulator]) {
    let mut tasks: Vec<(Task<'_>, &[Vec<f32>], usize)> = Vec::new();
    for accumulator in &mut *accumulators {
        for slice in &mut accumulator.slices {
            if slice.panels.is_empty() {
                continue;
            }
            let panels = &*slice.panels;
            let width = accumulator.width;
            let moments = Task::Moments(&mut slice.sums, &mut slice.squares);
            tasks.push((moments, panels, width));
            let tiles = slice.tiles.iter_mut();
            tasks.extend(tiles.map(|t| (Task::Tile(t), panels, width)));
        }
    }
    // One at a time: neighbouring tasks read the same panel, which is then in the cache.
    tasks
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(task, panels, width)| match task {
            Task::Moments(sums, squares) => add_moments(sums, squares, panels),
            Task::Tile(tile) => {
                for panel in panels {
                    tile.add(panel, width);
                }
            }
        });
    for slice in accumulators.iter_mut().flat_map(|a| &mut a.slices) {
        // One is used again: fresh memory costs the system's zeros.
        if let Some(mut panel) = slice.panels.pop()
            && slice.open.capacity() == 0
        {
            panel.clear();
            slice.open = panel;
        }
        slice.panels.clear();
    }
}

fn add_moments(sums: &mut [f64], squares: &mut [f64], panels: &[Vec<f32>]) {
    let width = sums.len();
    for row in panels.iter().flat_map(|p| p.chunks(width)) {
        for ((v, sum), square) in row.iter().zip(&mut *sums).zip(&mut *squares) {
            let v = f64::from(*v);
            *sum += v;
            *square += v * v;
        }
    }
}

impl Tile {
    fn add(&mut self, panel: &[f32], width: usize) {
        thread_local! {
            static PRODUCT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        PRODUCT.with_borrow_mut(|product| {
            let (rows, cols) = (self.rows.len(), self.cols.len());
            product.resize(rows * cols, 0.0);
            let panel = MatRef::from_row_major_slice(panel, panel.len() / width, width);
            matmul(
                MatMut::from_column_major_slice_mut(&mut product[..], rows, cols),
                Accum::Replace,
                panel.subcols(self.rows.start, rows).transpose(),
                panel.subcols(self.cols.start, cols),
                1.0f32,
                Par::Seq,
            );
            for (sum, v) in self.values.iter_mut().zip(&*product) {
                *sum += f64::from(*v);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    fn noise(len: usize) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        (0..len).map(|_| rng.random::<f32>() - 0.4).collect()
    }

    /// Sums of rows that come in batches of these sizes, added by this many threads.
    fn sums(values: &[f32], width: usize, batch: usize, threads: usize) -> Accumulator {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().unwrap();
        let mut sums = vec![Accumulator::new(width, 1, &cut(0..width, width))];
        for values in values.chunks(batch * width) {
            sums[0].push(values, None);
            pool.install(|| add_panels(&mut sums));
        }
        sums[0].close();
        pool.install(|| add_panels(&mut sums));
        sums.remove(0)
    }

    fn gram(sums: &Accumulator, slice: usize, block: Range<usize>) -> Vec<f32> {
        let mut gram = Vec::new();
        let write = |rows: &[f32]| {
            gram.extend_from_slice(rows);
            Ok::<(), ()>(())
        };
        sums.gram_rows(slice, &block, write).unwrap();
        gram
    }

    fn naive(values: &[f32], width: usize) -> Vec<f64> {
        let mut gram = vec![0f64; width * width];
        let rows = values.len() / width;
        for row in values.chunks(width) {
            for (i, a) in row.iter().enumerate() {
                for (j, b) in row.iter().enumerate() {
                    gram[i * width + j] += f64::from(*a) * f64::from(*b);
                }
            }
        }
        gram.iter().map(|v| v / rows as f64).collect()
    }

    #[test]
    fn sums_are_those_of_double_precision() {
        // Several tiles, the last ones narrower, and a last panel that is not full.
        for (width, rows) in [(1, 3), (300, 1100), (513, 600)] {
            let values = noise(width * rows);
            let sums = sums(&values, width, 100, 2);
            let (found, expected) = (gram(&sums, 0, 0..width), naive(&values, width));
            assert_eq!(found.len(), expected.len());
            let largest = expected.iter().fold(0f64, |m, v| m.max(v.abs()));
            for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
                assert!((f64::from(*a) - b).abs() < 1e-6 * largest, "{i}: {a} {b}");
            }
            let diagonal = sums.diagonal(0);
            for i in 0..width {
                let exact = expected[i * width + i];
                assert!((f64::from(diagonal[i]) - exact).abs() < 1e-7 * exact);
                assert_eq!(diagonal[i], found[i * width + i]);
                for j in 0..width {
                    assert_eq!(found[i * width + j], found[j * width + i]);
                }
            }
            let mean = sums.mean(0);
            let column: f64 = values.iter().step_by(width).map(|v| f64::from(*v)).sum();
            assert!((f64::from(mean[0]) - column / rows as f64).abs() < 1e-7);
            assert_eq!(sums.rows().collect::<Vec<_>>(), [rows as u64]);
        }
    }

    #[test]
    fn neither_threads_nor_batches_change_a_bit() {
        let (width, rows) = (290, 1300);
        let values = noise(width * rows);
        let expected = gram(&sums(&values, width, 512, 1), 0, 0..width);
        for (batch, threads) in [(512, 2), (1300, 1), (37, 2)] {
            let found = gram(&sums(&values, width, batch, threads), 0, 0..width);
            assert!(found == expected, "{batch} {threads}");
        }
    }

    #[test]
    fn rows_go_to_their_slices_and_products_to_their_blocks() {
        let (width, rows) = (8, 6);
        let values = noise(width * rows);
        let routes = [vec![0, 2, 3], Vec::new(), vec![3, 5, 1, 4]];
        let blocks = cut(0..width, 3);
        assert_eq!(blocks, [0..2, 2..5, 5..8]);
        let mut all = [Accumulator::new(width, 3, &blocks)];
        all[0].push(&values, Some(&routes));
        all[0].close();
        add_panels(&mut all);
        let sums = &all[0];
        assert_eq!(sums.rows().collect::<Vec<_>>(), [3, 0, 4]);
        for (slice, rows) in routes.iter().enumerate() {
            let row = |r: &u32| &values[*r as usize * width..][..width];
            let mine: Vec<f32> = rows.iter().flat_map(row).copied().collect();
            let expected = naive(&mine, width);
            for block in &blocks {
                let found = gram(sums, slice, block.clone());
                let n = block.len();
                for (at, v) in found.iter().enumerate() {
                    let (i, j) = (block.start + at / n, block.start + at % n);
                    let exact = expected[i * width + j];
                    let exact = if mine.is_empty() { 0.0 } else { exact };
                    assert!((f64::from(*v) - exact).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_noticed() {
        let mut values = noise(40);
        assert!(sums(&values, 8, 5, 1).is_finite());
        values[17] = f32::NAN;
        assert!(!sums(&values, 8, 5, 1).is_finite());
    }
}
