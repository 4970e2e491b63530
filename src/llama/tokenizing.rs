//! Texts as tokens, on a stack that is large enough.
//!
//! llama.cpp splits texts with `std::regex` before it tokenizes the pieces, and GCC's `std::regex`
//! recurses for every character that one match tries. Measured of all pre-tokenizers of the pinned
//! version, with runs of 21 kinds of characters: up to 680 bytes of stack for each character
//! of a match. So a thread is started whose stack is made for the longest match that the text can
//! have, which is the longest *run*: characters without a place where every expression must end or
//! begin a match. Memory is used only as far as the recursion goes.

use std::ffi::{c_char, c_int};
use std::ops::Range;

use llama_cpp_sys_2 as sys;

use super::error::LlamaError;
use super::guard::{Failure, Stopped, logged};
use super::model::Model;
use super::vocabulary::Token;

/// Bytes of a text at most: llama.cpp answers in 32-bit counts, special tokens included.
pub const TEXT_BYTES: usize = i32::MAX as usize - SPECIAL_TOKENS;

/// Room for tokens at the ends of a text.
const SPECIAL_TOKENS: usize = 16;

/// Characters of one run at most: without this, a text could ask for any stack.
pub const RUN_CHARS: usize = 1 << 18;

/// Digits in a row at most for `superbpe`, whose expression looks ahead over all digits at every
/// digit.
const SUPERBPE_DIGITS: usize = 8192;

/// Stack for each character of a run: three times what was measured.
const STACK_PER_CHAR: usize = 2048;

/// Stack for everything else, as a main thread has it.
const STACK_BASE: usize = 8 << 20;

impl Model {
    /// A text as tokens. `add_special` adds what the model has at the ends (BOS, EOS),
    /// `parse_special` lets special tokens be written out in the text (`<|im_start|>`).
    ///
    /// # Errors
    /// As [`Self::tokenize_within`], with [`TEXT_BYTES`] as the limit.
    pub fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, LlamaError> {
        self.tokenize_within(text, TEXT_BYTES, add_special, parse_special)
    }

