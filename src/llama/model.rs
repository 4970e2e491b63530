//! A loaded model: its vocabulary, its chat template, its size.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use llama_cpp_2::ApplyChatTemplateError;
use llama_cpp_2::model::{LlamaChatMessage, LlamaModel};
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use super::adapter::Adapter;
use super::backend::{describe, raw_devices, with_log};
use super::device::Devices;
use super::feed::{FeedError, TensorFeed, with_stream};
use super::watched::Watched;

/// A token's number.
pub type Token = i32;

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelOptions {
    /// Layers to offload, `None` for as many as llama.cpp offloads by itself.
    pub gpu_layers: Option<u32>,
    /// Names of the devices to use, as [`super::backend::devices`] lists them; `None` for all,
    /// empty for the CPU alone.
    pub devices: Option<Vec<String>>,
    /// Whether a file is mapped into memory instead of read. A [`TensorFeed`] is always read.
    pub use_mmap: bool,
    /// LoRA adapters (GGUF files) that are applied, at full scale.
    pub lora: Vec<PathBuf>,
}

impl Default for ModelOptions {
    fn default() -> ModelOptions {
        ModelOptions {
            gpu_layers: None,
            devices: None,
            use_mmap: true,
            lora: Vec::new(),
        }
    }
}

/// Why a model can't be loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum LlamaError {
    #[error("llama.cpp can't load `{name}`: {reason}")]
    Load { name: String, reason: String },
    #[error("can't load `{name}`")]
    Feed {
        name: String,
        #[source]
        source: FeedError,
    },
    #[error("`{}` is a path that llama.cpp can't open: it is not UTF-8 or holds a zero byte", .0.display())]
    Path(PathBuf),
    #[error("there is no device `{name}`; llama.cpp sees {known}")]
    Device { name: String, known: String },
    #[error("llama.cpp can't make a context of {ctx} tokens: {reason}")]
    Context { ctx: u32, reason: String },
    #[error("llama.cpp can't evaluate {tokens} tokens: {reason}")]
    Decode { tokens: usize, reason: String },
    #[error("{what} is {found}, the limit of this context is {limit}")]
    Batch {
        what: &'static str,
        found: i64,
        limit: i64,
    },
    #[error("the input of `{weight}` can't be observed: {reason}")]
    Activation {
        weight: String,
        reason: &'static str,
    },
    #[error("weight `{weight}` can't be replaced: {reason}")]
    Replace { weight: String, reason: String },
    #[error("can't apply adapter `{}`: {reason}; is it made for this model?", path.display())]
    Adapter { path: PathBuf, reason: String },
    #[error(
        "`{}` was changed while it was in use: it has {is} bytes, and had {was} when it was loaded; load it again, and replace a file by renaming another over it",
        path.display()
    )]
    Changed { path: PathBuf, was: u64, is: u64 },
    #[error("llama.cpp can't go on from this state: {reason}")]
    State { reason: String },
    #[error("the model has no tokenizer")]
    NoTokenizer,
    #[error("a text of {0} bytes is too long to be tokenized at once, the limit is 2 GiB")]
    TextTooLong(usize),
    #[error("the model has no chat template: leave `--chat` away or name another model")]
    NoChatTemplate,
    #[error("the model's chat template can't be applied: {0}")]
    ChatTemplate(String),
}

/// A model that llama.cpp has loaded.
#[derive(Debug)]
pub struct Model {
    inner: LlamaModel,
    load_time: Duration,
    /// Whether the weights are llama.cpp's own copy, and not a mapped file.
    owns_weights: bool,
    /// Held while a context of this model evaluates, and while a weight changes.
    pub(super) busy: Mutex<()>,
    pub(super) adapters: Vec<Adapter>,
    /// Bytes of the weights, where llama.cpp does not know.
    pub(super) size: Option<u64>,
    /// The file that llama.cpp has mapped, if it has.
    watched: Option<Watched>,
    /// What computes with operands in place of weights. Behind `inner`, which is dropped first.
    pub(super) devices: Option<Devices>,
}

