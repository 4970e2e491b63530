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
        // Of a crate, `crate::` is itself.
        let is_module = place.starts_with(root().join("src"));
        let mut files = Vec::new();
        match place.is_dir() {
            true => sources(&place, &mut files),
            false => files.push(place),
        }
        let imports = arrows.entry(room.clone()).or_default();
        for file in files {
            let code = code(&file);
            let mut names = names_after(&code, "dwindle_");
            if is_module {
                names.extend(names_after(&code, "crate::"));
            }
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

/// The paths of a tree of imports, `a::{b, c::{d, e}}` opened up.
fn opened(tree: &str) -> Vec<String> {
    let Some((head, inner)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.trim().to_string()];
    };
    let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
    let mut depth = 0;
    let items = inner.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    items
        .filter(|item| !item.trim().is_empty())
        .flat_map(|item| opened(&format!("{}{}", head.trim(), item.trim())))
        .collect()
}

/// The paths inside of its crate that a file names; what it only passes on (`pub use`) is left out.
fn named(code: &str) -> Vec<String> {
    let is_import = |line: &str| {
        let line = line.trim_start();
        line.starts_with("use ") || line.starts_with("pub") && line.contains(" use ")
    };
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let lines: Vec<&str> = statement.lines().collect();
        let at = lines.iter().rposition(|line| is_import(line));
        let (body, import) = lines.split_at(at.unwrap_or(lines.len()));
        if let Some(tree) = import.join(" ").trim_start().strip_prefix("use ") {
            paths.extend(opened(tree));
        }
        let body = body.join(" ");
        for (at, _) in ["crate::", "super::"]
            .iter()
            .flat_map(|start| body.match_indices(start))
        {
            let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            if !body[..at].ends_with(is_part) {
                let rest = &body[at..];
                let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                paths.push(rest[..end].to_string());
            }
        }
    }
    paths
}

/// The file that a path leads to from a module: the last part of it that is a module.
fn file_of(base: &Path, module: &[String], path: &str) -> Option<PathBuf> {
    let mut parts: Vec<&str> = path.split("::").filter(|p| !p.is_empty()).collect();
    let mut at = match *parts.first()? {
        "crate" => Vec::new(),
        "super" | "self" => module.to_vec(),
        _ => return None,
    };
    while let Some("crate" | "self" | "super") = parts.first().copied() {
        if parts.remove(0) == "super" {
            at.pop();
        }
    }
    at.extend(parts.into_iter().map(String::from));
    (0..=at.len()).rev().find_map(|len| {
        let place = at[..len].iter().fold(base.to_path_buf(), |p, s| p.join(s));
        let candidates = [
            place.with_extension("rs"),
            place.join("mod.rs"),
            place.join("lib.rs"),
        ];
        candidates.into_iter().find(|file| file.is_file())
    })
}

/// What each file of a crate imports of the same crate.
fn imports(base: &Path) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
    let mut files = Vec::new();
    sources(base, &mut files);
    let mut all = BTreeMap::new();
    for file in files {
        let module = file.strip_prefix(base).unwrap().with_extension("");
        let mut module: Vec<String> = module
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        if ["mod", "lib", "main"].contains(&module.last().unwrap().as_str()) {
            module.pop();
        }
        let named = named(&code(&file));
        let found = named.iter().filter_map(|p| file_of(base, &module, p));
        all.insert(file.clone(), found.filter(|f| *f != file).collect());
    }
    all
}

/// Files that import one another, directly or over others.
fn circles(imports: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> BTreeSet<BTreeSet<PathBuf>> {
    let reached = |from: &PathBuf| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(file) = next.pop() {
            for import in imports.get(&file).into_iter().flatten() {
                if seen.insert(import.clone()) {
                    next.push(import.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&PathBuf, _> = imports.keys().map(|f| (f, reached(f))).collect();
    let in_circle = reached.iter().filter(|(file, seen)| seen.contains(**file));
    in_circle
        .map(|(file, seen)| {
            let back = |other: &&PathBuf| reached.get(other).is_some_and(|r| r.contains(*file));
            seen.iter().filter(back).cloned().collect()
        })
        .collect()
}

#[test]
fn files_of_a_room_import_in_one_direction() {
    assert_eq!(
        opened("super::{a, b::{c, d as e}}"),
        ["super::a", "super::b::c", "super::b::d"]
    );
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, table) = page.split_once("| circle in |").unwrap();
    let rows = table.lines().skip(2).take_while(|l| l.starts_with('|'));
    let defended: Vec<&str> = rows.filter_map(|row| row.split('`').nth(1)).collect();

    let mut bases = vec![root().join("src"), root().join("formats/src")];
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        bases.push(entry.unwrap().path().join("src"));
    }
    let mut found = Vec::new();
    let mut rooms = BTreeSet::new();
    for base in &bases {
        for circle in circles(&imports(base)) {
            let file = circle.first().unwrap().strip_prefix(root()).unwrap();
            let place: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
            rooms.insert(match place[..] {
                ["crates", room, ..] | ["src", room, ..] => room.to_string(),
                _ => "formats".to_string(),
            });
            found.push(circle);
        }
    }
    assert!(found.len() <= 2, "circles: {found:#?}");
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    assert_eq!(
        rooms, defended,
        "left: rooms with circles, right: those of ARCHITECTURE.md; {found:#?}"
    );
}
