//! Ranges of layers, as a recipe writes them.

use std::fmt;
use std::str::FromStr;

/// Layers from a start up to and without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerRange {
    start: Bound,
    end: Option<Bound>,
}

/// Where a range begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// A layer; negative numbers count from the last layer's end.
    Layer(i64),
    /// So many hundredths of all layers, rounded down.
    Percent(u32),
}

impl Bound {
    fn of(self, count: u32) -> i64 {
        let count = i64::from(count);
        match self {
            Bound::Layer(n) if n < 0 => n + count,
            Bound::Layer(n) => n,
            Bound::Percent(share) => i64::from(share) * count / 100,
        }
    }
}

impl LayerRange {
    /// Whether a layer of a model with `count` layers is inside.
    pub fn contains(&self, layer: u32, count: u32) -> bool {
        let layer = i64::from(layer);
        layer >= self.start.of(count) && self.end.is_none_or(|end| layer < end.of(count))
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Layer(n) => write!(f, "{n}"),
            Bound::Percent(share) => write!(f, "{share}%"),
        }
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..", self.start)?;
        self.end.map_or(Ok(()), |end| write!(f, "{end}"))
    }
}

impl FromStr for LayerRange {
    type Err = String;

    /// Reads `3`, `2..5`, `..4`, `-2..`, `50%..`.
    fn from_str(text: &str) -> Result<LayerRange, String> {
        let unknown = || {
            format!(
                "`{text}` is no layer range; expected forms are `3`, `2..5`, `..4`, `-2..`, `50%..`"
            )
        };
        let bound = |s: &str| match s.trim().strip_suffix('%') {
            Some(share) => share
                .parse()
                .ok()
                .filter(|share| *share <= 100)
                .map(Bound::Percent)
                .ok_or_else(unknown),
            None => s.trim().parse().map(Bound::Layer).map_err(|_| unknown()),
        };
        let Some((start, end)) = text.split_once("..") else {
            let Bound::Layer(n) = bound(text)? else {
                return Err(unknown());
            };
            return Ok(LayerRange {
                start: Bound::Layer(n),
                // After the last layer of all there is no end to count to.
                end: n.checked_add(1).filter(|end| *end != 0).map(Bound::Layer),
            });
        };
        let given = |s: &str| (!s.trim().is_empty()).then(|| bound(s)).transpose();
        Ok(LayerRange {
            start: given(start)?.unwrap_or(Bound::Layer(0)),
            end: given(end)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_ranges_count_from_both_ends() {
        let layers = |text: &str| {
            let range: LayerRange = text.parse().unwrap();
            (0..6).filter(|l| range.contains(*l, 6)).collect::<Vec<_>>()
        };
        assert_eq!(layers("3"), [3]);
        assert_eq!(layers("-1"), [5]);
        assert_eq!(layers("-2.."), [4, 5]);
        assert_eq!(layers("2..-2"), [2, 3]);
        assert_eq!(layers("..2"), [0, 1]);
        assert_eq!(layers("50%.."), [3, 4, 5]);
        assert_eq!(layers("..40%"), [0, 1]);
        assert_eq!(layers("1..100%"), [1, 2, 3, 4, 5]);
        assert_eq!(layers("9223372036854775807"), [0u32; 0]);
        assert_eq!(layers("-9223372036854775808.."), [0, 1, 2, 3, 4, 5]);
        for bad in ["a..2", "50%", "200%..", "-5%.."] {
            assert!(bad.parse::<LayerRange>().is_err(), "{bad}");
        }
    }
}
