//! A LoRA adapter of PEFT as a file that llama.cpp loads beside a model.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use dwindle_formats::gguf::{DEFAULT_ALIGNMENT, TensorLayout, TensorType, encode_header, lay_out};
use dwindle_formats::output::{Claims, Draft, Kind};

use super::Error;
use crate::architecture::{self, AdapterTensor};
use crate::checkpoint::lora::Lora;
use crate::checkpoint::{self, Caches};

/// What was written.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Adapter {
    /// The checkpoint that it is an adapter of.
    pub base: PathBuf,
    /// Weights that it changes.
    pub weights: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Converts the adapter in a folder. The checkpoint that it was trained on is the one given, or else the one that the
/// folder names, which may be in the Hugging Face cache.
///
/// # Errors
/// [`Error`]: when the folder holds no LoRA adapter, or one of another checkpoint, or the file can't be written.
pub fn adapter(folder: &Path, base: Option<&Path>, output: &Path) -> Result<Adapter, Error> {
    let lora = Lora::open(folder).map_err(architecture::Error::from)?;
    let named = base.or_else(|| lora.base().map(Path::new));
    let named = named.ok_or_else(|| Error::NoBase(folder.to_path_buf()))?;
    let base = checkpoint::resolve(named, &Caches::from_env());
    let base = base.map_err(architecture::Error::from)?;
    Claims::new()
        .reads("the adapter", [folder])
        .reads("the checkpoint", [&base])
        .writes([output])
        .check()?;
    Kind::Gguf.check(output)?;
    let (source, model) = architecture::open(&base)?;
    let (metadata, tensors) = architecture::adapter(&lora, source.as_ref(), &model)?;
    let layout = |tensor: &AdapterTensor| TensorLayout {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        ty: TensorType::F32,
    };
    let layouts = tensors.iter().map(layout).collect();
    let (infos, _) = lay_out(layouts, DEFAULT_ALIGNMENT)
        .ok_or_else(|| std::io::Error::other("the adapter is too large for a file"))?;
    let mut bytes = encode_header(&metadata, &infos, DEFAULT_ALIGNMENT);
    let mut draft = Draft::new(output)?;
    let mut written = 0u64;
    for tensor in &tensors {
        draft.write_all(&bytes)?;
        written += bytes.len() as u64;
        let padding = tensor
            .bytes
            .len()
            .next_multiple_of(DEFAULT_ALIGNMENT as usize);
        bytes = [&tensor.bytes[..], &vec![0; padding - tensor.bytes.len()]].concat();
    }
    draft.write_all(&bytes)?;
    draft.finish()?;
    Ok(Adapter {
        base,
        weights: tensors.len() / 2,
        bytes: written + bytes.len() as u64,
    })
}
