//! The YAML between two `---` at the top of a model card.
//!
//! Built from the parser's events rather than its documents: scalars stay text, and aliases,
//! which could make a few bytes into gigabytes, are dropped.

use yaml_rust2::parser::{Event, MarkedEventReceiver, Parser};
use yaml_rust2::scanner::{Marker, TScalarStyle};

/// Front matter beyond this is not a description of a model.
const MAX_BYTES: usize = 1 << 20;

/// A value of the front matter.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Card {
    Null,
    Text(String),
    List(Vec<Card>),
    Map(Vec<(String, Card)>),
}

impl Card {
    pub(super) fn get(&self, key: &str) -> Option<&Card> {
        match self {
            // Of equal keys the last counts, as in Python's parser.
            Card::Map(entries) => entries.iter().rev().find(|(k, _)| k == key).map(|e| &e.1),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Card::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The front matter of a model card; `None` where there is none or it is not a map. A card that
/// can't be parsed describes nothing: it must not stop a conversion.
pub(super) fn parse(readme: &str) -> Option<Card> {
    let mut lines = readme.lines();
    if lines.next() != Some("---") {
        return None;
    }
    let mut yaml = String::new();
    for line in lines.take_while(|line| *line != "---") {
        if yaml.len() + line.len() > MAX_BYTES {
            return None;
        }
        yaml.push_str(&line.replace('\t', "  "));
        yaml.push('\n');
    }
    let mut builder = Builder::default();
    Parser::new_from_str(&yaml).load(&mut builder, false).ok()?;
    builder.root.filter(|card| matches!(card, Card::Map(_)))
}

enum Open {
    List(Vec<Card>),
    Map(Vec<(String, Card)>, Option<String>),
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Card>,
}

impl Builder {
    fn put(&mut self, card: Card) {
        match self.open.last_mut() {
            None => self.root = Some(card),
            Some(Open::List(items)) => items.push(card),
            Some(Open::Map(entries, key)) => match key.take() {
                Some(key) => entries.push((key, card)),
                // A key that is not text matches no field.
                None => *key = Some(card.text().unwrap_or_default().to_string()),
            },
        }
    }
}

impl MarkedEventReceiver for Builder {
    fn on_event(&mut self, event: Event, _: Marker) {
        match event {
            Event::Scalar(text, style, _, _) => {
                let null = ["", "~", "null", "Null", "NULL"].contains(&text.as_str());
                if null && style == TScalarStyle::Plain {
                    self.put(Card::Null);
                } else {
                    self.put(Card::Text(text));
                }
            }
            Event::Alias(_) => self.put(Card::Null),
            Event::SequenceStart(..) => self.open.push(Open::List(Vec::new())),
            Event::MappingStart(..) => self.open.push(Open::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(items)) => self.put(Card::List(items)),
                Some(Open::Map(entries, _)) => self.put(Card::Map(entries)),
                None => {}
            },
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_maps_and_text_are_read() {
        let card = parse(
            "---\nlicense: mit\nlanguage:\n- no\n- en\nversion: 1.0\nempty:\nmodel:\n  name: x\n---\n# y\n",
        )
        .unwrap();
        assert_eq!(card.get("license").and_then(Card::text), Some("mit"));
        assert_eq!(card.get("version").and_then(Card::text), Some("1.0"));
        assert_eq!(card.get("empty"), Some(&Card::Null));
        assert_eq!(
            card.get("language"),
            Some(&Card::List(vec![
                Card::Text("no".into()),
                Card::Text("en".into())
            ]))
        );
        assert_eq!(
            card.get("model").and_then(|m| m.get("name")?.text()),
            Some("x")
        );
    }

    #[test]
    fn what_is_no_front_matter_is_nothing() {
        assert_eq!(parse("# title\n"), None);
        assert_eq!(parse(""), None);
        assert_eq!(parse("---\n- a\n---\n"), None);
        assert_eq!(parse("---\na: [\n---\n"), None);
        let bomb = format!("---\na: &a [x]\nb: {}\n---\n", "[*a, *a]");
        assert!(parse(&bomb).is_some());
    }
}
