//! A model's tokens: what is special among them, what they stand for, and the chat template.

use std::ffi::{CStr, CString, c_char, c_int};

use llama_cpp_sys_2 as sys;

use super::error::LlamaError;
use super::guard::{Failure, Stopped, guarded};
use super::model::Model;
use super::vocabulary::Token;

fn valid(token: Token) -> Option<Token> {
    (token >= 0).then_some(token)
}

impl Model {
    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        usize::try_from(self.vocabulary().facts.n_tokens).unwrap_or(0)
    }

    /// Whether a text begins with [`Self::bos`].
    pub fn add_bos(&self) -> bool {
        self.vocabulary().facts.add_bos
    }

    /// Whether the vocabulary wants an end token after each text, as that of some encoders does.
    pub fn add_eos(&self) -> bool {
        self.vocabulary().facts.add_eos
    }

    /// The token that begins a text, if there is one.
    pub fn bos(&self) -> Option<Token> {
        valid(self.vocabulary().facts.bos)
    }

    /// The token that ends a text, if there is one.
    pub fn eos(&self) -> Option<Token> {
        valid(self.vocabulary().facts.eos)
    }

    /// The token that ends a turn of a chat, if there is one.
    pub fn eot(&self) -> Option<Token> {
        valid(self.vocabulary().facts.eot)
    }

    /// Whether generation ends with this token.
    pub fn is_end(&self, token: Token) -> bool {
        let mut is_end = false;
        // SAFETY: the model lives. llama.cpp looks the number up in a set.
        let looked_up =
            guarded(|failure| unsafe { dwindle_is_end(self.raw(), token, &mut is_end, failure) });
        looked_up.is_ok() && is_end
    }

    /// The bytes that a token stands for: a part of a character, perhaps. `special` writes
    /// special tokens out.
    ///
    /// # Errors
    /// The model has no tokenizer, or its vocabulary has a token that llama.cpp can't write.
    pub fn piece(&self, token: Token, special: bool) -> Result<Vec<u8>, LlamaError> {
        self.check_tokenizer()?;
        if !(0..self.vocabulary().facts.n_tokens).contains(&token) {
            return Ok(Vec::new());
        }
        let mut room = 64;
        loop {
            let mut bytes = vec![0u8; room];
            let mut count = room as i32;
            // SAFETY: the model lives, the token is one of its vocabulary, and the buffer has room
            // for `count` bytes.
            guarded(|failure| unsafe {
                let out = bytes.as_mut_ptr().cast();
                dwindle_piece(self.raw(), token, special, out, &mut count, failure)
            })
            .map_err(|stopped| LlamaError::Piece {
                token,
                reason: stopped.reason,
            })?;
            if let Ok(len) = usize::try_from(count) {
                bytes.truncate(len);
                return Ok(bytes);
            }
            room = (count.unsigned_abs() as usize).max(2 * room);
        }
    }

    /// llama.cpp asserts that there is one.
    pub(super) fn check_tokenizer(&self) -> Result<(), LlamaError> {
        let kind = self.vocabulary().facts.kind as sys::llama_vocab_type;
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
        let stopped = |stopped: Stopped| LlamaError::ChatTemplate(stopped.reason);
        let mut template = std::ptr::null();
        // SAFETY: the model lives, and the template with it.
        guarded(|failure| unsafe { dwindle_chat_template(self.raw(), &mut template, failure) })
            .map_err(stopped)?;
        if template.is_null() {
            return Err(LlamaError::NoChatTemplate);
        }
        // SAFETY: a C string of the model's.
        let template = unsafe { CStr::from_ptr(template) };
        let texts = Texts::new(messages)?;
        let mut room = 2 * texts.bytes() + 256;
        loop {
            let mut bytes = vec![0u8; room];
            let mut count = i32::try_from(room)
                .map_err(|_| LlamaError::ChatTemplate("the messages are too long".into()))?;
            // SAFETY: all texts are C strings that outlive the call, and the buffer has room for
            // `count` bytes.
            guarded(|failure| unsafe {
                dwindle_apply_template(
                    template.as_ptr(),
                    texts.raw.as_ptr(),
                    texts.raw.len(),
                    bytes.as_mut_ptr().cast(),
                    &mut count,
                    failure,
                )
            })
            .map_err(stopped)?;
            let len = usize::try_from(count).map_err(|_| {
                let reason = "llama.cpp does not know it; give the prompt without `--chat`";
                LlamaError::ChatTemplate(reason.into())
            })?;
            if len <= room {
                bytes.truncate(len);
                return String::from_utf8(bytes)
                    .map_err(|_| LlamaError::ChatTemplate("it gives no UTF-8".into()));
            }
            room = len;
        }
    }
}

/// Messages as llama.cpp takes them.
struct Texts {
    raw: Vec<sys::llama_chat_message>,
    /// What `raw` points to.
    owned: Vec<(CString, CString)>,
}

impl Texts {
    fn new(messages: &[(&str, &str)]) -> Result<Texts, LlamaError> {
        let text = |text: &str| {
            CString::new(text)
                .map_err(|_| LlamaError::ChatTemplate("a message holds a zero byte".into()))
        };
        let owned = messages
            .iter()
            .map(|(role, content)| Ok((text(role)?, text(content)?)))
            .collect::<Result<Vec<_>, LlamaError>>()?;
        let raw = owned.iter().map(|(role, content)| sys::llama_chat_message {
            role: role.as_ptr(),
            content: content.as_ptr(),
        });
        Ok(Texts {
            raw: raw.collect(),
            owned,
        })
    }

    fn bytes(&self) -> usize {
        let len = |t: &CString| t.as_bytes().len();
        self.owned.iter().map(|(r, c)| len(r) + len(c)).sum()
    }
}

unsafe extern "C" {
    fn dwindle_is_end(
        model: *const sys::llama_model,
        token: Token,
        is_end: *mut bool,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_piece(
        model: *const sys::llama_model,
        token: Token,
        special: bool,
        bytes: *mut c_char,
        count: *mut i32,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_chat_template(
        model: *const sys::llama_model,
        text: *mut *const c_char,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_apply_template(
        template: *const c_char,
        messages: *const sys::llama_chat_message,
        n_messages: usize,
        bytes: *mut c_char,
        count: *mut i32,
        failure: *mut Failure,
    ) -> c_int;
}
