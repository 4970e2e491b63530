//! A reference's predictions on disk.
//!
//! ```text
//! magic "DWLOGITS", version u32, key [32], n_vocab u32, ctx u32, chunks u32, tokens i32 * ctx * chunks
//! per chunk: length u64, rows, SHA-256 of the rows
//! per row:   scale f32, min f32, step of the right token u16, bitmap of kept tokens, steps u16
//! ```
//!
//! A step is a log-probability in 16 bits, as `llama-perplexity` stores it. Tokens under e⁻¹⁶ do
//! not count in a divergence and are left out, which is most of them. Little-endian; the file is
//! private to the machine that made it, and any doubt about it means making it again.

use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use dwindle_formats::bounded;
use dwindle_formats::output::Draft;
use fs_err as fs;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::EvalError;
use super::chunks::{Chunks, EvalOptions};
use super::softmax::{LEAST_LOG_PROB, LogProbs};
use crate::llama::model::Token;

const MAGIC: &[u8; 8] = b"DWLOGITS";
const VERSION: u32 = 1;
/// Scale, least log-probability, step of the right token.
const ROW_HEAD: usize = 4 + 4 + 2;

/// The key of a cached reference: it changes with everything that changes the predictions.
///
/// `reference` is a digest, or anything else that stands for the reference's exact bytes.
pub fn cache_key(reference: &[u8], text: &str, options: &EvalOptions) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(VERSION.to_le_bytes());
    hash.update((reference.len() as u64).to_le_bytes());
    hash.update(reference);
    hash.update(options.ctx.to_le_bytes());
    let chunks = options.chunks.map_or(u64::MAX, |n| n as u64);
    hash.update(chunks.to_le_bytes());
    hash.update(text.as_bytes());
    hash.finalize().into()
}

/// Whether a file is a cached reference with this key.
pub fn cache_matches(path: &Path, key: [u8; 32]) -> bool {
    CacheReader::open(path, key).is_ok()
}

/// Writes a cache.
pub(super) struct CacheWriter {
    file: BufWriter<Draft>,
    n_vocab: usize,
}

impl CacheWriter {
    pub fn create(
        path: &Path,
        key: [u8; 32],
        n_vocab: usize,
        chunks: &Chunks,
    ) -> Result<CacheWriter, EvalError> {
        if !is_replaceable(path)? {
            return Err(EvalError::NoCache(path.to_path_buf()));
        }
        let mut file = BufWriter::new(Draft::new(path)?);
        file.write_all(MAGIC)?;
        file.write_all(&VERSION.to_le_bytes())?;
        file.write_all(&key)?;
        for n in [n_vocab, chunks.ctx, chunks.count] {
            file.write_all(&(n as u32).to_le_bytes())?;
        }
        for token in &chunks.tokens {
            file.write_all(&token.to_le_bytes())?;
        }
        Ok(CacheWriter { file, n_vocab })
    }

    pub fn chunk(&mut self, rows: &[f32], targets: &[Token]) -> Result<(), EvalError> {
        let rows: Vec<Vec<u8>> = rows
            .par_chunks(self.n_vocab)
            .zip(targets)
            .map_init(LogProbs::default, |base, (row, target)| {
                base.set(row);
                encode(base, *target as usize)
            })
            .collect();
        let len: usize = rows.iter().map(Vec::len).sum();
        self.file.write_all(&(len as u64).to_le_bytes())?;
        let mut hash = Sha256::new();
        for row in &rows {
            hash.update(row);
            self.file.write_all(row)?;
        }
        self.file.write_all(&hash.finalize())?;
        Ok(())
    }

    pub fn finish(self) -> Result<(), EvalError> {
        let file = self.file.into_inner().map_err(|e| e.into_error())?;
        Ok(file.finish()?)
    }
}

/// Whether a cache may take a file's place: it is not there, empty, or a cache itself.
fn is_replaceable(path: &Path) -> std::io::Result<bool> {
    match fs::symlink_metadata(path) {
        // Anything but a plain file is refused by its kind.
        Ok(found) if found.is_file() => {}
        _ => return Ok(true),
    }
    let mut magic = Vec::new();
    let beginning = bounded::open(path)?.take(MAGIC.len() as u64);
    let len = { beginning }.read_to_end(&mut magic)?;
    Ok(len == 0 || magic == MAGIC)
}

/// Reads a cache, chunk after chunk.
pub(super) struct CacheReader {
    file: BufReader<fs::File>,
    path: PathBuf,
    n_vocab: usize,
    ctx: usize,
    tokens: Vec<Token>,
    /// Bytes of the file after its header.
    left: u64,
    rows: Vec<LogProbs>,
}

