//! How the next token is chosen from a row of logits: llama.cpp's samplers, behind the guard.

use std::ffi::c_int;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::error::LlamaError;
use super::guard::{Failure, guarded, logged};
use super::vocabulary::Token;

/// How the next token is chosen. The defaults are llama.cpp's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 (or less than a millionth) always takes the most probable token; higher is more varied.
    pub temperature: f32,
    /// Only this many of the most probable tokens are considered.
    pub top_k: u32,
    /// Only the most probable tokens that together have this probability are considered.
    pub top_p: f32,
    /// Only tokens with at least this share of the best one's probability are considered.
    pub min_p: f32,
    /// The same seed gives the same text.
    pub seed: u32,
}

/// The lowest temperature that is sampled at. Logits are divided by it: far below, the quotients
/// overflow, and already here tokens have the same chance only if their logits are the same in all
/// digits.
const LOWEST_TEMPERATURE: f32 = 1e-6;

impl Sampling {
    /// Whether the most probable token is always taken. Not a number also means that.
    pub fn is_greedy(&self) -> bool {
        self.temperature.is_nan() || self.temperature < LOWEST_TEMPERATURE
    }
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            seed: 0,
        }
    }
}

/// llama.cpp's sampler chain, or none where the most probable token is taken.
#[derive(Debug)]
pub(super) struct Sampler {
    chain: Option<NonNull<sys::llama_sampler>>,
}

// SAFETY: a chain is used through `&mut self` only, and llama.cpp does not tie it to a thread.
unsafe impl Send for Sampler {}

impl Sampler {
    pub(super) fn new(sampling: &Sampling) -> Result<Sampler, LlamaError> {
        if sampling.is_greedy() {
            return Ok(Sampler { chain: None });
        }
        let choice = Choice {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            top_k: i32::try_from(sampling.top_k).unwrap_or(i32::MAX),
            seed: sampling.seed,
        };
        let mut chain = std::ptr::null_mut();
        // SAFETY: both pointers are valid during the call.
        let (made, log) =
            logged(|failure| unsafe { dwindle_new_sampler(&choice, &mut chain, failure) });
        made.map_err(|stopped| LlamaError::Sample(stopped.reason))?;
        let chain = NonNull::new(chain).ok_or(LlamaError::Sample(log))?;
        Ok(Sampler { chain: Some(chain) })
    }

    /// The next token.
    ///
    /// # Errors
    /// There are no logits, or some are NaN: llama.cpp asserts the one, and sorts beyond its memory
    /// with the other.
    pub(super) fn sample(&mut self, logits: &[f32]) -> Result<Token, LlamaError> {
        let failed = |reason: &str| LlamaError::Sample(reason.to_string());
        if logits.is_empty() {
            return Err(failed("it has predicted nothing"));
        }
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(failed(
                "its predictions are not numbers; the model is damaged, or its values overflow",
            ));
        }
        let Some(chain) = self.chain else {
            return Ok(argmax(logits));
        };
        let count =
            i32::try_from(logits.len()).map_err(|_| failed("the vocabulary is too long"))?;
        let mut token = -1;
        // SAFETY: the chain lives, and the logits are as many as the count says.
        let chosen = guarded(|failure| unsafe {
            dwindle_sample(chain.as_ptr(), logits.as_ptr(), count, &mut token, failure)
        });
        if let Err(stopped) = chosen {
            // What is left of the chain may be in any state: it is neither used nor freed.
            self.chain = None;
            return Err(LlamaError::Sample(stopped.reason));
        }
        match token < 0 {
            true => Ok(argmax(logits)),
            false => Ok(token),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Some(chain) = self.chain {
            // SAFETY: the chain is owned and freed once. A failure leaves it in memory.
            let freed = guarded(|failure| unsafe { dwindle_free_sampler(chain.as_ptr(), failure) });
            drop(freed);
        }
    }
}

/// The first of the largest, as llama.cpp's greedy sampler takes it.
fn argmax(logits: &[f32]) -> Token {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as Token
}

/// Mirrors `dwindle_choice` in calls.cpp.
#[repr(C)]
struct Choice {
    temperature: f32,
    top_p: f32,
    min_p: f32,
    top_k: i32,
    seed: u32,
}

unsafe extern "C" {
    fn dwindle_new_sampler(
        choice: *const Choice,
        sampler: *mut *mut sys::llama_sampler,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_free_sampler(sampler: *mut sys::llama_sampler, failure: *mut Failure) -> c_int;
    fn dwindle_sample(
        sampler: *mut sys::llama_sampler,
        logits: *const f32,
        n_logits: i32,
        token: *mut Token,
        failure: *mut Failure,
    ) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: u32) -> Sampler {
        Sampler::new(&Sampling {
            temperature,
            top_k,
            ..Sampling::default()
        })
        .unwrap()
    }

    #[test]
    fn no_temperature_divides_logits_out_of_range() {
        let logits = [1.5, -30.0, 400.0, 399.0, 0.0];
        for exponent in -149..=0 {
            let temperature = (f64::from(exponent)).exp2() as f32;
            let token = sampler(temperature, 40).sample(&logits).unwrap();
            assert!([2, 3].contains(&token), "{token} at 2^{exponent}");
        }
    }

    #[test]
    fn what_cant_be_sampled_is_an_error_and_not_the_end() {
        let mut strange: Vec<f32> = (0..4000).map(|i| (i % 97) as f32).collect();
        for logit in strange.iter_mut().step_by(3) {
            *logit = f32::NAN;
        }
        for temperature in [0.0, 0.8] {
            for top_k in [0, 40, 1000] {
                let mut sampler = sampler(temperature, top_k);
                for logits in [&[][..], &strange] {
                    let error = sampler.sample(logits).unwrap_err();
                    assert!(matches!(error, LlamaError::Sample(_)), "{error}");
                }
                assert_eq!(sampler.sample(&[f32::NEG_INFINITY, 1.0]).unwrap(), 1);
            }
        }
    }

    #[test]
    fn infinite_logits_are_sampled() {
        for infinite in [f32::INFINITY, f32::NEG_INFINITY] {
            let token = sampler(0.8, 0).sample(&[infinite; 3000]).unwrap();
            assert!((0..3000).contains(&token));
        }
    }

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(argmax(&[0.0, 3.0, -1.0, 3.0]), 1);
    }
}