    /// As [`Self::tokenize`], of texts of at most this many bytes. Tokenizing takes about a second
    /// for a megabyte, and memory for a stack of up to 680 bytes for each character of a run.
    ///
    /// # Errors
    /// The model has no tokenizer; the text is longer than the limit, or has more than
    /// [`RUN_CHARS`] characters without a space or the end of a line; llama.cpp can't tokenize it.
    pub fn tokenize_within(
        &self,
        text: &str,
        max_bytes: usize,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, LlamaError> {
        self.check_tokenizer()?;
        let limit = max_bytes.min(TEXT_BYTES);
        if text.len() > limit {
            return Err(LlamaError::TextTooLong {
                bytes: text.len(),
                limit,
            });
        }
        let run = self.longest_run(text)?;
        let stack = STACK_BASE + run * STACK_PER_CHAR;
        let work = || self.tokenize_here(text, add_special, parse_special);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("tokenizing".into())
                .stack_size(stack)
                .spawn_scoped(scope, work)
                .map_err(|e| LlamaError::Tokenize {
                    reason: format!("no thread with a stack of {stack} bytes can be had ({e})"),
                })?;
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Characters of the longest run of a text, for those tokenizers that split texts.
    fn longest_run(&self, text: &str) -> Result<usize, LlamaError> {
        if !self.vocabulary().splits_texts {
            return Ok(0);
        }
        let pre = self.vocabulary().pre_tokenizer.as_str();
        let run = longest(text, Boundaries::of(pre));
        if run.chars > RUN_CHARS {
            return Err(LlamaError::Run {
                at: run.bytes.start,
                chars: run.chars,
                limit: RUN_CHARS,
            });
        }
        if pre == "superbpe" {
            let digits = longest(text, Boundaries::Digits);
            if digits.chars > SUPERBPE_DIGITS {
                return Err(LlamaError::Run {
                    at: digits.bytes.start,
                    chars: digits.chars,
                    limit: SUPERBPE_DIGITS,
                });
            }
        }
        Ok(run.chars)
    }

    fn tokenize_here(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, LlamaError> {
        let failed = |stopped: Stopped| LlamaError::Tokenize {
            reason: stopped.reason,
        };
        let input = Text {
            bytes: text.as_ptr().cast(),
            len: text.len() as i32, // at most `TEXT_BYTES`
            add_special,
            parse_special,
        };
        // Mostly enough; what is not written to takes no memory.
        let mut room = text.len() + SPECIAL_TOKENS;
        loop {
            let mut tokens: Vec<Token> = vec![0; room];
            // An `i32`: the text by its limit, and llama.cpp asks for no more than that.
            let mut count = room as i32;
            // SAFETY: the model lives; the text has the length that is passed, and the tokens have
            // room for `count`.
            let (result, log) = logged(|failure| unsafe {
                dwindle_tokenize(self.raw(), &input, tokens.as_mut_ptr(), &mut count, failure)
            });
            result.map_err(failed)?;
            if count >= 0 {
                tokens.truncate(count as usize);
                tokens.shrink_to_fit();
                return Ok(tokens);
            }
            let needed = count.unsigned_abs() as usize;
            if count == i32::MIN || needed <= room {
                return Err(LlamaError::Tokenize { reason: log });
            }
            room = needed;
        }
    }
}

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Run {
    bytes: Range<usize>,
    chars: usize,
}

/// Where no match goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boundaries {
    /// Before a space behind something else, and behind the end of a line before what is neither
    /// white space nor `/`.
    Words,
    /// Behind the end of a line only: matches may contain spaces.
    Lines,
    /// Before and behind everything that is not a digit.
    Digits,
}

impl Boundaries {
    /// Of a pre-tokenizer. The expressions are those of `llama-vocab.cpp`: only one of them has
    /// matches with a space inside, and some let ends of lines and slashes follow punctuation.
    fn of(pre_tokenizer: &str) -> Boundaries {
        match pre_tokenizer {
            "exaone-moe" => Boundaries::Lines,
            _ => Boundaries::Words,
        }
    }

    fn between(self, before: char, after: char) -> bool {
        let line = matches!(before, '\n' | '\r') && !after.is_whitespace() && after != '/';
        match self {
            Boundaries::Words => line || after == ' ' && !before.is_whitespace(),
            Boundaries::Lines => line,
            Boundaries::Digits => !before.is_numeric() || !after.is_numeric(),
        }
    }
}

fn longest(text: &str, boundaries: Boundaries) -> Run {
    let (mut best, mut run) = (Run::default(), Run::default());
    let mut before = None;
    for (at, c) in text.char_indices() {
        if before.is_some_and(|before| boundaries.between(before, c)) {
            run = Run {
                bytes: at..at,
                chars: 0,
            };
        }
        run.bytes.end = at + c.len_utf8();
        run.chars += 1;
        if run.chars > best.chars {
            best = run.clone();
        }
        before = Some(c);
    }
    best
}

/// Mirrors `dwindle_text` in calls.cpp.
#[repr(C)]
struct Text {
    bytes: *const c_char,
    len: i32,
    add_special: bool,
    parse_special: bool,
}

unsafe extern "C" {
    fn dwindle_tokenize(
        model: *const sys::llama_model,
        text: *const Text,
        tokens: *mut Token,
        count: *mut i32,
        failure: *mut Failure,
    ) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, boundaries: Boundaries) -> &str {
        &text[longest(text, boundaries).bytes]
    }

    #[test]
    fn runs_end_where_no_match_goes_on() {
        let words = Boundaries::Words;
        assert_eq!(longest("", words).chars, 0);
        assert_eq!(run("a bc def", words), " def");
        assert_eq!(run("ab漢字漢字 x", words), "ab漢字漢字");
        assert_eq!(longest("ab漢字漢字 x", words).chars, 6);
        // Punctuation with ends of lines and slashes behind it is one match.
        assert_eq!(run("a ==\n/\n/x b", words), " ==\n/\n/x");
        assert_eq!(run("ab\ncde\nf", words), "cde\n");
        // White space of any kind is one run, with the word behind it.
        assert_eq!(run("a \n \t\n b", words), " \n \t\n b");
        assert_eq!(run("a b c\nd e", Boundaries::Lines), "a b c\n");
        assert_eq!(run("a12b3456 7", Boundaries::Digits), "3456");
    }
}
