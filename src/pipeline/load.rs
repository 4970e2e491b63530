//! Anything that can run, into llama.cpp: GGUF files, containers, checkpoints. Nothing is written
//! to disk on the way.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use dwindle_formats::container::{Container, ContainerError, is_container};
use dwindle_formats::gguf::{GgufError, read_header};

use super::stock::{StockError, StockModel};
use crate::architecture;
use crate::checkpoint::{self, Caches};
use crate::llama::feed::{FeedError, TensorFeed};
use crate::llama::ggml::{self, GgmlError};
use crate::llama::mapping::Mapping;
use crate::llama::model::{LlamaError, Model, ModelOptions};
use crate::plan::{self, PlanError, Recipe};
use crate::statistics::Measured;
use crate::statistics::{Identity, is_norm};

/// Why a file can't be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum LoadError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Architecture(#[from] architecture::Error),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("`{path}`: {source}")]
    Gguf { path: String, source: GgufError },
    #[error("`{path}`: {source}")]
    Container {
        path: String,
        source: ContainerError,
    },
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error(transparent)]
    Stock(#[from] StockError),
    #[error("can't read a norm of the model")]
    Norm(#[from] GgmlError),
}

/// Loads a model: a GGUF file as llama.cpp does, a file of dwindle with its digests checked and
/// its factors multiplied out, a Hugging Face checkpoint in its own types.
///
/// `progress` is called with the tensors that are ready and their number.
///
/// # Errors
/// [`LoadError`].
pub fn load(
    path: &Path,
    options: &ModelOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    let path =
        &checkpoint::resolve(path, &Caches::from_env()).map_err(architecture::Error::from)?;
    if path.is_dir() {
        return load_as(path, &plan::preset("source"), options, progress);
    }
    let bytes = Mapping::open(path)?;
    let name = || path.display().to_string();
    let header = read_header(&bytes).map_err(|source| LoadError::Gguf {
        path: name(),
        source,
    })?;
    if !is_container(&header) {
        return Ok(Model::load(path, options)?);
    }
    let container = Container::read(&bytes).map_err(|source| LoadError::Container {
        path: name(),
        source,
    })?;
    let stock = StockModel::from_container(&container, &bytes);
    feed(path, &stock, options, progress)
}

/// Loads a checkpoint (Hugging Face or GGUF) as a recipe without factors stores it. Its weights can
/// be replaced: see [`Model::replace`].
///
/// # Errors
/// [`LoadError`].
pub fn load_as(
    path: &Path,
    recipe: &Recipe,
    options: &ModelOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    let path =
        &checkpoint::resolve(path, &Caches::from_env()).map_err(architecture::Error::from)?;
    let (source, model) = architecture::open(path)?;
    let plan = plan::resolve(recipe, &model, source.as_ref(), &Measured::default())?;
    let stock = StockModel::from_plan(&plan, &model, source.as_ref());
    feed(path, &stock, options, progress)
}

/// Which model a file or checkpoint is; see [`Identity`].
///
/// # Errors
/// [`LoadError`].
pub fn identity(path: &Path) -> Result<Identity, LoadError> {
    let path =
        &checkpoint::resolve(path, &Caches::from_env()).map_err(architecture::Error::from)?;
    if !path.is_dir() {
        let bytes = Mapping::open(path)?;
        let name = || path.display().to_string();
        let header = read_header(&bytes).map_err(|source| LoadError::Gguf {
            path: name(),
            source,
        })?;
        if is_container(&header) {
            let container = Container::read(&bytes).map_err(|source| LoadError::Container {
                path: name(),
                source,
            })?;
            let stock = StockModel::from_container(&container, &bytes);
            return stock_identity(&stock);
        }
    }
    let (source, model) = architecture::open(path)?;
    Ok(Identity::of(&model, source.as_ref())?)
}

fn stock_identity(stock: &StockModel<'_>) -> Result<Identity, LoadError> {
    let mut norms = Vec::new();
    for (i, tensor) in stock.tensors.iter().enumerate() {
        if is_norm(&tensor.name) {
            let mut values = vec![0f32; tensor.shape.iter().product::<u64>() as usize];
            ggml::dequantize(tensor.ty, &stock.tensor(i)?, &mut values)?;
            norms.push((tensor.name.clone(), tensor.shape.clone(), values));
        }
    }
    Ok(Identity::new(&stock.metadata, norms))
}

fn feed(
    path: &Path,
    stock: &StockModel<'_>,
    options: &ModelOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    let total = stock.tensors.len() as u64;
    let done = AtomicU64::new(0);
    let feed = TensorFeed::new(
        &stock.metadata,
        stock.tensors.clone(),
        Box::new(move |index, out| {
            *out = stock.tensor(index)?;
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
            Ok(())
        }),
    )?;
    Ok(Model::load_feed(
        &path.display().to_string(),
        feed,
        options,
    )?)
}
