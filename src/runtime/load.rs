//! Loads GGUF files, containers and checkpoints into llama.cpp, without writing anything to disk.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dwindle_formats::container::{
    Container, ContainerError, Form, StoredTensor, is_container, verify,
};
use dwindle_formats::gguf::{GgufError, Metadata, TensorLayout, TensorType, parts, read_header};

use super::chain::chains;
use super::stock::{StockError, StockModel};
use crate::architecture;
use crate::checkpoint::gguf::Gguf;
use crate::checkpoint::{self, Caches, Source as _};
use crate::ggml::{self, GgmlError};
use crate::llama::context::{Context, ContextOptions};
use crate::llama::extent::{ExtentError, check_extent};
use crate::llama::feed::{FeedError, TensorFeed};
use crate::llama::model::{LlamaError, Model, ModelOptions};
use crate::mapped::Mapping;
use crate::plan::{self, Base, PlanError, Recipe, Subject};
use crate::statistics::{Identity, Place, Sample, digest, is_norm};

/// Tokens of the graph that shows how a model uses its weights.
const PROBE_TOKENS: u32 = 64;

/// What becomes of a container's factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Factors {
    /// They remain factors, in memory and in every product.
    #[default]
    Executed,
    /// Their product takes their place, in F16.
    MultipliedOut,
}

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
    #[error("`{path}`: {source}")]
    Extent { path: String, source: ExtentError },
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error(transparent)]
    Stock(#[from] StockError),
    #[error("can't read a norm of the model")]
    Norm(#[from] GgmlError),
}

/// Loads a model: a GGUF file as llama.cpp does, mapped, its digests checked where it has any; a container
/// with its digests checked and its factors executed or, if so wished, multiplied out; a Hugging Face
/// checkpoint in its own types.
///
/// `progress` is called with the tensors that are ready and their number.
///
/// # Errors
/// [`LoadError`].
pub fn load(
    path: &Path,
    options: &ModelOptions,
    factors: Factors,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    let path =
        &checkpoint::resolve(path, &Caches::from_env()).map_err(architecture::Error::from)?;
    if path.is_dir() {
        return load_as(path, &Recipe::of(Base::Source), options, progress);
    }
    let paths = parts(path);
    if paths.len() > 1 {
        return load_parts(&paths, options);
    }
    let bytes = Mapping::open(path)?;
    let name = || path.display().to_string();
    let header = read_header(&bytes).map_err(|source| LoadError::Gguf {
        path: name(),
        source,
    })?;
    if !is_container(&header) {
        extent(path, header.tensors.len(), &header.metadata)?;
        return Ok(Model::load(path, options)?);
    }
    let container = Container::read(&bytes).map_err(|source| LoadError::Container {
        path: name(),
        source,
    })?;
    if container.is_stock() {
        undamaged(path, &container, &bytes)?;
        return Ok(Model::load(path, options)?);
    }
    if factors == Factors::Executed {
        return execute(
            path,
            &Arc::new(container),
            &Arc::new(bytes),
            options,
            progress,
        );
    }
    let stock = StockModel::from_container(&container, &bytes);
    feed(path, &stock, options, progress)
}

/// Loads the parts of a split model, mapped. Checksums are verified where the parts have them.
fn load_parts(paths: &[PathBuf], options: &ModelOptions) -> Result<Model, LoadError> {
    let whole = Gguf::open(&paths[0]).map_err(architecture::Error::from)?;
    extent(&paths[0], whole.tensors().len(), whole.metadata())?;
    for path in paths {
        let bytes = Mapping::open(path)?;
        match Container::read_part(&bytes) {
            Ok(container) => undamaged(path, &container, &bytes)?,
            Err(ContainerError::Foreign) => {}
            Err(source) => {
                return Err(LoadError::Container {
                    path: path.display().to_string(),
                    source,
                });
            }
        }
    }
    Ok(Model::load(&paths[0], options)?)
}

/// Refuses a damaged file. What was read stays mapped: the system takes its memory back where that is short.
fn undamaged(path: &Path, container: &Container, bytes: &Mapping) -> Result<(), LoadError> {
    let damage = verify(container, bytes, |_| (), |range| bytes.release(range));
    match damage.into_iter().next() {
        None => Ok(()),
        Some(source) => Err(LoadError::Container {
            path: path.display().to_string(),
            source,
        }),
    }
}

/// A container whose factors are executed. What the model's graph uses in a way that factors can't
/// serve is found by laying the graph out, and is loaded again as a matrix.
fn execute(
    path: &Path,
    container: &Arc<Container>,
    bytes: &Arc<Mapping>,
    options: &ModelOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    let stock = StockModel::from_container(container, bytes);
    let factored = |t: &StoredTensor| t.form != Form::Dense;
    if !container.plan.tensors.iter().any(factored) {
        return feed(path, &stock, options, progress);
    }
    let mut dense = HashSet::new();
    loop {
        let model = load_contracted(path, container, bytes, &dense, options, progress)?;
        let probe = ContextOptions {
            ctx: PROBE_TOKENS,
            batch: PROBE_TOKENS,
            ubatch: PROBE_TOKENS,
            ..ContextOptions::default()
        };
        // Whether a context is possible is checked when one is made.
        drop(Context::new(&model, &probe));
        let used_whole = model.used_whole();
        if used_whole.iter().all(|name| dense.contains(name)) {
            return Ok(model);
        }
        dense.extend(used_whole);
    }
}

fn load_contracted(
    path: &Path,
    container: &Arc<Container>,
    bytes: &Arc<Mapping>,
    dense: &HashSet<String>,
    options: &ModelOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    let stock = StockModel::from_container(container, bytes);
    extent(path, stock.tensors.len(), &stock.metadata)?;
    let (weights, fetch) = chains(container, bytes, dense);
    let metadata = stock.metadata.clone();
    let mut layouts = stock.tensors.clone();
    let mut contracted = vec![false; layouts.len()];
    for (layout, contracted) in layouts.iter_mut().zip(&mut contracted) {
        *contracted = weights.contractions.contains_key(&layout.name);
        if *contracted {
            // Read and dropped: the smallest that the row length allows.
            let fits = |ty: &TensorType| layout.shape[0].is_multiple_of(ty.block_len());
            let smallest = [TensorType::IQ1_S, TensorType::Q4_0].into_iter().find(fits);
            layout.ty = smallest.unwrap_or(TensorType::F16);
        }
    }
    let lens: Vec<u64> = layouts
        .iter()
        .map(|t| t.ty.bytes(&t.shape).unwrap_or(0))
        .collect();
    let total = layouts.len() as u64;
    let mut done = 0;
    let produce = move |index: usize, out: &mut Vec<u8>| {
        if contracted[index] {
            out.resize(lens[index] as usize, 0);
        } else {
            *out = stock.tensor(index)?;
        }
        done += 1;
        progress(done.min(total), total);
        Ok(())
    };
    let feed = TensorFeed::new(&metadata, layouts, Box::new(produce))?;
    let name = path.display().to_string();
    Ok(Model::load_contracted(
        &name, feed, weights, fetch, options,
    )?)
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
    let subject = Subject::unmeasured(&model, source.as_ref());
    load_from(path, &subject, recipe, options, progress)
}

/// As [`load_as`], of a checkpoint that has been opened. The path is its name.
///
/// # Errors
/// [`LoadError`].
pub fn load_from(
    path: &Path,
    subject: &Subject<'_>,
    recipe: &Recipe,
    options: &ModelOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    let plan = plan::resolve(recipe, subject)?;
    let stock = StockModel::from_plan(&plan, subject.model, subject.source);
    feed(path, &stock, options, progress)
}

/// Which model a file or checkpoint is; see [`Identity`].
///
/// # Errors
/// [`LoadError`].
pub fn identity(path: &Path) -> Result<Identity, LoadError> {
    let path =
        &checkpoint::resolve(path, &Caches::from_env()).map_err(architecture::Error::from)?;
    if !path.is_dir() && parts(path).len() == 1 {
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
            return stock_identity(&stock, &container);
        }
    }
    let (source, model) = architecture::open(path)?;
    Ok(Identity::of(&model, source.as_ref())?)
}