impl Model {
    /// Loads a `.gguf` file.
    ///
    /// # Errors
    /// llama.cpp refuses the file; the error carries its words.
    pub fn load(path: &Path, options: &ModelOptions) -> Result<Model, LlamaError> {
        let refused = || LlamaError::Path(path.to_path_buf());
        let c_path = path.to_str().ok_or_else(refused)?;
        let c_path = CString::new(c_path).map_err(|_| refused())?;
        let mode = if options.use_mmap {
            sys::LLAMA_LOAD_MODE_MMAP
        } else {
            sys::LLAMA_LOAD_MODE_NONE
        };
        let mut devices = device_list(options)?;
        let params = params(options, &mut devices, mode);
        let refused = |reason| LlamaError::Load {
            name: path.display().to_string(),
            reason,
        };
        let watched = match options.use_mmap {
            true => Some(Watched::open(path).map_err(|e| refused(e.to_string()))?),
            false => None,
        };
        let start = Instant::now();
        // SAFETY: the path is a C string, and the device list that `params` points to lives.
        let (raw, reason) =
            with_log(|| unsafe { sys::llama_model_load_from_file(c_path.as_ptr(), params) });
        let mut model =
            Model::from_raw(raw, start, !options.use_mmap).ok_or_else(|| refused(reason))?;
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
        let mut devices = device_list(options)?;
        let params = params(options, &mut devices, sys::LLAMA_LOAD_MODE_NONE);
        let start = Instant::now();
        let load = |file: *mut std::ffi::c_void| {
            // SAFETY: the stream is open for reading during the call, and the device list that
            // `params` points to lives. llama.cpp does not keep or close the stream.
            with_log(|| unsafe { sys::llama_model_load_from_file_ptr(file.cast(), params) })
        };
        let ((raw, reason), error) = with_stream(feed, load).map_err(failed)?;
        let model = Model::from_raw(raw, start, true);
        if let Some(error) = error {
            return Err(failed(error));
        }
        model
            .ok_or_else(|| LlamaError::Load {
                name: name.to_string(),
                reason,
            })?
            .with_adapters(options)
    }

    pub(super) fn from_raw(
        raw: *mut sys::llama_model,
        start: Instant,
        owns_weights: bool,
    ) -> Option<Model> {
        let raw = NonNull::new(raw)?;
        // SAFETY: `LlamaModel` is `repr(transparent)` over a non-null pointer to the model in the
        // pinned version, and this pointer is owned by nobody else.
        let inner = unsafe { std::mem::transmute::<NonNull<sys::llama_model>, LlamaModel>(raw) };
        Some(Model {
            inner,
            load_time: start.elapsed(),
            owns_weights,
            busy: Mutex::new(()),
            adapters: Vec::new(),
            size: None,
            watched: None,
            devices: None,
        })
    }

    /// Whether the file that the weights are read from is as it was.
    pub(super) fn check_file(&self) -> Result<(), LlamaError> {
        self.watched.as_ref().map_or(Ok(()), Watched::check)
    }

    pub(super) fn owns_weights(&self) -> bool {
        self.owns_weights
    }

    pub(super) fn raw(&self) -> *mut sys::llama_model {
        // SAFETY: as in `from_raw`: the wrapper is the pointer.
        unsafe { *std::ptr::from_ref(&self.inner).cast::<*mut sys::llama_model>() }
    }

    /// llama-cpp-2's own type, for what is not wrapped here.
    pub fn inner(&self) -> &LlamaModel {
        &self.inner
    }

