//! The rooms of ARCHITECTURE.md are those of the sources, and no arrow runs against the drawing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Arrows = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The table of rooms: their order, and what each says that it imports.
fn drawn() -> (Vec<String>, Arrows) {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = page.split_once("| room |").unwrap();
    let rows = table.lines().skip(2).take_while(|l| l.starts_with('|'));
    let mut order = Vec::new();
    let mut arrows = Arrows::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let room = cells[1].trim_matches('`').to_string();
        let imports = cells[3].split(',').map(str::trim).filter(|s| !s.is_empty());
        arrows.insert(room.clone(), imports.map(String::from).collect());
        order.push(room);
    }
    (order, arrows)
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            into.push(path);
        }
    }
}

/// The room's own code: without comments and unit tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = text.lines().map(|l| l.split("//").next().unwrap_or(l));
    lines.collect::<Vec<_>>().join("\n")
}

/// Names that follow a prefix, also those in braces.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let word = |s: &str| -> String {
        let end = s.find(|c: char| !c.is_alphanumeric() && c != '_');
        s[..end.unwrap_or(s.len())].to_string()
    };
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split('}').next().unwrap_or_default();
                found.extend(list.split(',').map(|item| word(item.trim())));
            }
            None => {
                found.insert(word(rest));
            }
        }
    }
    found
}

/// What the sources import.
fn real(rooms: &[String]) -> Arrows {
    let mut places: Vec<(String, PathBuf)> = vec![("formats".into(), root().join("formats/src"))];
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        places.push((name, path.join("src")));
    }
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !["lib", "main"].contains(&name.as_str()) {
            places.push((name, path));
        }
    }
    let mut arrows = Arrows::new();
    for (room, place) in places {
        let mut files = Vec::new();
        match place.is_dir() {
            true => sources(&place, &mut files),
            false => files.push(place),
        }
        let imports = arrows.entry(room.clone()).or_default();
        for file in files {
            let code = code(&file);
            let mut names = names_after(&code, "dwindle_");
            names.extend(names_after(&code, "crate::"));
            imports.extend(
                names
                    .into_iter()
                    .filter(|n| rooms.contains(n) && *n != room),
            );
        }
    }
    arrows
}

#[test]
fn the_drawing_is_what_the_sources_import() {
    let (order, drawn) = drawn();
    let real = real(&order);
    assert_eq!(
        drawn.keys().collect::<Vec<_>>(),
        real.keys().collect::<Vec<_>>(),
        "the rooms of ARCHITECTURE.md are not those of the sources"
    );
    for (room, imports) in &real {
        assert_eq!(
            imports, &drawn[room],
            "imports of `{room}`: sources left, drawing right"
        );
    }
}

#[test]
fn no_arrow_runs_upwards() {
    let (order, drawn) = drawn();
    let place = |room: &String| order.iter().position(|r| r == room);
    for (room, imports) in &drawn {
        for import in imports {
            let known = place(import).unwrap_or_else(|| panic!("`{import}` is no room"));
            assert!(
                Some(known) < place(room),
                "`{room}` imports `{import}`, which stands below it"
            );
        }
    }
}
