//! Output on stdout as tables and JSON, and parsing and formatting of values.

use std::io::Write;
use std::path::{Path, PathBuf};

use comfy_table::{
    Cell, CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle,
};
use dwindle_formats::bounded::{self, limits};
use dwindle_formats::container::StoredTensor;
use serde::Serialize;

use super::Failure;
use crate::checkpoint::{self, Caches};
use crate::statistics::Likeness;

/// A rule below the header and nothing else, so that rows can be cut and sorted by other tools.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::new('─', '─', '─', '─'));

/// Prints a line on stdout. If the reader has gone away, the command ends without an error.
pub fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.as_ref())?;
    Ok(())
}

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Input(e.to_string()))?;
    line(text)
}

/// A table whose columns beginning with `>` are aligned to the right. Columns that say nothing in any row are
/// left out.
pub fn table<const N: usize>(
    columns: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Table {
    let mut table = Table::new();
    table
        .load_style(STYLE)
        .set_content_arrangement(ContentArrangement::Disabled);
    let cell = |text: &str, column: &str| {
        if column.starts_with('>') {
            Cell::new(text).set_alignment(CellAlignment::Right)
        } else {
            Cell::new(text)
        }
    };
    table.set_header(columns.map(|c| cell(c.trim_start_matches('>'), c)));
    let mut says = [false; N];
    for row in rows {
        for (says, text) in says.iter_mut().zip(&row) {
            *says |= !matches!(text.as_str(), "" | "-");
        }
        table.add_row(row.iter().zip(columns).map(|(text, c)| cell(text, c)));
    }
    if table.row_count() > 0 {
        for (column, _) in table.column_iter_mut().zip(says).filter(|(_, says)| !says) {
            column.set_constraint(ColumnConstraint::Hidden);
        }
    }
    table
}

/// Formats bytes: `12.3 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Formats a shape: `576 × 192`, the row length first.
pub fn shape(dims: &[u64]) -> String {
    let dims: Vec<String> = dims.iter().map(u64::to_string).collect();
    dims.join(" × ")
}

/// Parses a count.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a number of at least 1".into()),
        Ok(n) => Ok(n),
    }
}

/// Parses bytes: `512M` and `2GiB` use powers of 1024, `90MB` of 1000, as GNU's tools do.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err("expected a number of bytes such as `512M` or `2G`".into()),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| "expected a number of bytes such as `512M` or `2G`".to_string())?;
    if !(number > 0.0 && number.is_finite()) {
        return Err("expected a number of bytes above 0".into());
    }
    Ok((number * unit as f64) as u64)
}

/// Parses a number above zero.
pub fn above_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("expected a number above 0".into()),
    }
}

/// Reads a whole text.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    Ok(bounded::read_text(path, limits::TEXT)?)
}

/// The path of a checkpoint that may be named as in the Hugging Face cache. An unknown name is
/// returned unchanged: opening it reports the error.
pub fn checkpoint_path(name: &Path) -> PathBuf {
    let found = checkpoint::resolve(name, &Caches::from_env());
    found.unwrap_or_else(|_| name.to_path_buf())
}

/// Warns where statistics may belong to a model that was trained further.
pub fn warn_of_norms(likeness: Likeness) {
    if let Some(text) = likeness.warning() {
        eprintln!("warning: {text}");
    }
}

/// The last part of a path.
pub fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// The types of a tensor's parts, without repeats.
pub fn types(tensor: &StoredTensor) -> String {
    let types: Vec<String> = tensor.types().iter().map(ToString::to_string).collect();
    types.join("+")
}

/// The ranks of a factored tensor; empty for a dense one.
pub fn ranks(tensor: &StoredTensor) -> Vec<u64> {
    let parameters = &tensor.parameters;
    match (parameters.get("rank"), parameters.get("ranks")) {
        (Some(rank), _) => rank.as_u64().into_iter().collect(),
        (None, Some(ranks)) => {
            let ranks = ranks.as_array().map_or(&[][..], Vec::as_slice);
            ranks.iter().filter_map(serde_json::Value::as_u64).collect()
        }
        (None, None) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_that_say_nothing_are_left_out() {
        let row = |a: &str, b: &str, c: &str| [a, b, c].map(String::from);
        let shown = table(["a", "b", ">c"], [row("1", "", "-"), row("2", "-", "3")]).to_string();
        assert!(
            shown.contains('a') && !shown.contains('b') && shown.contains('c'),
            "{shown}"
        );
        assert!(table(["a", "b", "c"], []).to_string().contains('b'));
    }
}
