//! A loaded model: how it is loaded, and its size.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dwindle_formats::gguf::{Metadata, parts};
use llama_cpp_sys_2 as sys;

use super::adapter::{self, Adapter};
use super::admission::file::admit_files;
use super::device::Devices;
pub use super::error::LlamaError;
use super::feed::{TensorFeed, with_stream};
use super::guard::{Failure, Stopped, guarded, logged};
use super::placement::{Placed, Placement, Sizes};
use super::start::init;
pub use super::vocabulary::Token;
use super::vocabulary::Vocabulary;
use super::watched::Watched;

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelOptions {
    /// Which devices its layers are on.
    pub placement: Placement,
    /// Whether a file is mapped into memory instead of read. A [`TensorFeed`] is always read.
    pub use_mmap: bool,
    /// LoRA adapters (GGUF files) that are applied, at full scale.
    pub lora: Vec<PathBuf>,
}

impl Default for ModelOptions {
    fn default() -> ModelOptions {
        ModelOptions {
            placement: Placement::default(),
            use_mmap: true,
            lora: Vec::new(),
        }
    }
}

/// A model that llama.cpp has loaded.
#[derive(Debug)]
pub struct Model {
    raw: NonNull<sys::llama_model>,
    vocabulary: Vocabulary,
    load_time: Duration,
    /// Whether the weights are llama.cpp's own copy, and not a mapped file.
    owns_weights: bool,
    /// Held while a context of this model evaluates, and while a weight changes.
    pub(super) busy: Mutex<()>,
    adapters: Vec<Adapter>,
    /// Bytes of the weights, where llama.cpp does not know.
    pub(super) size: Option<u64>,
    /// The file that llama.cpp has mapped, if it has.
    watched: Vec<Watched>,
    /// What computes with operands in place of weights. Dropped behind `raw`.
    pub(super) devices: Option<Devices>,
}

// SAFETY: llama.cpp does not change a model after it is loaded, and does not tie it to a thread;
// weights change only while `busy` is held.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: the model is owned and freed once; contexts borrow it, so that none is left but
        // those that were given up and are unused. A failure leaves it in memory.
        let freed = guarded(|failure| unsafe { dwindle_free_model(self.raw(), failure) });
        if freed.is_err() {
            // It may still refer to them.
            std::mem::forget(self.devices.take());
        }
    }
}

impl Model {
    /// Loads a `.gguf` file.
    ///
    /// # Errors
    /// llama.cpp refuses the file; the error carries its words.
    pub fn load(path: &Path, options: &ModelOptions) -> Result<Model, LlamaError> {
        // llama.cpp opens the others of a split model by the name of the first.
        let files = parts(path);
        let path = files[0].as_path();
        let refused = || LlamaError::Path(path.to_path_buf());
        let c_path = path.to_str().ok_or_else(refused)?;
        let c_path = CString::new(c_path).map_err(|_| refused())?;
        let mode = if options.use_mmap {
            sys::LLAMA_LOAD_MODE_MMAP
        } else {
            sys::LLAMA_LOAD_MODE_NONE
        };
        // A device that is not there is known before the file is read.
        options.placement.used()?;
        let sizes = admit_files(&files)?;
        let mut placed = options.placement.place(&sizes)?;
        let params = params(&mut placed, mode);
        let refused = |reason| LlamaError::Load {
            name: path.display().to_string(),
            reason,
        };
        let mapped = files.iter().filter(|_| options.use_mmap);
        let watched = mapped.map(|file| Watched::open(file).map_err(|e| refused(e.to_string())));
        let watched: Vec<Watched> = watched.collect::<Result<_, _>>()?;
        let start = Instant::now();
        // SAFETY: the path is a C string, and the lists that `params` points to live in `placed`.
        let loaded = load_raw(|model, failure| unsafe {
            dwindle_load_file(c_path.as_ptr(), &params, model, failure)
        });
        let mut model = Model::from_raw(loaded, start, !options.use_mmap).map_err(refused)?;
        model.watched = watched;
        model.with_adapters(options)
    }

