//! Bounds how many tensors and keys llama.cpp is given. It finds each by a linear search, so a
//! header of a few megabytes would keep it busy for minutes before it refuses the model.

/// Tensors; the largest models have two thousand.
const TENSORS: usize = 1 << 14;
/// Metadata entries; real files have under a hundred.
const ENTRIES: usize = 1 << 13;

/// A header beyond that.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "it has {found} {what}, at most {limit} are given to llama.cpp, and no model that it runs has as many"
)]
pub struct ExtentError {
    what: &'static str,
    found: usize,
    limit: usize,
}

/// Checks a header's counts against the limits.
///
/// # Errors
/// [`ExtentError`].
pub fn check_extent(tensors: usize, entries: usize) -> Result<(), ExtentError> {
    let counts = [
        ("tensors", tensors, TENSORS),
        ("metadata entries", entries, ENTRIES),
    ];
    match counts.into_iter().find(|(_, found, limit)| found > limit) {
        Some((what, found, limit)) => Err(ExtentError { what, found, limit }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_held_against_their_limits() {
        assert_eq!(check_extent(TENSORS, ENTRIES), Ok(()));
        let error = check_extent(TENSORS + 1, 0).unwrap_err().to_string();
        assert!(error.contains("16385 tensors"), "{error}");
        assert!(check_extent(0, ENTRIES + 1).is_err());
    }
}
