//! The tokens that a state was saved with.

/// The tokens in the numbers before a state's memory. llama-server may write more than them: a mark, a version, the tokens,
/// what it knows of pictures, and zeros. `None` where they have neither form.
pub fn tokens(numbers: &[i32]) -> Option<&[i32]> {
    match numbers {
        [-1, 1, count, rest @ ..] => rest.get(..usize::try_from(*count).ok()?),
        plain if plain.iter().all(|token| *token >= 0) => Some(plain),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::tokens;

    #[test]
    fn both_forms_have_the_same_tokens() {
        assert_eq!(tokens(&[5, 6]), Some(&[5, 6][..]));
        assert_eq!(tokens(&[-1, 1, 2, 5, 6, 0, 0, 0]), Some(&[5, 6][..]));
        assert_eq!(tokens(&[-1, 1, 9, 5]), None);
        assert_eq!(tokens(&[-1, 2, 1, 5]), None);
        assert_eq!(tokens(&[]), Some(&[][..]));
    }
}