    /// Loads a model whose tensors are made while it loads; `name` stands for it in errors.
    ///
    /// # Errors
    /// The feed's own error, if producing a tensor failed, else llama.cpp's words.
    pub fn load_feed(
        name: &str,
        feed: TensorFeed<'_>,
        options: &ModelOptions,
    ) -> Result<Model, LlamaError> {
        let failed = |source| LlamaError::Feed {
            name: name.to_string(),
            source,
        };
        let feed = feed.admitted(name)?;
        let mut placed = options.placement.place(&feed.sizes(|_| None))?;
        let params = params(&mut placed, sys::LLAMA_LOAD_MODE_NONE);
        let start = Instant::now();
        let load = |file: *mut c_void| {
            // SAFETY: the stream is open for reading during the call, and the lists that `params`
            // points to live in `placed`. llama.cpp does not keep or close the stream.
            load_raw(|model, failure| unsafe { dwindle_load_stream(file, &params, model, failure) })
        };
        let (loaded, error) = with_stream(feed, load).map_err(failed)?;
        let model = Model::from_raw(loaded, start, true);
        if let Some(error) = error {
            return Err(failed(error));
        }
        model
            .map_err(|reason| LlamaError::Load {
                name: name.to_string(),
                reason,
            })?
            .with_adapters(options)
    }

    /// Loads what a model's metadata say, the vocabulary above all, and no tensor: texts can be
    /// tokenized, and nothing be evaluated. `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Self::load_feed`].
    pub fn load_vocabulary(name: &str, metadata: &Metadata) -> Result<Model, LlamaError> {
        let failed = |source| LlamaError::Feed {
            name: name.to_string(),
            source,
        };
        let feed =
            TensorFeed::new(metadata, Vec::new(), Box::new(|_, _| Ok(()))).map_err(failed)?;
        let feed = feed.admitted(name)?;
        let mut placed = Placement::cpu().place(&Sizes::default())?;
        let mut params = params(&mut placed, sys::LLAMA_LOAD_MODE_NONE);
        params.vocab_only = true;
        let start = Instant::now();
        let load = |file: *mut c_void| {
            // SAFETY: the stream is open for reading during the call. llama.cpp does not keep or
            // close the stream.
            load_raw(|model, failure| unsafe { dwindle_load_stream(file, &params, model, failure) })
        };
        let (loaded, error) = with_stream(feed, load).map_err(failed)?;
        if let Some(error) = error {
            return Err(failed(error));
        }
        Model::from_raw(loaded, start, true).map_err(|reason| LlamaError::Load {
            name: name.to_string(),
            reason,
        })
    }

    /// The model that llama.cpp has loaded, or why there is none.
    pub(super) fn from_raw(
        loaded: Result<NonNull<sys::llama_model>, String>,
        start: Instant,
        owns_weights: bool,
    ) -> Result<Model, String> {
        let raw = loaded?;
        // SAFETY: llama.cpp has just loaded it.
        let vocabulary = unsafe { Vocabulary::of(raw.as_ptr()) };
        Ok(Model {
            raw,
            vocabulary: vocabulary.map_err(|stopped| stopped.reason)?,
            load_time: start.elapsed(),
            owns_weights,
            busy: Mutex::new(()),
            adapters: Vec::new(),
            size: None,
            watched: Vec::new(),
            devices: None,
        })
    }

    /// Loads the adapters that the options name.
    pub(super) fn with_adapters(mut self, options: &ModelOptions) -> Result<Model, LlamaError> {
        for path in &options.lora {
            // SAFETY: the model lives.
            let adapter = unsafe { Adapter::load(self.raw(), path)? };
            self.adapters.push(adapter);
        }
        Ok(self)
    }

    /// Applies the adapters to a context of this model, at full scale.
    pub(super) fn adapt(&self, context: NonNull<sys::llama_context>) -> Result<(), Stopped> {
        // SAFETY: the context is one of this model, which owns the adapters.
        unsafe { adapter::apply(&self.adapters, context) }
    }