impl CacheReader {
    pub fn open(path: &Path, key: [u8; 32]) -> Result<CacheReader, EvalError> {
        let file = bounded::open(path)?;
        let len = file.metadata()?.len();
        let mut file = BufReader::with_capacity(1 << 20, file);
        let other = || EvalError::CacheKey(path.to_path_buf());
        let mut head = [0u8; 8 + 4 + 32 + 12];
        file.read_exact(&mut head).map_err(|_| other())?;
        let number =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..8] != *MAGIC || number(8) != VERSION || head[12..44] != key {
            return Err(other());
        }
        let [n_vocab, ctx, chunks] = [44, 48, 52].map(|at| number(at) as usize);
        let tokens_len = ctx as u64 * chunks as u64 * 4;
        let left = (len - head.len() as u64)
            .checked_sub(tokens_len)
            .ok_or_else(other)?;
        let mut bytes = vec![0u8; tokens_len as usize];
        file.read_exact(&mut bytes)?;
        let tokens = bytes.as_chunks::<4>().0.iter();
        Ok(CacheReader {
            file,
            path: path.to_path_buf(),
            n_vocab,
            ctx,
            tokens: tokens.map(|b| Token::from_le_bytes(*b)).collect(),
            left,
            rows: Vec::new(),
        })
    }

    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Whether the cache is of exactly these chunks.
    pub fn holds(&self, chunks: &Chunks) -> bool {
        self.ctx == chunks.ctx && self.tokens == chunks.tokens
    }

    /// The rows of the next chunk.
    pub fn chunk(&mut self, chunk: usize, targets: &[Token]) -> Result<&[LogProbs], EvalError> {
        let path = self.path.clone();
        let damaged = || EvalError::CacheDamaged {
            path: path.clone(),
            chunk,
        };
        let mut len = [0u8; 8];
        self.file.read_exact(&mut len).map_err(|_| damaged())?;
        let len = u64::from_le_bytes(len);
        self.left = len
            .checked_add(8 + 32)
            .and_then(|n| self.left.checked_sub(n))
            .ok_or_else(damaged)?;
        let mut bytes = vec![0u8; len as usize];
        let mut digest = [0u8; 32];
        self.file.read_exact(&mut bytes).map_err(|_| damaged())?;
        self.file.read_exact(&mut digest).map_err(|_| damaged())?;
        if Sha256::digest(&bytes)[..] != digest {
            return Err(damaged());
        }
        self.rows.resize(targets.len(), LogProbs::default());
        let mut rest = bytes.as_slice();
        let mut rows = Vec::with_capacity(targets.len());
        for target in targets {
            let len = row_len(rest, self.n_vocab).ok_or_else(damaged)?;
            let (row, after) = rest.split_at_checked(len).ok_or_else(damaged)?;
            rows.push((row, *target as usize));
            rest = after;
        }
        let n_vocab = self.n_vocab;
        self.rows
            .par_iter_mut()
            .zip(rows)
            .for_each(|(to, (row, target))| decode(row, n_vocab, target, to));
        Ok(&self.rows)
    }
}

fn encode(base: &LogProbs, target: usize) -> Vec<u8> {
    let n = base.steps.len();
    let mut out = vec![0u8; ROW_HEAD + n.div_ceil(8)];
    out[..4].copy_from_slice(&base.scale.to_le_bytes());
    out[4..8].copy_from_slice(&base.min.to_le_bytes());
    out[8..10].copy_from_slice(&base.steps[target].to_le_bytes());
    for (i, step) in base.steps.iter().enumerate() {
        if base.get(i) > LEAST_LOG_PROB {
            out[ROW_HEAD + i / 8] |= 1 << (i % 8);
            out.extend_from_slice(&step.to_le_bytes());
        }
    }
    out
}

/// The length of the row that begins here, if its bitmap is there.
fn row_len(bytes: &[u8], n_vocab: usize) -> Option<usize> {
    let head = ROW_HEAD + n_vocab.div_ceil(8);
    let bitmap = bytes.get(ROW_HEAD..head)?;
    let kept: usize = bitmap.iter().map(|b| b.count_ones() as usize).sum();
    Some(head + 2 * kept)
}

/// Reads a row whose length [`row_len`] has given.
fn decode(row: &[u8], n_vocab: usize, target: usize, to: &mut LogProbs) {
    let float = |at: usize| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
    (to.scale, to.min) = (float(0), float(4));
    to.steps.clear();
    // A token that was left out decodes to the least log-probability, which does not count.
    to.steps.resize(n_vocab, 0);
    let (bitmap, steps) = row[ROW_HEAD..].split_at(n_vocab.div_ceil(8));
    let mut steps = steps.as_chunks::<2>().0.iter();
    for (i, step) in to.steps.iter_mut().enumerate() {
        if bitmap[i / 8] >> (i % 8) & 1 == 1
            && let Some(bytes) = steps.next()
        {
            *step = u16::from_le_bytes(*bytes);
        }
    }
    if let Some(step) = to.steps.get_mut(target) {
        *step = u16::from_le_bytes([row[8], row[9]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::softmax::divergence;

    #[test]
    fn a_row_keeps_what_counts() {
        let logits: Vec<f32> = (0..1003).map(|i| 10.0 - (i as f32) * 0.1).collect();
        let mut base = LogProbs::default();
        base.set(&logits);
        for target in [0, 5, 900] {
            let bytes = encode(&base, target);
            assert!(bytes.len() < 600, "{}", bytes.len());
            assert_eq!(row_len(&bytes, 1003), Some(bytes.len()));
            let mut back = LogProbs::default();
            decode(&bytes, 1003, target, &mut back);
            let other: Vec<f32> = logits.iter().rev().copied().collect();
            let expected = divergence(&other, &base, target);
            assert_eq!(divergence(&other, &back, target), expected);
        }
        assert_eq!(row_len(&[0; 20], 1003), None);
    }

    #[test]
    fn keys_differ_with_everything() {
        let options = EvalOptions::default();
        let key = cache_key(b"model", "text", &options);
        assert_eq!(key, cache_key(b"model", "text", &options));
        assert_ne!(key, cache_key(b"modelt", "ext", &options));
        let other = EvalOptions {
            chunks: Some(3),
            ..options
        };
        assert_ne!(key, cache_key(b"model", "text", &other));
    }
}
