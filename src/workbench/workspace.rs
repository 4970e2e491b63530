//! A folder for what was measured of a model, so that nothing is computed twice.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::mapped::Mapping;

/// The file that says which model a workspace is of.
const ABOUT: &str = "workspace.json";

/// How the names of files begin that hold what was measured, and can be used elsewhere.
const MEASURED: [&str; 2] = ["survey-", "output-"];

/// The workspace of one model.
#[derive(Debug, Clone)]
pub struct Workspace {
    folder: PathBuf,
}

/// What is known of a workspace without opening it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its folder's name: a digest of the model.
    pub id: String,
    /// Where the model was when it was last used.
    pub checkpoint: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Seconds since it was last used.
    pub unused: u64,
    /// Where it is.
    pub folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct About {
    checkpoint: String,
}

/// Where workspaces are by default, by the convention of the XDG base directories.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn default_folder() -> Result<PathBuf, Error> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let cache = var("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .ok_or(Error::NoCacheFolder)?;
    Ok(cache.join("dwindle").join("workspaces"))
}

impl Workspace {
    /// Opens or makes the workspace of a model, by its digest.
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn open(all: &Path, digest: &str, checkpoint: &Path) -> Result<Workspace, Error> {
        let folder = all.join(&digest[..digest.len().min(16)]);
        fs::create_dir_all(&folder)?;
        let about = About {
            checkpoint: std::path::absolute(checkpoint)?.display().to_string(),
        };
        let json = serde_json::to_vec(&about).map_err(std::io::Error::from)?;
        dwindle_formats::output::write(&folder.join(ABOUT), &json)?;
        Ok(Workspace { folder })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// All workspaces of a folder, those used last first.
///
/// # Errors
/// The folder can't be read.
pub fn list(all: &Path) -> Result<Vec<Listed>, Error> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(all) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let folder = entry?.path();
        let about = folder.join(ABOUT);
        // Anything else in the folder is not ours.
        let Ok(bytes) = fs::read(&about) else {
            continue;
        };
        let Ok(About { checkpoint }) = serde_json::from_slice(&bytes) else {
            continue;
        };
        let used = fs::metadata(&about)?.modified()?;
        found.push(Listed {
            id: folder
                .file_name()
                .map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            checkpoint,
            bytes: bytes_of(&folder)?,
            unused: SystemTime::now()
                .duration_since(used)
                .unwrap_or(Duration::ZERO)
                .as_secs(),
            folder,
        });
    }
    found.sort_by_key(|w| w.unused);
    Ok(found)
}

/// Copies what was measured of models from other folders of workspaces into one. Gives the copies.
///
/// # Errors
/// A folder without workspaces, or a file that is there already and is another.
pub fn join(from: &[PathBuf], into: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut copies = Vec::new();
    for folder in from {
        let found = list(folder)?;
        if found.is_empty() {
            return Err(Error::NoWorkspace(folder.clone()));
        }
        for one in found {
            let workspace = Workspace::open(into, &one.id, Path::new(&one.checkpoint))?;
            for entry in fs::read_dir(&one.folder)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if MEASURED.iter().any(|begin| name.starts_with(begin)) {
                    let copy = workspace.file(&name);
                    if copied(&one.folder.join(&name), &copy)? {
                        copies.push(copy);
                    }
                }
            }
        }
    }
    Ok(copies)
}

/// Copies a file to where none is, or the same.
fn copied(file: &Path, copy: &Path) -> Result<bool, Error> {
    let bytes = Mapping::open(file)?;
    if !copy.exists() {
        dwindle_formats::output::write(copy, &bytes)?;
        return Ok(true);
    }
    if Mapping::open(copy)?[..] == bytes[..] {
        return Ok(false);
    }
    Err(Error::TwoMeasurements {
        found: file.to_path_buf(),
        there: copy.to_path_buf(),
    })
}

/// Removes a workspace.
///
/// # Errors
/// Its files can't be removed.
pub fn remove(workspace: &Listed) -> Result<(), Error> {
    Ok(fs::remove_dir_all(&workspace.folder)?)
}

fn bytes_of(folder: &Path) -> Result<u64, Error> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        bytes += match kind.is_dir() {
            true => bytes_of(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}
