//! Chooses the experts to keep.

use super::StructureError;
use super::kept::Kept;
use super::orders::Orders;
use crate::plan::Structure;

/// Chooses the experts of each block that give most, as wished.
pub(super) fn choose(
    kept: &mut Kept,
    wanted: &Structure,
    orders: &Orders<'_>,
) -> Result<(), StructureError> {
    let Some(count) = wanted.experts else {
        return Ok(());
    };
    for (block, kept) in kept.blocks.iter_mut().enumerate() {
        if let Some(kept) = kept {
            kept.experts = Some(strongest(block, count, orders)?);
        }
    }
    Ok(())
}

/// Experts by what they add to the layer's output over all tokens that calibration saw: the rows
/// that each has got, times the energy that its projection down gives a row.
fn strongest(
    block: usize,
    count: usize,
    orders: &Orders<'_>,
) -> Result<Vec<usize>, StructureError> {
    let ffn = orders.blocks.all[block].ffn.as_ref();
    let instead = "omit `experts`";
    let ffn = ffn
        .filter(|f| f.experts > 1 && !f.router.is_empty())
        .ok_or_else(|| orders.unknown(block, "stack of experts", instead))?;
    if count == 0 || count > ffn.experts {
        return Err(StructureError::Target {
            what: "`experts`",
            found: count.to_string(),
            expected: format!("1 to {}", ffn.experts),
        });
    }
    let tensor = orders.tensor(ffn.down);
    let mut contributions: Vec<(f64, usize)> = Vec::new();
    for expert in 0..ffn.experts {
        let gram = orders.gram(tensor, expert)?;
        let tokens = orders.subject.measured.tokens(&tensor.name, expert) as f64;
        let w = orders.slice(tensor, expert)?;
        let energy = gram.output_energy(&w, tensor.shape[1] as usize);
        contributions.push((tokens * energy, expert));
    }
    tensor.release(orders.subject.source);
    contributions.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut stay: Vec<usize> = contributions[..count].iter().map(|(_, e)| *e).collect();
    stay.sort_unstable();
    Ok(stay)
}