    /// How long loading took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        usize::try_from(self.inner.n_vocab()).unwrap_or(0)
    }

    /// The context length that the model was trained with.
    pub fn n_ctx_train(&self) -> u32 {
        self.inner.n_ctx_train()
    }

    /// Bytes of all tensors.
    pub fn size(&self) -> u64 {
        self.size.unwrap_or_else(|| self.inner.size())
    }

    /// Parameters.
    pub fn n_params(&self) -> u64 {
        self.inner.n_params()
    }

    /// One line that says what it is (`llama 134M Q4_K - Medium`).
    pub fn description(&self) -> String {
        let mut text = [0u8; 256];
        // SAFETY: the buffer has the length that is passed; llama.cpp terminates the text.
        unsafe { sys::llama_model_desc(self.raw(), text.as_mut_ptr().cast(), text.len()) };
        let end = text.iter().position(|b| *b == 0).unwrap_or(0);
        String::from_utf8_lossy(&text[..end]).into_owned()
    }

    /// Whether a text begins with [`Self::bos`].
    pub fn add_bos(&self) -> bool {
        self.inner.vocab().should_add_bos()
    }

    /// Whether the vocabulary wants an end token after each text (as some encoders do).
    pub fn add_eos(&self) -> bool {
        self.inner.vocab().should_add_eos()
    }

    /// The token that begins a text, if there is one.
    pub fn bos(&self) -> Option<Token> {
        valid(self.inner.vocab().bos())
    }

    /// The token that ends a text, if there is one.
    pub fn eos(&self) -> Option<Token> {
        valid(self.inner.vocab().eos())
    }

    /// The token that ends a turn of a chat, if there is one.
    pub fn eot(&self) -> Option<Token> {
        valid(self.inner.vocab().eot())
    }

    /// Whether generation ends with this token.
    pub fn is_end(&self, token: Token) -> bool {
        self.inner.vocab().is_eog(LlamaToken(token))
    }

    /// A text as tokens. `add_special` adds what the model wants at the ends (BOS, EOS),
    /// `parse_special` lets special tokens be written out in the text (`<|im_start|>`).
    ///
    /// # Errors
    /// The model has no tokenizer, or the text is over 2 GiB.
    pub fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, LlamaError> {
        self.check_tokenizer()?;
        // llama.cpp answers in 32-bit counts, special tokens included.
        if text.len() > i32::MAX as usize - 16 {
            return Err(LlamaError::TextTooLong(text.len()));
        }
        let vocab = self.inner.vocab();
        let tokens = vocab.tokenize(text.as_bytes(), add_special, parse_special);
        Ok(tokens.into_iter().map(|t| t.0).collect())
    }

    /// The bytes that a token stands for: a part of a character, perhaps. `special` writes
    /// special tokens out.
    ///
    /// # Errors
    /// The model has no tokenizer.
    pub fn piece(&self, token: Token, special: bool) -> Result<Vec<u8>, LlamaError> {
        self.check_tokenizer()?;
        if !(0..self.inner.n_vocab()).contains(&token) {
            return Ok(Vec::new());
        }
        let vocab = self.inner.vocab();
        Ok(vocab.token_to_piece(LlamaToken(token), special, None))
    }

    /// llama.cpp asserts that there is one.
    fn check_tokenizer(&self) -> Result<(), LlamaError> {
        // SAFETY: the model lives, and its vocabulary with it.
        let kind = unsafe { sys::llama_vocab_type(sys::llama_model_get_vocab(self.raw())) };
        if kind == sys::LLAMA_VOCAB_TYPE_NONE {
            return Err(LlamaError::NoTokenizer);
        }
        Ok(())
    }

    /// A chat as the text that the model expects, by its own template, with the assistant's turn
    /// opened. Messages are pairs of role and content.
    ///
    /// # Errors
    /// The model has no template, or one that llama.cpp does not know.
    pub fn chat_prompt(&self, messages: &[(&str, &str)]) -> Result<String, LlamaError> {
        let failed = |e: &dyn std::fmt::Display| LlamaError::ChatTemplate(e.to_string());
        let template = self.inner.chat_template(None);
        let template = template.map_err(|_| LlamaError::NoChatTemplate)?;
        let messages = messages
            .iter()
            .map(|(role, content)| LlamaChatMessage::new(role.to_string(), content.to_string()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| failed(&e))?;
        let prompt = self.inner.apply_chat_template(&template, &messages, true);
        prompt.map_err(|e| match e {
            ApplyChatTemplateError::FfiError(_) => {
                failed(&"llama.cpp does not know it; give the prompt without `--chat`")
            }
            other => failed(&other),
        })
    }
}

fn valid(token: LlamaToken) -> Option<Token> {
    (token.0 >= 0).then_some(token.0)
}

/// The null-terminated list of devices that llama.cpp wants, or `None` for its own choice.
pub(super) fn device_list(
    options: &ModelOptions,
) -> Result<Option<Vec<sys::ggml_backend_dev_t>>, LlamaError> {
    let Some(names) = &options.devices else {
        return Ok(None);
    };
    let mut list = Vec::with_capacity(names.len() + 1);
    for name in names {
        let found = raw_devices().find(|dev| describe(*dev).name.eq_ignore_ascii_case(name));
        list.push(found.ok_or_else(|| {
            let known: Vec<String> = raw_devices().map(|dev| describe(dev).name).collect();
            LlamaError::Device {
                name: name.clone(),
                known: known.join(", "),
            }
        })?);
    }
    list.push(std::ptr::null_mut());
    Ok(Some(list))
}

pub(super) fn params(
    options: &ModelOptions,
    devices: &mut Option<Vec<sys::ggml_backend_dev_t>>,
    load_mode: sys::llama_load_mode,
) -> sys::llama_model_params {
    super::backend::init();
    // SAFETY: returns a plain value.
    let mut params = unsafe { sys::llama_model_default_params() };
    params.load_mode = load_mode;
    if let Some(n) = options.gpu_layers {
        params.n_gpu_layers = i32::try_from(n).unwrap_or(i32::MAX);
    }
    if let Some(list) = devices {
        params.devices = list.as_mut_ptr();
    }
    params
}
