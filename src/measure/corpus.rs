//! A text that models are measured on where none is given.
//!
//! It is a mixture of what people ask models to read and write: articles, stories, conversations, code,
//! science, news, and prose in twenty-five other languages, in passages of about 2000 bytes that take turns, so that
//! every beginning of it is a mixture too. It was written for this project, and has its licence.

/// What is measured on and fitted to: about 350 kB.
pub const CALIBRATION: &str = include_str!("corpus/calibration.txt");

/// Other passages of the same kinds, by which nothing is chosen: about 45 kB.
pub const HELD_OUT: &str = include_str!("corpus/held-out.txt");

#[cfg(test)]
mod tests {
    use super::{CALIBRATION, HELD_OUT};
    use std::collections::HashSet;

    #[test]
    fn nothing_is_in_both_texts() {
        let lines = |text: &'static str| text.lines().filter(|l| l.len() > 60);
        let calibration: HashSet<&str> = lines(CALIBRATION).collect();
        assert!(calibration.len() > 1000);
        assert!(lines(HELD_OUT).all(|line| !calibration.contains(line)));
    }

    #[test]
    fn every_eighth_of_the_text_is_a_mixture() {
        let share = CALIBRATION.len() / 8;
        let bytes = CALIBRATION.as_bytes().chunks_exact(share);
        for (i, part) in bytes.enumerate() {
            let part = String::from_utf8_lossy(part);
            let foreign = part.chars().filter(|c| !c.is_ascii()).count();
            let code = part.matches([';', '{', '(']).count();
            assert!(
                (200..9000).contains(&foreign),
                "{i}: {foreign} characters beyond ASCII"
            );
            assert!(code > 150, "{i}: {code} signs of code");
        }
    }
}
