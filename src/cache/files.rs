//! Packs and unpacks states as files.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use dwindle_formats::gguf::TensorType;
use dwindle_formats::output::Draft;
use dwindle_formats::packed::Packed;

use super::calibrate::CHUNK;
use super::error::CacheError;
use crate::kv::codebook::Codebook;
use crate::kv::{
    Encoder, KvError, Packing, Ranks, Settings, Target, Unpacker, Way, pack, step_for_ratio,
};
use crate::mapped::Mapping;

/// How large or how good a state that is packed by a codebook is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// So many bytes of keys and values in F16 for each packed one, as far as what is kept bit by bit allows.
    Ratio(f64),
    /// The divergence that the codebook's trials had.
    Kld(f64),
}

/// How to pack.
#[derive(Debug, Clone, Copy)]
pub enum How<'a> {
    /// By a codebook.
    Transform(&'a Encoder<'a>, Aim),
    /// As leading singular triples.
    ChunkedSvd(Ranks),
    /// In one of ggml's types.
    Quantize(TensorType),
    /// Bit by bit.
    Lossless,
}

impl<'a> How<'a> {
    /// The same for one state, with a step where there was an aim.
    ///
    /// # Errors
    /// It is no state, or another model's; or the codebook has no trials.
    pub fn way(self, state: &[u8], chunk: usize) -> Result<Way<'a>, CacheError> {
        Ok(match self {
            How::Lossless => Way::Lossless,
            How::Quantize(ty) => Way::Quantize(ty),
            How::ChunkedSvd(ranks) => Way::ChunkedSvd(ranks),
            How::Transform(encoder, aim) => Way::Transform(
                encoder,
                match aim {
                    Aim::Ratio(ratio) => step_for_ratio(state, encoder, ratio, chunk)?,
                    Aim::Kld(kld) => encoder.codebook.step_for(kld).ok_or_else(|| {
                        KvError::Codebook("it has no trials; name a ratio instead".into())
                    })?,
                },
            ),
        })
    }
}

/// How often a state is packed again because it took a little more than a sample of it.
const MOST_TRIES: usize = 4;

/// Reads a codebook.
///
/// # Errors
/// It is none, or damaged.
pub fn open_codebook(path: &Path) -> Result<Codebook, CacheError> {
    let bytes = Mapping::open(path)?;
    Ok(Codebook::read(&bytes)?)
}

/// Packs a state.
///
/// # Errors
/// [`CacheError`]; an existing file is then untouched.
pub fn pack_file(
    state: &Path,
    how: How<'_>,
    chunk: usize,
    output: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<Packing, CacheError> {
    let bytes = Mapping::open(state)?;
    let mut way = how.way(&bytes, chunk)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let mut draft = Draft::new(output)?;
        let out = std::io::BufWriter::new(&mut draft);
        let packing = pack(&bytes, way, chunk, None, out, progress)?;
        // What a sample took was a little less than what all takes.
        if let (How::Transform(_, Aim::Ratio(ratio)), Way::Transform(encoder, step)) = (how, way)
            && (ratio * 0.9..ratio).contains(&packing.ratio())
            && tries < MOST_TRIES
        {
            let slower = (ratio / packing.ratio()).powf(1.5) as f32 * 1.001;
            way = Way::Transform(encoder, step * slower);
            continue;
        }
        draft.finish()?;
        return Ok(packing);
    }
}

/// Packs a state in memory.
///
/// # Errors
/// [`CacheError`].
pub fn pack_bytes(state: &[u8], how: How<'_>) -> Result<Vec<u8>, CacheError> {
    let mut packed = Vec::new();
    let way = how.way(state, CHUNK)?;
    pack(state, way, CHUNK, None, &mut packed, &mut |_| ())?;
    Ok(packed)
}

/// Unpacks a state. Gives its bytes, and how it was packed.
///
/// # Errors
/// [`CacheError`]; an existing file is then untouched.
pub fn unpack_file(
    packed: &Path,
    codebook: Option<&Codebook>,
    target: &Target,
    output: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<(usize, Settings), CacheError> {
    let bytes = Mapping::open(packed)?;
    let packed = Packed::read(&bytes).map_err(KvError::from)?;
    let unpacker = Unpacker::new(&packed, codebook)?;
    let draft = Draft::new(output)?;
    let file = std::cell::RefCell::new(draft);
    let len = unpacker.unpack(
        target,
        &mut |len| file.borrow().set_len(len as u64),
        &mut |at, bytes| {
            let mut file = file.borrow_mut();
            file.seek(SeekFrom::Start(at as u64))?;
            file.write_all(bytes)
        },
        progress,
    )?;
    file.into_inner().finish()?;
    Ok((len, unpacker.settings().clone()))
}

/// Unpacks a state into memory.
///
/// # Errors
/// [`CacheError`].
pub fn unpack_bytes(
    packed: &[u8],
    codebook: Option<&Codebook>,
    target: &Target,
) -> Result<Vec<u8>, CacheError> {
    let packed = Packed::read(packed).map_err(KvError::from)?;
    let unpacker = Unpacker::new(&packed, codebook)?;
    let state = std::cell::RefCell::new(Vec::new());
    unpacker.unpack(
        target,
        &mut |len| {
            state.borrow_mut().resize(len, 0);
            Ok(())
        },
        &mut |at, bytes| {
            state.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        },
        &mut |_| (),
    )?;
    Ok(state.into_inner())
}
