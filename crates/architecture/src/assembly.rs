//! Reads the rows of a model tensor from the source.

use std::borrow::Cow;
use std::ops::Range;

use super::elements::{in_blocks, multiply, plus_one};
use super::{Assembly, ModelTensor};
use dwindle_checkpoint::{Source, floats};
use dwindle_formats::gguf::TensorType;

impl Assembly {
    /// Values that are made, in F32.
    pub fn of_floats(values: &[f32]) -> Assembly {
        Assembly::Made {
            ty: TensorType::F32,
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

impl ModelTensor {
    /// Whether it is a matrix, or a stack of some, whose type can be chosen: what llama.cpp keeps
    /// in F32 is none.
    pub fn is_weight(&self) -> bool {
        !self.always_f32 && self.shape.len() > 1
    }

    /// Elements per row.
    pub fn row_len(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Rows, over all dimensions but the first.
    pub fn row_count(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }

    /// Matrices that are stacked: one, or one an expert.
    pub fn slices(&self) -> usize {
        self.shape.get(2).copied().unwrap_or(1) as usize
    }

    /// Rows of each of its matrices.
    pub fn rows_per_slice(&self) -> u64 {
        self.shape.get(1).copied().unwrap_or(1)
    }

    /// Elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The type of the bytes that [`ModelTensor::rows`] yields.
    pub fn source_type(&self, source: &dyn Source) -> TensorType {
        match &self.assembly {
            Assembly::Copy(index) | Assembly::PermuteRotary { tensor: index, .. } => {
                source.tensors()[*index].ty
            }
            Assembly::Fused { parts, .. } => source.tensors()[parts[0]].ty,
            Assembly::PlusOne(index) => match source.tensors()[*index].ty {
                TensorType::F16 => TensorType::F16,
                _ => TensorType::F32,
            },
            Assembly::Stack(indices) => source.tensors()[indices[0]].ty,
            Assembly::Transpose(of)
            | Assembly::Select { of, .. }
            | Assembly::Alternate { of, .. }
            | Assembly::Columns { of, .. } => of.source_type(source),
            Assembly::Decay(_) => TensorType::F32,
            Assembly::Made { ty, .. } => *ty,
        }
    }

    /// The bytes of some rows, in the type of the source. Only the rows asked for are copied, and
    /// none where they are together in the source.
    ///
    /// # Panics
    /// When the range reaches past [`ModelTensor::row_count`].
    pub fn rows<'a>(&'a self, source: &'a dyn Source, rows: Range<u64>) -> Cow<'a, [u8]> {
        assert!(
            rows.start <= rows.end && rows.end <= self.row_count(),
            "rows {rows:?} of `{}` with {} rows",
            self.name,
            self.row_count()
        );
        let ty = self.source_type(source);
        let row_bytes = self.row_bytes(ty);
        let span = rows.start as usize * row_bytes..rows.end as usize * row_bytes;
        match &self.assembly {
            Assembly::Copy(index) => source.bytes(*index, span),
            Assembly::PermuteRotary { tensor, heads } => {
                Cow::Owned(self.permuted(source, *tensor, *heads, rows))
            }
            Assembly::Transpose(of) => Cow::Owned(self.transposed(of, source, rows)),
            Assembly::PlusOne(tensor) => {
                let from = source.tensors()[*tensor].ty;
                let unit = from.block_bytes() as usize;
                let row = self.row_len() as usize * unit;
                let span = rows.start as usize * row..rows.end as usize * row;
                Cow::Owned(plus_one(&source.bytes(*tensor, span), from))
            }
            Assembly::Fused { parts, scale } => {
                let mut bytes = stacked(source, parts, span.clone()).into_owned();
                let first = source.tensors()[parts[0]].len();
                let scaled = first.saturating_sub(span.start).min(bytes.len());
                multiply(&mut bytes[..scaled], ty, *scale);
                Cow::Owned(bytes)
            }
            Assembly::Stack(indices) => stacked(source, indices, span),
            Assembly::Select { of, rows: numbers } => {
                Cow::Owned(self.selected(of, numbers, source, rows))
            }
            Assembly::Columns { of, each, blocks } => {
                let rows = of.rows(source, rows);
                Cow::Owned(in_blocks(&rows, self.row_bytes(ty), (*each, blocks), ty))
            }
            Assembly::Decay(tensor) => {
                let from = &source.tensors()[*tensor];
                let row = self.row_len() as usize * from.ty.block_bytes() as usize;
                let span = rows.start as usize * row..rows.end as usize * row;
                let values = floats(&source.bytes(*tensor, span), from.ty);
                // Through F64, so that the nearest F32 comes out wherever this runs.
                let decays = values.into_iter().map(|v| -f64::from(v).exp() as f32);
                Cow::Owned(decays.flat_map(f32::to_le_bytes).collect())
            }
            Assembly::Alternate { of, first } => {
                Cow::Owned(self.alternating(of, *first, source, rows))
            }
            Assembly::Made { bytes, .. } => Cow::Borrowed(&bytes[span]),
        }
    }

    /// Rows of rotary halves as llama.cpp's interleaved pairs. A bias has one row, and its elements go the
    /// way of a matrix's rows.
    fn permuted(
        &self,
        source: &dyn Source,
        tensor: usize,
        heads: u64,
        rows: Range<u64>,
    ) -> Vec<u8> {
        let ty = source.tensors()[tensor].ty;
        let (unit, units, all) = if self.shape.len() == 1 {
            let units = if rows.is_empty() { 0 } else { self.row_len() };
            (ty.block_bytes() as usize, 0..units, self.row_len())
        } else {
            (self.row_bytes(ty), rows, self.row_count())
        };
        // Rows stay within their heads.
        let head = (all / heads.max(1)).max(1);
        let first = units.start / head * head;
        let last = (units.end.div_ceil(head) * head).min(all);
        let span = first as usize * unit..last.max(first) as usize * unit;
        let bytes = source.bytes(tensor, span);
        let mut out = Vec::with_capacity((units.end - units.start) as usize * unit);
        for row in units {
            let from = (unpermuted(row, head) - first) as usize * unit;
            out.extend_from_slice(&bytes[from..from + unit]);
        }
        out
    }

    /// Some of the rows, or of the elements, of another tensor.
    fn selected(
        &self,
        of: &ModelTensor,
        numbers: &[u64],
        source: &dyn Source,
        rows: Range<u64>,
    ) -> Vec<u8> {
        let ty = of.source_type(source);
        if self.shape.len() == 1 {
            let unit = ty.block_bytes() as usize;
            let whole = of.rows(source, 0..of.row_count());
            let wanted = if rows.is_empty() { &[] } else { numbers };
            let element = |i: &u64| &whole[*i as usize * unit..][..unit];
            return wanted.iter().flat_map(element).copied().collect();
        }
        let wanted = &numbers[rows.start as usize..rows.end as usize];
        let mut out = Vec::with_capacity(wanted.len() * self.row_bytes(ty));
        for run in wanted.chunk_by(|a, b| a + 1 == *b) {
            out.extend_from_slice(&of.rows(source, run[0]..run[0] + run.len() as u64));
        }
        out
    }

    /// Every second row of another tensor.
    fn alternating(
        &self,
        of: &ModelTensor,
        first: u64,
        source: &dyn Source,
        rows: Range<u64>,
    ) -> Vec<u8> {
        let each = self.row_len() / of.row_len().max(1);
        let wanted = 2 * rows.start * each + first..(2 * rows.end * each).min(of.row_count());
        if rows.is_empty() {
            return Vec::new();
        }
        let bytes = of.rows(source, wanted);
        let unit = of.row_bytes(of.source_type(source));
        bytes.chunks(unit).step_by(2).flatten().copied().collect()
    }

    /// Columns of matrices of as many columns as these have rows.
    fn transposed(&self, of: &ModelTensor, source: &dyn Source, rows: Range<u64>) -> Vec<u8> {
        let ty = of.source_type(source);
        let (unit, row) = (ty.block_bytes() as usize, self.row_bytes(ty));
        let each = self.rows_per_slice().max(1);
        let mut out = vec![0; (rows.end - rows.start) as usize * row];
        let mut at = rows.start;
        while at < rows.end {
            let (number, within) = (at / each, at % each);
            let count = (each - within).min(rows.end - at);
            let first = number * self.row_len();
            let bytes = of.rows(source, first..first + self.row_len());
            let wanted = within as usize * unit..(within + count) as usize * unit;
            let out = &mut out[(at - rows.start) as usize * row..];
            for (column, line) in bytes.chunks_exact(each as usize * unit).enumerate() {
                for (i, element) in line[wanted.clone()].chunks_exact(unit).enumerate() {
                    out[i * row + column * unit..][..unit].copy_from_slice(element);
                }
            }
            at += count;
        }
        out
    }

    fn row_bytes(&self, ty: TensorType) -> usize {
        (self.row_len() / ty.block_len() * ty.block_bytes()) as usize
    }
}

/// A span of bytes of tensors of one size, one after another.
fn stacked<'a>(source: &'a dyn Source, indices: &[usize], span: Range<usize>) -> Cow<'a, [u8]> {
    let part = source.tensors()[indices[0]].len().max(1);
    let (first, last) = (span.start / part, span.end.saturating_sub(1) / part);
    let within = |i: usize| {
        let start = span.start.max(i * part) - i * part;
        let end = span.end.min((i + 1) * part) - i * part;
        source.bytes(indices[i], start..end)
    };
    if span.is_empty() {
        return Cow::Borrowed(&[]);
    }
    if first == last {
        return within(first);
    }
    let mut out = Vec::with_capacity(span.len());
    (first..=last).for_each(|i| out.extend_from_slice(&within(i)));
    Cow::Owned(out)
}

/// Where a row of interleaved pairs lies among rotary halves, in heads of `head` rows.
pub(super) fn unpermuted(row: u64, head: u64) -> u64 {
    let (start, within) = (row / head * head, row % head);
    start + within % 2 * (head / 2) + within / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwindle_checkpoint::SourceTensor;
    use half::{bf16, f16};

    struct Memory(Vec<SourceTensor>, Vec<Vec<u8>>);

    impl Source for Memory {
        fn tensors(&self) -> &[SourceTensor] {
            &self.0
        }
        fn bytes(&self, index: usize, span: Range<usize>) -> Cow<'_, [u8]> {
            Cow::Borrowed(&self.1[index][span])
        }
        fn release(&self, _: usize) {}
    }

    fn source(shapes: &[&[u64]]) -> Memory {
        let mut next = 0u16;
        let mut tensors = Vec::new();
        let mut bytes = Vec::new();
        for shape in shapes {
            tensors.push(SourceTensor {
                name: format!("t{}", tensors.len()),
                ty: TensorType::F16,
                shape: shape.to_vec(),
            });
            let count = shape.iter().product::<u64>() as u16;
            bytes.push((next..next + count).flat_map(|n| n.to_le_bytes()).collect());
            next += count;
        }
        Memory(tensors, bytes)
    }

    fn tensor(shape: &[u64], assembly: Assembly) -> ModelTensor {
        ModelTensor {
            name: "x".into(),
            shape: shape.to_vec(),
            assembly,
            always_f32: false,
        }
    }

    fn transpose(shape: &[u64]) -> Assembly {
        Assembly::Transpose(Box::new(tensor(shape, Assembly::Copy(0))))
    }

    fn numbers(bytes: &[u8]) -> Vec<u16> {
        bytes
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .collect()
    }

    /// Every row range of `t` agrees with the slice of the whole.
    fn check(t: &ModelTensor, source: &Memory, whole: &[u16]) {
        let row = t.row_len() as usize;
        for start in 0..=t.row_count() {
            for end in start..=t.row_count() {
                let expected = &whole[start as usize * row..end as usize * row];
                assert_eq!(
                    numbers(&t.rows(source, start..end)),
                    expected,
                    "{start}..{end}"
                );
            }
        }
    }

    #[test]
    fn copies_borrow() {
        let source = source(&[&[2, 3]]);
        let t = tensor(&[2, 3], Assembly::Copy(0));
        check(&t, &source, &[0, 1, 2, 3, 4, 5]);
        assert!(matches!(t.rows(&source, 1..3), Cow::Borrowed(_)));
    }

    #[test]
    fn halves_become_pairs_in_each_head() {
        let source = source(&[&[1, 8], &[8]]);
        let assembly = |tensor| Assembly::PermuteRotary { tensor, heads: 2 };
        check(
            &tensor(&[1, 8], assembly(0)),
            &source,
            &[0, 2, 1, 3, 4, 6, 5, 7],
        );
        check(
            &tensor(&[8], assembly(1)),
            &source,
            &[8, 10, 9, 11, 12, 14, 13, 15],
        );
    }

    #[test]
    fn rows_are_selected_through_any_assembly() {
        let source = source(&[&[1, 8], &[8]]);
        let of = |index, shape: &[u64]| {
            let assembly = Assembly::PermuteRotary {
                tensor: index,
                heads: 2,
            };
            Box::new(tensor(shape, assembly))
        };
        let rows = vec![4, 1, 2, 7];
        let select = |of| Assembly::Select {
            of,
            rows: rows.clone(),
        };
        check(
            &tensor(&[1, 4], select(of(0, &[1, 8]))),
            &source,
            &[4, 2, 1, 7],
        );
        check(
            &tensor(&[4], select(of(1, &[8]))),
            &source,
            &[12, 10, 9, 15],
        );
        let made = Assembly::Made {
            ty: TensorType::F16,
            bytes: vec![1, 0, 2, 0],
        };
        check(&tensor(&[1, 2], made), &source, &[1, 2]);
    }

    #[test]
    fn stacks_cross_their_parts() {
        let source = source(&[&[2, 2], &[2, 2], &[2, 2]]);
        let t = tensor(&[2, 2, 3], Assembly::Stack(vec![2, 0, 1]));
        check(&t, &source, &[8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(matches!(t.rows(&source, 2..4), Cow::Borrowed(_)));
    }

    #[test]
    fn columns_become_rows() {
        let source = source(&[&[2, 3]]);
        check(
            &tensor(&[3, 2], transpose(&[2, 3])),
            &source,
            &[0, 2, 4, 1, 3, 5],
        );
    }

    #[test]
    fn each_matrix_of_a_stack_is_transposed() {
        let source = source(&[&[2, 3, 2]]);
        let stack = tensor(&[3, 2, 2], transpose(&[2, 3, 2]));
        check(&stack, &source, &[0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn blocks_of_columns_are_put_in_order() {
        let source = source(&[&[4, 2]]);
        let columns = Assembly::Columns {
            of: Box::new(tensor(&[4, 2], Assembly::Copy(0))),
            each: 2,
            blocks: vec![1, 0],
        };
        check(
            &tensor(&[4, 2], columns),
            &source,
            &[2, 3, 0, 1, 6, 7, 4, 5],
        );
    }

    #[test]
    fn every_second_row_or_element_is_taken() {
        let source = source(&[&[2, 4], &[4, 2]]);
        let alternate = |shape: &[u64], of: ModelTensor, first| {
            let of = Box::new(of);
            tensor(shape, Assembly::Alternate { of, first })
        };
        let rows = tensor(&[2, 4], Assembly::Copy(0));
        check(&alternate(&[2, 2], rows, 1), &source, &[2, 3, 6, 7]);
        let transposed = tensor(&[4, 2], transpose(&[2, 4]));
        check(&alternate(&[4, 1], transposed, 0), &source, &[0, 2, 4, 6]);
        let elements = tensor(&[1, 8], Assembly::Copy(1));
        check(&alternate(&[2, 2], elements, 1), &source, &[9, 11, 13, 15]);
    }

    #[test]
    fn the_first_of_three_is_multiplied() {
        let ones = |n: usize| f16::ONE.to_le_bytes().repeat(n);
        let mut source = source(&[&[2, 2], &[2, 2], &[2, 2]]);
        source.1 = vec![ones(4), ones(4), ones(4)];
        let parts = [2, 0, 1];
        let fused = tensor(&[2, 6], Assembly::Fused { parts, scale: 8.0 });
        let (eight, one) = (f16::from_f32(8.0).to_bits(), f16::ONE.to_bits());
        let whole: Vec<u16> = [[eight; 4], [one; 4], [one; 4]].concat();
        check(&fused, &source, &whole);
    }

    #[test]
    fn one_is_added_in_the_type_of_the_source() {
        let halves = |values: [f32; 2]| values.map(|v| f16::from_f32(v).to_le_bytes()).concat();
        assert_eq!(
            plus_one(&halves([0.5, 2e-4]), TensorType::F16),
            halves([1.5, 1.0])
        );
        let short = |values: [f32; 2]| values.map(|v| bf16::from_f32(v).to_le_bytes()).concat();
        let floats = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
        // BF16 would round this to 1.
        let small = 2f32.powi(-9);
        assert_eq!(
            plus_one(&short([-1.0, small]), TensorType::BF16),
            floats([0.0, 1.0 + small])
        );
        assert_eq!(
            plus_one(&floats([-1.0, small]), TensorType::F32),
            floats([0.0, 1.0 + small])
        );
    }

    #[test]
    fn computed_values_are_f32() {
        let source = source(&[]);
        let t = tensor(&[2], Assembly::of_floats(&[1.0, 8.0]));
        assert_eq!(t.source_type(&source), TensorType::F32);
        assert_eq!(
            *t.rows(&source, 0..1),
            [1.0f32.to_le_bytes(), 8.0f32.to_le_bytes()].concat()
        );
    }
}
