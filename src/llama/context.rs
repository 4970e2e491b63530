//! Evaluating tokens: the context of a model, its batches and its logits.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::PoisonError;

use dwindle_formats::gguf::TensorType;
use llama_cpp_sys_2 as sys;

use super::device::Devices;
use super::error::LlamaError;
use super::guard::{Failure, guarded, logged};
use super::model::Model;
use super::pooling::Pooling;
use super::vocabulary::Token;

/// When to use flash attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlashAttention {
    /// Where the device has it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How a context is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextOptions {
    /// Tokens of context for each sequence.
    pub ctx: u32,
    /// Sequences that are evaluated side by side.
    pub sequences: u32,
    /// Tokens that are submitted at once.
    pub batch: u32,
    /// Tokens that are computed at once.
    pub ubatch: u32,
    /// Tokens of an evaluation that may need logits; 0 for all. llama.cpp reserves memory for as
    /// many rows of the vocabulary's length.
    pub outputs: u32,
    /// Threads, `None` for one per physical core.
    pub threads: Option<u32>,
    /// When to use flash attention.
    pub flash_attention: FlashAttention,
    /// The type of keys and values; quantized values need flash attention.
    pub cache_type: TensorType,
    /// What is made of the rows of a text, which is then all that is computed: no logits.
    pub pooling: Option<Pooling>,
}

impl Default for ContextOptions {
    fn default() -> ContextOptions {
        ContextOptions {
            ctx: 4096,
            sequences: 1,
            batch: 2048,
            ubatch: 512,
            outputs: 0,
            threads: None,
            flash_attention: FlashAttention::Auto,
            cache_type: TensorType::F16,
            pooling: None,
        }
    }
}

/// A token to be evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchToken {
    /// The token.
    pub token: Token,
    /// Its position in its sequence.
    pub position: i32,
    /// Its sequence.
    pub sequence: i32,
    /// Whether logits are wanted for it.
    pub logits: bool,
}

/// Bytes that llama.cpp has allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct MemoryUse {
    /// The model's tensors (mapped files included).
    pub model: u64,
    /// The context: keys, values, recurrent states.
    pub context: u64,
    /// Scratch buffers of the computation, without what executed factors take between products.
    pub compute: u64,
}

/// The state of evaluating one model.
#[derive(Debug)]
pub struct Context<'m> {
    raw: NonNull<sys::llama_context>,
    model: &'m Model,
    batch: u32,
    sequences: u32,
    ctx: u32,
    outputs: usize,
    /// Whether llama.cpp has failed in a way after which the context's state is unknown.
    is_broken: bool,
}

// SAFETY: a context is used through `&mut self` only, and llama.cpp does not tie it to a thread.
unsafe impl Send for Context<'_> {}

impl<'m> Context<'m> {
    /// Makes a context.
    ///
    /// # Errors
    /// llama.cpp's words, mostly that memory is short.
    pub fn new(model: &'m Model, options: &ContextOptions) -> Result<Context<'m>, LlamaError> {
        Context::observed(model, options, None, std::ptr::null_mut())
    }

    /// As [`Self::new`], with a function that llama.cpp calls for every node of its graph while it
    /// evaluates, and the pointer that this function gets. The pointer must be valid for the
    /// function as long as the context lives.
    pub(super) fn observed(
        model: &'m Model,
        options: &ContextOptions,
        callback: sys::ggml_backend_sched_eval_callback,
        user_data: *mut std::ffi::c_void,
    ) -> Result<Context<'m>, LlamaError> {
        let total = options.ctx.checked_mul(options.sequences.max(1));
        let Some(total) = total.filter(|n| *n > 0 && i32::try_from(*n).is_ok()) else {
            return Err(LlamaError::Context {
                ctx: options.ctx,
                reason: format!(
                    "{} sequences of this length are too many",
                    options.sequences
                ),
            });
        };
        let mut params = params(options, total);
        params.cb_eval = callback;
        params.cb_eval_user_data = user_data;
        let failed = |reason| LlamaError::Context {
            ctx: options.ctx,
            reason,
        };
        let mut raw = std::ptr::null_mut();
        // SAFETY: the model outlives the context by the lifetime.
        let (made, log) = logged(|failure| unsafe {
            dwindle_new_context(model.raw(), &params, &mut raw, failure)
        });
        made.map_err(|stopped| failed(stopped.reason))?;
        let raw = NonNull::new(raw).ok_or_else(|| failed(log))?;
        // SAFETY: the context was just made.
        let batch = unsafe { sys::llama_n_batch(raw.as_ptr()) };
        let context = Context {
            raw,
            model,
            batch,
            sequences: params.n_seq_max,
            ctx: model
                .learned_positions()
                .map_or(options.ctx, |n| n.min(options.ctx)),
            outputs: 0,
            is_broken: false,
        };
        model
            .adapt(context.raw)
            .map_err(|stopped| failed(stopped.reason))?;
        Ok(context)
    }

