//! Pages of the documentation that the program writes itself.

use crate::shell::{output, root};
use crate::subject::program;

/// Writes the reference of the command line; `tests/documents/reference.rs` compares it with the program.
pub fn main() -> Result<(), String> {
    let page = output(&mut program("reference"))?;
    let path = root().join("docs/cli.md");
    std::fs::write(&path, page).map_err(|e| format!("{}: {e}", path.display()))?;
    eprintln!("wrote docs/cli.md");
    Ok(())
}
