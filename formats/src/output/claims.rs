//! Refuses outputs that would overwrite an input.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::gguf::parts;

use super::place::{PlaceError, check_place, folder_of, sibling};

/// Why a command may not write an output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum ClaimError {
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("`{}` is {role}, which would be overwritten; choose another output", output.display())]
    Input { output: PathBuf, role: String },
    #[error("`{}` and `{}` are the same file; choose another name for one of them", first.display(), second.display())]
    Output { first: PathBuf, second: PathBuf },
}

/// The files that a command reads and writes.
///
/// Files are distinguished by what they are and not by how their paths are spelled: a hard link to
/// an input, or a link on the way to it, is the input.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    inputs: Vec<Input>,
    outputs: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
struct Input {
    role: String,
    keys: Vec<Key>,
}

/// One of the ways to recognise a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    /// Device and inode.
    #[cfg(unix)]
    Node(u64, u64),
    /// The name, in a folder without links.
    Path(PathBuf),
}

impl Claims {
    /// None yet.
    pub fn new() -> Claims {
        Claims::default()
    }

    /// Adds what is read: files, or folders, of which every file counts, or one part of a split model, of which
    /// every part counts. `role` says what they are
    /// to the command, as in "the text". What is not there is left out: whoever reads it will say
    /// so.
    #[must_use]
    pub fn reads<P: AsRef<Path>>(
        mut self,
        role: &str,
        paths: impl IntoIterator<Item = P>,
    ) -> Claims {
        for path in paths {
            let path = path.as_ref();
            let mut add = |role: String, path: &Path| {
                let keys = keys(path);
                self.inputs.push(Input { role, keys });
            };
            for part in parts(path) {
                add(role.to_string(), &part);
            }
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                add(format!("a file of {role}"), &entry.path());
            }
        }
        self
    }

    /// Adds what is written.
    #[must_use]
    pub fn writes<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Claims {
        let paths = paths.into_iter().map(|p| p.as_ref().to_path_buf());
        self.outputs.extend(paths);
        self
    }

    /// Checks all against all.
    ///
    /// # Errors
    /// [`ClaimError`]: an output is an input, another output, or in a place that holds no plain
    /// file.
    pub fn check(&self) -> Result<(), ClaimError> {
        for (number, output) in self.outputs.iter().enumerate() {
            let own = keys(output);
            for second in &self.outputs[..number] {
                if overlap(&own, &keys(second)) {
                    return Err(ClaimError::Output {
                        first: second.clone(),
                        second: output.clone(),
                    });
                }
            }
            // The temporary files of an output that is written over hours.
            let siblings = ["part", "journal"].map(|s| sibling(output, s));
            let written = siblings.iter().flat_map(|s| keys(s)).chain(own);
            let written: Vec<Key> = written.collect();
            if let Some(input) = self.inputs.iter().find(|i| overlap(&i.keys, &written)) {
                return Err(ClaimError::Input {
                    output: output.clone(),
                    role: input.role.clone(),
                });
            }
            check_place(output)?;
        }
        Ok(())
    }
}

fn overlap(a: &[Key], b: &[Key]) -> bool {
    a.iter().any(|key| b.contains(key))
}

fn keys(path: &Path) -> Vec<Key> {
    let mut keys = Vec::new();
    #[cfg(unix)]
    if let Ok(found) = std::fs::metadata(path) {
        use std::os::unix::fs::MetadataExt;
        keys.push(Key::Node(found.dev(), found.ino()));
    }
    #[cfg(not(unix))]
    if let Ok(whole) = fs::canonicalize(path) {
        keys.push(Key::Path(whole));
    }
    if let (Ok(folder), Some(name)) = (fs::canonicalize(folder_of(path)), path.file_name()) {
        keys.push(Key::Path(folder.join(name)));
    }
    keys
}
