//! `dwindle families`, and the page that has its table.

use std::path::Path;

use serde_json::Value;

use crate::common::program::{dwindle, says, stdout};
use crate::common::record::Record;

#[test]
fn the_page_has_the_programs_table() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/families.md");
    let page = std::fs::read_to_string(file).unwrap();
    let rows: Value = serde_json::from_str(&stdout(&mut dwindle(["families", "--json"]))).unwrap();
    let rows = rows.as_array().unwrap();
    for row in rows {
        let classes = row["classes"].as_array().unwrap().iter();
        let classes: Vec<String> = classes
            .map(|c| format!("`{}`", c.as_str().unwrap()))
            .collect();
        let mark = |key: &str| if row[key] == true { "yes" } else { "" };
        let expected = format!(
            "| {} | `{}` | {} | {} | {} | {} |\n",
            classes.join(", "),
            row["architecture"].as_str().unwrap(),
            mark("size"),
            mark("structure"),
            mark("encodes"),
            mark("export"),
        );
        says(&page, &[&expected]);
    }
    let lines = page.lines().filter(|line| line.starts_with("| `"));
    assert_eq!(lines.count(), rows.len());
    let table = stdout(&mut dwindle(["families"]));
    says(&table, &["Qwen3ForCausalLM", "qwen3moe", "yes"]);
}

#[test]
fn every_family_has_a_record() {
    let rows: Value = serde_json::from_str(&stdout(&mut dwindle(["families", "--json"]))).unwrap();
    let records = Record::all();
    let recorded: Vec<&str> = records
        .iter()
        .filter_map(|r| r.config["architectures"][0].as_str())
        .collect();
    for row in rows.as_array().unwrap() {
        let mut classes = row["classes"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str);
        assert!(classes.any(|class| recorded.contains(&class)), "{row}");
    }
}