    pub(super) fn raw(&self) -> *mut sys::llama_context {
        self.raw.as_ptr()
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Tokens of context for each sequence: as many as were asked for and the model has positions for.
    pub fn n_ctx(&self) -> u32 {
        self.ctx
    }

    /// The most tokens of one [`Self::decode`].
    pub fn n_batch(&self) -> usize {
        self.batch as usize
    }

    /// Sequences side by side.
    pub fn n_sequences(&self) -> usize {
        self.sequences as usize
    }

    /// Forgets every sequence.
    pub fn clear(&mut self) {
        self.outputs = 0;
        self.forget_in_llama(-1);
    }

    /// Forgets one sequence.
    pub fn forget(&mut self, sequence: usize) {
        if let Ok(sequence) = i32::try_from(sequence) {
            self.forget_in_llama(sequence);
        }
    }

    fn forget_in_llama(&mut self, sequence: i32) {
        if self.is_broken {
            return;
        }
        // SAFETY: the context lives.
        let forgotten =
            guarded(|failure| unsafe { dwindle_forget(self.raw.as_ptr(), sequence, failure) });
        self.is_broken |= forgotten.is_err();
    }

    /// Whether llama.cpp has failed in this context in a way after which it is unusable. It then
    /// refuses to evaluate.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Gives the context up, as after a failed assertion.
    pub(super) fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// Evaluates tokens. Their logits are then in [`Self::logits`]. Contexts of one model evaluate
    /// one after the other.
    ///
    /// # Errors
    /// More tokens, sequences or positions than the context has, tokens that the vocabulary does
    /// not have, or llama.cpp's words.
    pub fn decode(&mut self, tokens: &[BatchToken]) -> Result<(), LlamaError> {
        self.evaluate(tokens, None)
    }

    /// As [`Self::decode`], where `rows`, one for each token and each as long as the model's
    /// embedding, stand in place of the tokens' embeddings.
    ///
    /// # Errors
    /// As [`Self::decode`], or the rows don't fit the tokens.
    pub fn decode_rows(&mut self, tokens: &[BatchToken], rows: &[f32]) -> Result<(), LlamaError> {
        self.evaluate(tokens, Some(rows))
    }

    fn evaluate(&mut self, tokens: &[BatchToken], rows: Option<&[f32]>) -> Result<(), LlamaError> {
        self.outputs = 0;
        if self.is_broken {
            return Err(LlamaError::Broken);
        }
        self.check(tokens)?;
        self.check_rows(tokens, rows)?;
        let mut ids: Vec<i32> = tokens.iter().map(|t| t.token).collect();
        let mut positions: Vec<i32> = tokens.iter().map(|t| t.position).collect();
        let mut counts = vec![1i32; tokens.len()];
        let mut sequences: Vec<i32> = tokens.iter().map(|t| t.sequence).collect();
        let mut lists: Vec<*mut i32> = sequences.iter_mut().map(std::ptr::from_mut).collect();
        let mut logits: Vec<i8> = tokens.iter().map(|t| i8::from(t.logits)).collect();
        let batch = sys::llama_batch {
            n_tokens: tokens.len() as i32, // at most `n_batch`, which is an `i32` in llama.cpp
            token: match rows {
                Some(_) => std::ptr::null_mut(),
                None => ids.as_mut_ptr(),
            },
            // llama.cpp reads them only.
            embd: rows.map_or(std::ptr::null_mut(), |rows| rows.as_ptr().cast_mut()),
            pos: positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: lists.as_mut_ptr(),
            logits: logits.as_mut_ptr(),
        };
        // A lock that a panic has poisoned guards nothing that could be half-done.
        let _busy = self
            .model
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.model.check_file()?;
        let mut code = -1;
        // SAFETY: every array has `n_tokens` elements, or as many rows, and outlives the call, and each
        // list of sequences has the one element that its count says.
        let (decoded, reason) = logged(|failure| unsafe {
            dwindle_decode(self.raw.as_ptr(), &batch, &mut code, failure)
        });
        if let Err(stopped) = decoded {
            self.is_broken = true;
            return Err(LlamaError::Decode {
                tokens: tokens.len(),
                reason: stopped.reason,
            });
        }
        if code != 0 {
            return Err(LlamaError::Decode {
                tokens: tokens.len(),
                reason: self.refusal(code, reason),
            });
        }
        self.outputs = tokens.iter().filter(|t| t.logits).count();
        Ok(())
    }

    /// Why llama.cpp evaluates nothing, by its code and its words.
    fn refusal(&self, code: i32, words: String) -> String {
        let used_whole = self.model.used_whole();
        if !used_whole.is_empty() {
            return format!(
                "the graph uses {} in a way that factors do not allow; load the model multiplied out",
                used_whole.join(", ")
            );
        }
        match code {
            1 => "the context is full".to_string(),
            _ => words,
        }
    }

    /// llama.cpp reads as many as the tokens need.
    fn check_rows(&self, tokens: &[BatchToken], rows: Option<&[f32]>) -> Result<(), LlamaError> {
        let limit = tokens.len() * self.model.n_embd();
        match rows.map(<[f32]>::len) {
            Some(found) if found != limit => Err(LlamaError::Batch {
                what: "the number of values of all rows",
                found: found as i64,
                limit: limit as i64,
            }),
            _ => Ok(()),
        }
    }

    /// llama.cpp asserts some of these.
    fn check(&self, tokens: &[BatchToken]) -> Result<(), LlamaError> {
        let within = |what, found: i64, limit: i64| {
            if (0..limit).contains(&found) {
                Ok(())
            } else {
                Err(LlamaError::Batch { what, found, limit })
            }
        };
        let count = tokens.len() as i64;
        within(
            "the number of tokens less one",
            count - 1,
            i64::from(self.batch),
        )?;
        for t in tokens {
            let vocab = self.model.n_vocab() as i64;
            within("a token", t.token.into(), vocab)?;
            within("a position", t.position.into(), self.ctx.into())?;
            within("a sequence", t.sequence.into(), self.sequences.into())?;
        }
        Ok(())
    }

    /// The logits of the last [`Self::decode`]: one row of the vocabulary's length for each token
    /// that wanted them, in the order of the tokens. None where llama.cpp fails.
    pub fn logits(&mut self) -> &[f32] {
        self.try_logits().unwrap_or_default()
    }

    /// As [`Self::logits`]: as many rows as were wanted.
    ///
    /// # Errors
    /// Waiting for the computation fails.
    pub fn try_logits(&mut self) -> Result<&[f32], LlamaError> {
        let len = self.outputs * self.model.n_vocab();
        if len == 0 {
            return Ok(&[]);
        }
        let failed = |reason: String| LlamaError::Decode {
            tokens: self.outputs,
            reason,
        };
        if self.is_broken {
            return Err(LlamaError::Broken);
        }
        let mut rows = std::ptr::null_mut();
        // SAFETY: the context lives; the call waits for the computation.
        let (got, log) =
            logged(|failure| unsafe { dwindle_logits(self.raw.as_ptr(), &mut rows, failure) });
        if let Err(stopped) = got {
            self.is_broken = true;
            return Err(failed(stopped.reason));
        }
        if rows.is_null() {
            return Err(failed(log));
        }
        // SAFETY: after a successful decode llama.cpp holds one row for each token that wanted
        // logits; they stay until the next call that needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(rows, len) })
    }

    /// What llama.cpp has allocated for this context and its model.
    pub fn memory(&self) -> MemoryUse {
        let mut bytes = [0u64; 3];
        // SAFETY: the context lives and the shim writes three numbers.
        let failed = unsafe { dwindle_memory(self.raw.as_ptr(), bytes.as_mut_ptr()) };
        if failed != 0 {
            return MemoryUse::default();
        }
        MemoryUse {
            model: bytes[0] + self.model.devices.as_ref().map_or(0, Devices::elsewhere),
            context: bytes[1],
            compute: bytes[2],
        }
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if self.is_broken {
            // In an unknown state it may be freed no more than it may be used.
            return;
        }
        // SAFETY: the context is owned and freed once. A failure leaves it in memory.
        let freed = guarded(|failure| unsafe { dwindle_free_context(self.raw.as_ptr(), failure) });
        drop(freed);
    }
}

unsafe extern "C" {
    fn dwindle_memory(ctx: *const sys::llama_context, bytes: *mut u64) -> i32;
    fn dwindle_new_context(
        model: *mut sys::llama_model,
        params: *const sys::llama_context_params,
        context: *mut *mut sys::llama_context,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_free_context(context: *mut sys::llama_context, failure: *mut Failure) -> c_int;
    fn dwindle_decode(
        context: *mut sys::llama_context,
        batch: *const sys::llama_batch,
        code: *mut i32,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_logits(
        context: *mut sys::llama_context,
        rows: *mut *mut f32,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_forget(
        context: *mut sys::llama_context,
        sequence: i32,
        failure: *mut Failure,
    ) -> c_int;
}

/// llama.cpp's own options, for a context of this many tokens in total.
fn params(options: &ContextOptions, total: u32) -> sys::llama_context_params {
    let threads = options.threads.unwrap_or_else(default_threads);
    let threads = i32::try_from(threads.clamp(1, 512)).unwrap_or(1);
    // SAFETY: returns a plain value.
    let mut params = unsafe { sys::llama_context_default_params() };
    params.n_ctx = total;
    params.n_seq_max = options.sequences.max(1);
    params.n_batch = options.batch.clamp(1, total);
    params.n_ubatch = options.ubatch.max(1);
    params.n_outputs_max = options.outputs;
    params.n_threads = threads;
    params.n_threads_batch = threads;
    params.type_k = options.cache_type.id();
    params.type_v = options.cache_type.id();
    if let Some(pooling) = options.pooling {
        params.embeddings = true;
        params.pooling_type = pooling.id();
    }
    params.kv_unified = false;
    params.no_perf = true;
    params.flash_attn_type = match options.flash_attention {
        FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
        FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    };
    params
}

/// Physical cores, as llama.cpp's tools choose: a second thread on a core does not help.
pub fn default_threads() -> u32 {
    let available = std::thread::available_parallelism().map_or(1, |n| n.get());
    let physical = sysinfo::System::physical_core_count().unwrap_or(available);
    available.min(physical).try_into().unwrap_or(1)
}