    /// Whether the file that the weights are read from is as it was.
    pub(super) fn check_file(&self) -> Result<(), LlamaError> {
        self.watched.iter().try_for_each(Watched::check)
    }

    pub(super) fn owns_weights(&self) -> bool {
        self.owns_weights
    }

    pub(super) fn raw(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// The context length that the model was trained with.
    pub fn n_ctx_train(&self) -> u32 {
        // SAFETY: the model lives; a number is read.
        let n = unsafe { sys::llama_model_n_ctx_train(self.raw()) };
        u32::try_from(n).unwrap_or(0)
    }

    /// Elements of a row of the residual stream.
    pub fn n_embd(&self) -> usize {
        // SAFETY: the model lives; a number is read.
        let n = unsafe { sys::llama_model_n_embd(self.raw()) };
        usize::try_from(n).unwrap_or(0)
    }

    /// Elements of an embedding.
    pub fn n_embd_out(&self) -> usize {
        // SAFETY: the model lives; a number is read.
        let n = unsafe { sys::llama_model_n_embd_out(self.raw()) };
        usize::try_from(n).unwrap_or(0)
    }

    /// Bytes of all tensors.
    pub fn size(&self) -> u64 {
        // SAFETY: the model lives; a number is read.
        let size = || unsafe { sys::llama_model_size(self.raw()) };
        self.size.unwrap_or_else(size)
    }

    /// Parameters.
    pub fn n_params(&self) -> u64 {
        // SAFETY: the model lives; a number is read.
        unsafe { sys::llama_model_n_params(self.raw()) }
    }

    /// One line that says what it is (`llama 134M Q4_K - Medium`).
    pub fn description(&self) -> String {
        let mut text = [0u8; 256];
        // SAFETY: the model lives, and the buffer has the length that is passed; llama.cpp
        // terminates the text.
        let described = guarded(|failure| unsafe {
            let out = text.as_mut_ptr().cast();
            dwindle_describe(self.raw(), out, text.len(), failure)
        });
        let end = text.iter().position(|b| *b == 0).unwrap_or(0);
        let end = if described.is_ok() { end } else { 0 };
        String::from_utf8_lossy(&text[..end]).into_owned()
    }
}

/// Loads a model with one of the shim's functions, or says why there is none.
pub(super) fn load_raw(
    load: impl FnOnce(*mut *mut sys::llama_model, *mut Failure) -> c_int,
) -> Result<NonNull<sys::llama_model>, String> {
    let mut model = std::ptr::null_mut();
    match logged(|failure| load(&mut model, failure)) {
        // A model that is there in spite of a failed assertion is in no state to be freed.
        (Err(Stopped { reason, .. }), _) => Err(reason),
        (Ok(()), log) => NonNull::new(model).ok_or(log),
    }
}

/// llama.cpp's parameters, which point into the placement.
pub(super) fn params(
    placed: &mut Placed,
    load_mode: sys::llama_load_mode,
) -> sys::llama_model_params {
    init();
    // SAFETY: returns a plain value.
    let mut params = unsafe { sys::llama_model_default_params() };
    params.load_mode = load_mode;
    placed.enter(&mut params);
    params
}

unsafe extern "C" {
    fn dwindle_load_file(
        path: *const c_char,
        params: *const sys::llama_model_params,
        model: *mut *mut sys::llama_model,
        failure: *mut Failure,
    ) -> c_int;
    pub(super) fn dwindle_load_stream(
        file: *mut c_void,
        params: *const sys::llama_model_params,
        model: *mut *mut sys::llama_model,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_free_model(model: *mut sys::llama_model, failure: *mut Failure) -> c_int;
    fn dwindle_describe(
        model: *const sys::llama_model,
        text: *mut c_char,
        len: usize,
        failure: *mut Failure,
    ) -> c_int;
}
