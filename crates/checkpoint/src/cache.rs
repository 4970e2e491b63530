//! Resolves names of models (`Qwen/Qwen3-0.6B`) to folders of the local Hugging Face cache.
//!
//! The cache holds `models--ORG--NAME/refs/main`, a file with a commit, and
//! `models--ORG--NAME/snapshots/COMMIT`, the folder of that commit.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use dwindle_formats::bounded;
use fs_err as fs;

use super::Error;

/// The cache folders to search, in order.
#[derive(Debug, Clone, Default)]
pub struct Caches(Vec<PathBuf>);

impl Caches {
    /// The folders that the Hugging Face libraries would use, given the environment.
    pub fn from_env() -> Caches {
        Caches::from_vars(|name| std::env::var_os(name).filter(|v| !v.is_empty()))
    }

    /// As [`Caches::from_env`], with the environment as a function.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Caches {
        let hub = |home: PathBuf| home.join("hub");
        // Each is used only when those before it are not set, as in huggingface_hub.
        let folder = var("HF_HUB_CACHE")
            .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
            .map(PathBuf::from)
            .or_else(|| var("HF_HOME").map(PathBuf::from).map(hub))
            .or_else(|| {
                var("XDG_CACHE_HOME").map(|cache| hub(PathBuf::from(cache).join("huggingface")))
            })
            .or_else(|| {
                var("HOME").map(|home| hub(PathBuf::from(home).join(".cache").join("huggingface")))
            });
        Caches(folder.into_iter().collect())
    }

    /// The folder of a model's `main` revision.
    fn find(&self, name: &str) -> Result<Option<PathBuf>, Error> {
        let Some(entry) = entry_name(name) else {
            return Ok(None);
        };
        for cache in &self.0 {
            let model = cache.join(&entry);
            if model.is_dir() {
                return snapshot(name, &model).map(Some);
            }
        }
        Ok(None)
    }
}

/// `models--ORG--NAME`, or `None` when the text can't be the name of a model.
fn entry_name(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('/').collect();
    let fits = |part: &&str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    (parts.len() <= 2 && parts.iter().all(fits)).then(|| format!("models--{}", parts.join("--")))
}

/// The snapshot that `refs/main` names, or the only one there is.
fn snapshot(name: &str, model: &Path) -> Result<PathBuf, Error> {
    let problem = |problem: String| Error::Cache {
        name: name.to_string(),
        path: model.to_path_buf(),
        problem,
    };
    let snapshots = model.join("snapshots");
    let reference = model.join("refs").join("main");
    if reference.is_file() {
        let commit = bounded::read_text(&reference, bounded::limits::REFERENCE)?;
        let commit = commit.trim();
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(problem(format!(
                "`refs/main` holds `{commit}`, which is not a commit"
            )));
        }
        let folder = snapshots.join(commit);
        return if folder.is_dir() {
            Ok(folder)
        } else {
            Err(problem(format!("its snapshot `{commit}` is missing")))
        };
    }
    let mut folders = Vec::new();
    if snapshots.is_dir() {
        for entry in fs::read_dir(&snapshots)? {
            folders.push(entry?.path());
        }
    }
    match folders.as_slice() {
        [only] if only.is_dir() => Ok(only.clone()),
        [] => Err(problem("it has no snapshot".into())),
        many => Err(problem(format!(
            "`refs/main` is missing and it has {} snapshots",
            many.len()
        ))),
    }
}

/// What a user typed, as a path: itself when it exists, else a model of the cache.
///
/// # Errors
/// When it is neither.
pub fn resolve(name: &Path, caches: &Caches) -> Result<PathBuf, Error> {
    if name.exists() {
        return Ok(name.to_path_buf());
    }
    let text = name.to_string_lossy();
    if let Some(folder) = caches.find(&text)? {
        return Ok(folder);
    }
    let looked = match (entry_name(&text), caches.0.first()) {
        (Some(entry), Some(cache)) => format!("`{}`", cache.join(entry).display()),
        _ => "a path".to_string(),
    };
    Err(Error::NotFound(text.into_owned(), looked))
}

/// `ORG/NAME` when the folder is a snapshot of the cache.
pub(super) fn name_of_snapshot(folder: &Path) -> Option<String> {
    let snapshots = folder.parent()?;
    if snapshots.file_name()? != "snapshots" {
        return None;
    }
    let entry = snapshots.parent()?.file_name()?.to_str()?;
    Some(entry.strip_prefix("models--")?.replace("--", "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caches(pairs: &[(&str, &str)]) -> Vec<PathBuf> {
        Caches::from_vars(|name| pairs.iter().find(|p| p.0 == name).map(|p| p.1.into())).0
    }

    #[test]
    fn the_environment_chooses_the_cache() {
        let home = ("HOME", "/h");
        assert_eq!(caches(&[home]), [Path::new("/h/.cache/huggingface/hub")]);
        assert_eq!(
            caches(&[home, ("XDG_CACHE_HOME", "/x")]),
            [Path::new("/x/huggingface/hub")]
        );
        assert_eq!(caches(&[home, ("HF_HOME", "/f")]), [Path::new("/f/hub")]);
        assert_eq!(
            caches(&[home, ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]),
            [Path::new("/c")]
        );
    }

    #[test]
    fn a_name_resolves_by_its_reference() {
        let dir = tempfile::tempdir().unwrap();
        let caches = Caches(vec![dir.path().to_path_buf()]);
        let model = dir.path().join("models--Org--Name-1.5");
        let wanted = model.join("snapshots").join("abc");
        std::fs::create_dir_all(&wanted).unwrap();
        std::fs::create_dir_all(model.join("snapshots").join("def")).unwrap();
        let name = Path::new("Org/Name-1.5");

        let error = resolve(name, &caches).unwrap_err().to_string();
        assert!(error.contains("2 snapshots"), "{error}");

        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs").join("main"), "abc\n").unwrap();
        let found = resolve(name, &caches).unwrap();
        assert_eq!(found, wanted);
        assert_eq!(name_of_snapshot(&found).as_deref(), Some("Org/Name-1.5"));

        std::fs::write(model.join("refs").join("main"), "../../..").unwrap();
        assert!(resolve(name, &caches).is_err());
        let error = resolve(Path::new("Org/Other"), &caches).unwrap_err();
        assert!(error.to_string().contains("models--Org--Other"), "{error}");
        assert!(resolve(Path::new("../x/y"), &caches).is_err());
    }
}
