//! One budget for all matrices: which rank each gets, or whether it stays dense.
//!
//! Each matrix has choices of a cost and an error. Along the lower convex hull of its choices the
//! error that one more unit of cost removes never grows; taking the steps of all hulls in the order
//! of that gain is then the optimum at every total where a step ends (Shoham and Gersho, 1988). The
//! hull also settles what is not convex: factors pay up to the break-even rank mn/(m+n), from where
//! the dense matrix costs less and has no error, so that the last ranks before it are mostly
//! skipped. What remains of the budget goes to choices inside the hulls, again by gain.

use super::error::MethodError;

/// What one choice costs, and the error that it leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Cost, in the budget's unit: parameters, or bytes.
    pub cost: u64,
    /// The error that it leaves, comparable between matrices.
    pub error: f64,
}

/// A matrix that wants a rank.
#[derive(Debug, Clone, Copy)]
pub struct Spectrum<'a> {
    /// The energy that each rank adds, descending: squared whitened singular values.
    pub energies: &'a [f64],
    /// What each rank costs: m + n parameters, or their bytes.
    pub rank_cost: u64,
    /// What the matrix costs as it is; `None` where it may not stay so.
    pub dense_cost: Option<u64>,
    /// What a unit of its energy counts.
    pub weight: f64,
    /// The least rank that it may get, rounded up to the granule.
    pub least_rank: usize,
}

/// What becomes of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// It stays as it is.
    Dense,
    /// It becomes factors of this rank.
    Rank(usize),
}

/// What each matrix gets, and what that comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation<T> {
    /// One for each matrix, in their order.
    pub shares: Vec<T>,
    /// The sum of their costs, at most the budget.
    pub cost: u64,
    /// The sum of their weighted errors.
    pub error: f64,
}

impl Spectrum<'_> {
    /// Its choices: ranks that are multiples of `granule`, the block length of the factors' type, or
    /// the full side; and to stay as it is, where it may.
    pub fn options(&self, granule: usize) -> Vec<(Share, Choice)> {
        let granule = granule.max(1);
        let side = self.energies.len();
        let least = self.least_rank.max(1).div_ceil(granule) * granule;
        let mut ranks: Vec<usize> = (least..side).step_by(granule).collect();
        ranks.push(side);
        // Summed from the small end, so that the tails keep their digits.
        let mut tails = vec![0.0; side + 1];
        for i in (0..side).rev() {
            tails[i] = tails[i + 1] + self.energies[i];
        }
        let factors = ranks.iter().map(|&rank| {
            let choice = Choice {
                cost: self.rank_cost.saturating_mul(rank as u64),
                error: self.weight * tails[rank],
            };
            (Share::Rank(rank), choice)
        });
        let dense = self
            .dense_cost
            .map(|cost| (Share::Dense, Choice { cost, error: 0.0 }));
        factors.chain(dense).collect()
    }
}

/// One step along a hull: what its error falls by for each unit of cost.
struct Step {
    gain: f64,
    item: usize,
    choice: usize,
}

/// Takes one choice for each item so that the costs keep within the budget and the sum of errors is
/// least; exact wherever the budget ends at a step of the hulls. The shares are indices of choices.
///
/// # Errors
/// [`MethodError::Budget`]; [`MethodError::Setting`] for an item without choices, and for errors
/// that are negative or not finite.
pub fn choose(items: &[Vec<Choice>], budget: u64) -> Result<Allocation<usize>, MethodError> {
    let (mut current, steps) = hull_steps(items)?;
    let needed = current
        .iter()
        .zip(items)
        .map(|(i, choices)| choices[*i].cost)
        .fold(0, u64::saturating_add);
    if needed > budget {
        return Err(MethodError::Budget { budget, needed });
    }
    let mut left = budget - needed;
    let mut stopped = vec![false; items.len()];
    for step in steps {
        let choices = &items[step.item];
        let more = choices[step.choice].cost - choices[current[step.item]].cost;
        if stopped[step.item] || more > left {
            // A later step of the same hull would skip this one.
            stopped[step.item] = true;
            continue;
        }
        left -= more;
        current[step.item] = step.choice;
    }
    fill(items, &mut current, &mut left);
    let taken = || items.iter().zip(&current).map(|(choices, i)| choices[*i]);
    Ok(Allocation {
        cost: taken().map(|c| c.cost).sum(),
        error: taken().map(|c| c.error).sum(),
        shares: current,
    })
}

