//! A survey in parts, which machines can make side by side: each walks over the whole model, and judges and
//! rounds some of the groups of blocks. What is found of a group depends on no other.

use std::fmt;
use std::str::FromStr;

/// One of several parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    number: u32,
    count: u32,
}

impl Part {
    /// All of it.
    pub const WHOLE: Part = Part {
        number: 1,
        count: 1,
    };

    /// A part by its number, counted from 1; `None` where there is none.
    pub fn new(number: u32, count: u32) -> Option<Part> {
        let is_one = (1..=count).contains(&number);
        is_one.then_some(Part { number, count })
    }

    /// Its number, from 1, and the number of all.
    pub fn numbers(self) -> [u32; 2] {
        [self.number, self.count]
    }

    /// Whether it is the first, which measures what is measured once.
    pub fn is_first(self) -> bool {
        self.number == 1
    }

    /// Whether a group is its own: the groups take turns.
    pub fn has(self, group: usize) -> bool {
        group % self.count as usize == self.number as usize - 1
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        let numbers = text
            .split_once('/')
            .and_then(|(number, count)| Part::new(number.parse().ok()?, count.parse().ok()?));
        numbers.ok_or_else(|| "expected a part and the number of parts, such as `2/8`".into())
    }
}

#[cfg(test)]
mod tests {
    use super::Part;

    #[test]
    fn each_group_is_one_parts_own() {
        for count in 1..9 {
            let parts: Vec<Part> = (1..=count).filter_map(|i| Part::new(i, count)).collect();
            for group in 0..20 {
                assert_eq!(parts.iter().filter(|p| p.has(group)).count(), 1);
            }
        }
    }

    #[test]
    fn parts_are_written_as_they_are_read() {
        assert_eq!("2/8".parse(), Ok(Part::new(2, 8).unwrap()));
        assert_eq!(Part::new(2, 8).unwrap().to_string(), "2/8");
        for wrong in ["", "0/3", "4/3", "1", "1/0", "a/b", "-1/2"] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }
}