/// A name, in hexadecimal digits, of what a model computes: others with other weights, parameters or adapters have other
/// names. What was computed is kept by it.
///
/// Of the weights it has what [`identity`] has; all headers and configurations are in it whole.
///
/// # Errors
/// As [`identity`], or a file can't be read.
pub fn key(path: &Path, identity: &Identity, adapters: &[PathBuf]) -> Result<String, LoadError> {
    let mut digests = vec![identity.norms_sha256.clone()];
    let weights = identity.weights.iter();
    digests.extend(weights.map(|(name, weight)| format!("{name} {weight}")));
    for adapter in adapters {
        digests.push(digest(&Mapping::open(adapter)?));
    }
    let path = checkpoint::resolve(path, &Caches::from_env()).map_err(architecture::Error::from)?;
    if path.is_dir() {
        let configuration = path.join("config.json");
        if configuration.is_file() {
            digests.push(digest(&Mapping::open(&configuration)?));
        }
    } else {
        for part in parts(&path) {
            let bytes = Mapping::open(&part)?;
            let header = read_header(&bytes).map_err(|source| LoadError::Gguf {
                path: part.display().to_string(),
                source,
            })?;
            // That of a container has the digests of all factors.
            let end = (header.data_start as usize).min(bytes.len());
            digests.push(format!("{} {}", digest(&bytes[..end]), bytes.len()));
        }
    }
    Ok(digest(digests.join("\n").as_bytes()))
}