/// All choices on the lower convex hull of the items' sums, from the cheapest on: for each the
/// indices of the items' choices, and what they come to.
///
/// # Errors
/// As [`choose`], without a budget.
pub fn frontier(items: &[Vec<Choice>]) -> Result<Vec<(Vec<usize>, Choice)>, MethodError> {
    let (mut current, steps) = hull_steps(items)?;
    let sum = |current: &[usize]| {
        let taken = items.iter().zip(current).map(|(choices, i)| choices[*i]);
        taken.fold(
            Choice {
                cost: 0,
                error: 0.0,
            },
            |sum, c| Choice {
                cost: sum.cost.saturating_add(c.cost),
                error: sum.error + c.error,
            },
        )
    };
    let mut all = vec![(current.clone(), sum(&current))];
    for step in steps {
        current[step.item] = step.choice;
        all.push((current.clone(), sum(&current)));
    }
    Ok(all)
}

/// The cheapest choice of each item, and the steps along all hulls, those that gain most first.
fn hull_steps(items: &[Vec<Choice>]) -> Result<(Vec<usize>, Vec<Step>), MethodError> {
    let mut cheapest = Vec::with_capacity(items.len());
    let mut steps = Vec::new();
    for (item, choices) in items.iter().enumerate() {
        let bad = choices
            .iter()
            .find(|c| !(c.error >= 0.0 && c.error.is_finite()));
        if let Some(value) = bad.map(|c| c.error).or(choices.is_empty().then_some(0.0)) {
            return Err(MethodError::Setting {
                what: "the error of a choice",
                value,
            });
        }
        let hull = lower_hull(choices);
        cheapest.push(hull[0]);
        steps.extend(hull.windows(2).map(|pair| Step {
            gain: gain(choices, pair[0], pair[1]),
            item,
            choice: pair[1],
        }));
    }
    steps.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.item.cmp(&b.item)));
    Ok((cheapest, steps))
}

/// Spends what is left on whichever choice gains most for its cost, until none fits.
fn fill(items: &[Vec<Choice>], current: &mut [usize], left: &mut u64) {
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (item, choices) in items.iter().enumerate() {
            let now = choices[current[item]];
            for (i, choice) in choices.iter().enumerate() {
                let affordable = choice.cost <= now.cost.saturating_add(*left);
                if affordable && choice.error < now.error {
                    let gain = gain(choices, current[item], i);
                    if best.is_none_or(|(best, ..)| gain > best) {
                        best = Some((gain, item, i));
                    }
                }
            }
        }
        let Some((_, item, choice)) = best else {
            return;
        };
        let (was, is) = (items[item][current[item]].cost, items[item][choice].cost);
        *left = (*left + was).saturating_sub(is);
        current[item] = choice;
    }
}

/// The fall of the error for each unit of cost; endless where the cost does not rise.
fn gain(choices: &[Choice], from: usize, to: usize) -> f64 {
    let (from, to) = (choices[from], choices[to]);
    let fall = from.error - to.error;
    if to.cost > from.cost {
        fall / (to.cost - from.cost) as f64
    } else {
        f64::INFINITY
    }
}

