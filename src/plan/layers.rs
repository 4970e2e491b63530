//! Ranges of layers, as a recipe writes them.

use std::str::FromStr;

/// Layers from `start` up to and without `end`; negative numbers count from the last layer's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerRange {
    start: i64,
    end: Option<i64>,
}

impl LayerRange {
    /// Whether a layer of a model with `count` layers is inside.
    pub fn contains(&self, layer: u32, count: u32) -> bool {
        let from_start = |n: i64| if n < 0 { n + i64::from(count) } else { n };
        let layer = i64::from(layer);
        layer >= from_start(self.start) && self.end.is_none_or(|end| layer < from_start(end))
    }
}

impl FromStr for LayerRange {
    type Err = String;

    /// Reads `3`, `2..5`, `..4`, `-2..`.
    fn from_str(text: &str) -> Result<LayerRange, String> {
        let number = |s: &str| {
            s.trim().parse::<i64>().map_err(|_| {
                format!("`{text}` is no layer range; expected forms are `3`, `2..5`, `..4`, `-2..`")
            })
        };
        match text.split_once("..") {
            None => {
                let n = number(text)?;
                Ok(LayerRange {
                    start: n,
                    // After the last layer of all there is no end to count to.
                    end: n.checked_add(1).filter(|end| *end != 0),
                })
            }
            Some((start, end)) => Ok(LayerRange {
                start: if start.trim().is_empty() {
                    0
                } else {
                    number(start)?
                },
                end: if end.trim().is_empty() {
                    None
                } else {
                    Some(number(end)?)
                },
            }),
        }
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
        assert_eq!(layers("9223372036854775807"), [0u32; 0]);
        assert_eq!(layers("-9223372036854775808.."), [0, 1, 2, 3, 4, 5]);
        assert!("a..2".parse::<LayerRange>().is_err());
    }
}
