//! What kind of file a place holds before it is written to.

use std::io::{self, Read};
use std::path::Path;

use fs_err as fs;

/// A kind of file, known by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A model, or importance weights.
    Gguf,
    /// Tensors.
    Safetensors,
    /// An object.
    Json,
    /// A drawing.
    Svg,
    /// What llama.cpp keeps of a text.
    State,
    /// The same, packed.
    PackedState,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Gguf => "GGUF",
            Kind::Safetensors => "safetensors",
            Kind::Json => "JSON",
            Kind::Svg => "SVG",
            Kind::State => "llama.cpp state",
            Kind::PackedState => "packed state",
        }
    }

    fn is_begun_by(self, bytes: &[u8]) -> bool {
        match self {
            Kind::Gguf => bytes.starts_with(b"GGUF"),
            // The header's length, and the header.
            Kind::Safetensors => bytes.get(8) == Some(&b'{'),
            Kind::Json => bytes.starts_with(b"{"),
            Kind::Svg => bytes.starts_with(b"<svg"),
            // Their numbers, little-endian.
            Kind::State => bytes.starts_with(b"qsgg") || bytes.starts_with(b"nsgg"),
            Kind::PackedState => bytes.starts_with(&crate::packed::MAGIC),
        }
    }

    /// Refuses a place that holds a file of another kind, which a mistyped name would lose. An empty file
    /// may be replaced.
    ///
    /// # Errors
    /// There is such a file, or it can't be read.
    pub fn check(self, path: &Path) -> io::Result<()> {
        let mut first = Vec::new();
        match fs::File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?.take(9).read_to_end(&mut first)?,
        };
        if first.is_empty() || self.is_begun_by(&first) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "`{}` exists and is no {} file; it was left as it is: remove it, or name another output",
                path.display(),
                self.name()
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_another_kind_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        Kind::Json.check(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        Kind::Svg.check(&path).unwrap();
        std::fs::write(&path, "# Notes, of some length").unwrap();
        for kind in [
            Kind::Gguf,
            Kind::Safetensors,
            Kind::Json,
            Kind::Svg,
            Kind::State,
            Kind::PackedState,
        ] {
            let said = kind.check(&path).unwrap_err().to_string();
            assert!(said.contains(kind.name()) && said.contains("left as it is"));
        }
        std::fs::write(&path, [&8u64.to_le_bytes()[..], b"{}      "].concat()).unwrap();
        Kind::Safetensors.check(&path).unwrap();
    }
}