/// The choices on the lower convex hull from the cheapest to the one of least error, by cost.
fn lower_hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by(|&a, &b| {
        let (x, y) = (choices[a], choices[b]);
        x.cost
            .cmp(&y.cost)
            .then(x.error.total_cmp(&y.error))
            .then(a.cmp(&b))
    });
    let mut hull: Vec<usize> = Vec::new();
    for i in order {
        if hull
            .last()
            .is_some_and(|&last| choices[i].error >= choices[last].error)
        {
            continue;
        }
        while let [.., a, b] = hull[..]
            && gain(choices, b, i) >= gain(choices, a, b)
        {
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ranks of a granule within a budget.
    fn ranks(
        matrices: &[Spectrum<'_>],
        budget: u64,
        granule: usize,
    ) -> Result<Allocation<Share>, MethodError> {
        let options: Vec<_> = matrices.iter().map(|m| m.options(granule)).collect();
        let choices = |o: &Vec<(Share, Choice)>| o.iter().map(|(_, choice)| *choice).collect();
        let items: Vec<Vec<Choice>> = options.iter().map(choices).collect();
        let chosen = choose(&items, budget)?;
        let shares = options.iter().zip(&chosen.shares);
        Ok(Allocation {
            shares: shares.map(|(options, i)| options[*i].0).collect(),
            cost: chosen.cost,
            error: chosen.error,
        })
    }

    fn spectrum(energies: &[f64], dense_cost: Option<u64>) -> Spectrum<'_> {
        Spectrum {
            energies,
            rank_cost: 16,
            dense_cost,
            weight: 1.0,
            least_rank: 1,
        }
    }

    #[test]
    fn energy_decides_who_gets_the_ranks() {
        let (steep, flat) = ([8.0, 1.0, 0.1, 0.0], [4.0, 3.0, 2.0, 1.5]);
        let matrices = [spectrum(&steep, None), spectrum(&flat, None)];
        let got = ranks(&matrices, 16 * 4, 1).unwrap();
        assert_eq!(got.shares, [Share::Rank(1), Share::Rank(3)]);
        assert_eq!((got.cost, got.error), (64, 1.0 + 0.1 + 1.5));
        assert_eq!(
            ranks(&matrices, 31, 1).unwrap_err(),
            MethodError::Budget {
                budget: 31,
                needed: 32
            }
        );
    }

    #[test]
    fn no_rank_from_which_dense_is_better() {
        // 8×8: rank 4 costs as much as the dense matrix.
        let energies = [1.0; 8];
        let matrices = [spectrum(&energies, Some(64)), spectrum(&energies, Some(64))];
        for budget in 32..=128 {
            let got = ranks(&matrices, budget, 1).unwrap();
            assert!(got.cost <= budget);
            let below_break_even =
                |share: &Share| matches!(share, Share::Dense | Share::Rank(1..=3));
            assert!(got.shares.iter().all(below_break_even), "{:?}", got.shares);
        }
        let got = ranks(&matrices, 80, 1).unwrap();
        assert_eq!(got.shares, [Share::Dense, Share::Rank(1)]);
        assert_eq!(ranks(&matrices, 128, 1).unwrap().error, 0.0);
    }

    #[test]
    fn ranks_keep_to_the_granule_and_the_floor() {
        let energies: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let mut matrix = spectrum(&energies, None);
        for budget in [16 * 32, 16 * 70, 16 * 99, 16 * 100] {
            let Share::Rank(rank) = ranks(&[matrix], budget, 32).unwrap().shares[0] else {
                panic!("dense was not offered");
            };
            assert_eq!(
                rank,
                if budget == 1600 {
                    100
                } else {
                    budget as usize / 16 / 32 * 32
                }
            );
        }
        matrix.least_rank = 40;
        assert_eq!(
            ranks(&[matrix], 16 * 63, 32).unwrap_err(),
            MethodError::Budget {
                budget: 16 * 63,
                needed: 16 * 64
            }
        );
        matrix.weight = f64::NAN;
        assert!(matches!(
            ranks(&[matrix], 1600, 1),
            Err(MethodError::Setting { .. })
        ));
    }

    proptest! {
        /// Held against every combination: within a step of the optimum, and never over budget.
        #[test]
        fn it_is_near_the_best_of_all_combinations(
            costs in prop::collection::vec(prop::collection::vec((1u64..20, 0.0f64..1.0), 1..5), 1..5),
            slack in 0u64..40,
        ) {
            let items: Vec<Vec<Choice>> = costs
                .iter()
                .map(|c| c.iter().map(|&(cost, error)| Choice { cost, error }).collect())
                .collect();
            let least: u64 = items.iter().filter_map(|c| c.iter().map(|c| c.cost).min()).sum();
            let budget = least + slack;
            let got = choose(&items, budget).unwrap();
            prop_assert!(got.cost <= budget);
            let mut totals = vec![(0u64, 0.0f64)];
            for choices in &items {
                totals = totals
                    .iter()
                    .flat_map(|t| choices.iter().map(move |c| (t.0 + c.cost, t.1 + c.error)))
                    .filter(|t| t.0 <= budget)
                    .collect();
            }
            let best = totals.iter().map(|t| t.1).fold(f64::INFINITY, f64::min);
            // The relaxation's gap is at most what one item can remove.
            prop_assert!(got.error >= best - 1e-12 && got.error <= best + 1.0);
            // The frontier has a choice within the budget, and none better than the best.
            let affordable = frontier(&items).unwrap().into_iter().map(|(_, c)| c);
            let affordable = affordable.filter(|c| c.cost <= budget).map(|c| c.error);
            prop_assert!(affordable.fold(f64::INFINITY, f64::min) >= best - 1e-12);
            // A larger budget is never refused.
            prop_assert!(choose(&items, budget + 5).is_ok());
        }
    }
}