/// Weights of a container that are decoded to be sampled.
const SAMPLED: usize = 64;

fn stock_identity(stock: &StockModel<'_>, container: &Container) -> Result<Identity, LoadError> {
    let mut norms = Vec::new();
    for (i, tensor) in stock.tensors.iter().enumerate() {
        if is_norm(&tensor.name) {
            let mut values = vec![0f32; tensor.shape.iter().product::<u64>() as usize];
            ggml::dequantize(tensor.ty, &stock.tensor(i)?, &mut values)?;
            norms.push((tensor.name.clone(), tensor.shape.clone(), values));
        }
    }
    // The factors' product is not what the weights were.
    let stored = container.plan.tensors.iter().enumerate();
    let dense: Vec<usize> = stored
        .filter(|(_, t)| t.form == Form::Dense && t.shape.len() > 1 && !is_norm(&t.name))
        .map(|(i, _)| i)
        .collect();
    let mut samples = Vec::new();
    for i in dense.iter().step_by(dense.len().div_ceil(SAMPLED).max(1)) {
        let tensor = &stock.tensors[*i];
        if let Some(sample) = sample(tensor, &stock.tensor(*i)?)? {
            samples.push((tensor.name.clone(), sample));
        }
    }
    Ok(Identity::new(&stock.metadata, norms).with_weights(samples))
}

/// A sample of a tensor's bytes, if they are numbers.
fn sample(tensor: &TensorLayout, bytes: &[u8]) -> Result<Option<Sample>, LoadError> {
    let (row_len, rows) = (tensor.shape[0], tensor.shape[1..].iter().product());
    let place = Place::of(&tensor.name, row_len, rows);
    let row_bytes = tensor.ty.row_bytes(row_len) as usize;
    let start = place.row as usize * row_bytes;
    let Some(row) = bytes
        .get(start..start + row_bytes)
        .filter(|_| ggml::readable(tensor.ty))
    else {
        return Ok(None);
    };
    let mut values = vec![0f32; row_len as usize];
    ggml::dequantize(tensor.ty, row, &mut values)?;
    Ok(Some(place.sample(tensor.ty, &values)))
}

fn extent(path: &Path, tensors: usize, metadata: &Metadata) -> Result<(), LoadError> {
    check_extent(tensors, metadata.len()).map_err(|source| LoadError::Extent {
        path: path.display().to_string(),
        source,
    })
}

fn feed(
    path: &Path,
    stock: &StockModel<'_>,
    options: &ModelOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    extent(path, stock.tensors.len(), &stock.metadata)?;
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
