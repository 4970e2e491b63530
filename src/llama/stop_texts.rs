//! Ends a text where one of given texts comes.

/// Holds text back as long as it may be the beginning of a stop text.
pub(super) struct StopTexts {
    stops: Vec<String>,
    held: String,
}

impl StopTexts {
    /// Texts to look for; empty ones are none.
    pub(super) fn new(stops: Vec<String>) -> StopTexts {
        StopTexts {
            stops: stops.into_iter().filter(|s| !s.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// Adds text; gives what can't be part of a stop text, and whether one has come.
    pub(super) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|s| self.held.find(s.as_str()));
        if let Some(at) = found.min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |at: &usize| {
            let rest = &self.held[*at..];
            self.stops.iter().any(|s| s.starts_with(rest))
        };
        let starts = self.held.char_indices().map(|(at, _)| at);
        let keep = starts
            .into_iter()
            .find(may_begin)
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is left when no more text comes.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_texts_are_found_across_pieces() {
        let mut stops = StopTexts::new(vec!["END".into(), "\n\n".into(), String::new()]);
        assert_eq!(stops.push("a E"), ("a ".into(), false));
        assert_eq!(stops.push("N"), (String::new(), false));
        assert_eq!(stops.push("X é"), ("ENX é".into(), false));
        assert_eq!(stops.push("b\n"), ("b".into(), false));
        assert_eq!(stops.push("\nc"), (String::new(), true));
        let mut none = StopTexts::new(Vec::new());
        assert_eq!(none.push("text"), ("text".into(), false));
        let mut held = StopTexts::new(vec!["##".into()]);
        assert_eq!(held.push("x#"), ("x".into(), false));
        assert_eq!(held.finish(), "#");
    }
}
