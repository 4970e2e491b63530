//! Speed and memory: tokens per second for a prompt and for generated text, in medians of runs that
//! alternate between the models, so that a machine that slows down slows all of them.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::llama::context::{BatchToken, Context, ContextOptions};
use crate::llama::generate::evaluate_prompt;
use crate::llama::model::{LlamaError, Model, Token};

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeedOptions {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens that are generated.
    pub generate: u32,
    /// Runs of each model, not counting one to warm up.
    pub runs: u32,
    /// Threads, `None` for one per physical core.
    pub threads: Option<u32>,
}

impl Default for SpeedOptions {
    fn default() -> SpeedOptions {
        SpeedOptions {
            prompt: 512,
            generate: 64,
            runs: 5,
            threads: None,
        }
    }
}

/// A model's speed and memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Prompt tokens per second, median.
    pub prompt_per_second: f64,
    /// Generated tokens per second, median.
    pub generated_per_second: f64,
    /// Seconds that loading took.
    pub load_seconds: f64,
    /// Bytes of the model's tensors.
    pub model_bytes: u64,
    /// Bytes of keys and values.
    pub context_bytes: u64,
    /// Bytes of scratch buffers.
    pub compute_bytes: u64,
}

/// Measures models, alternating between them run by run.
///
/// # Errors
/// llama.cpp fails.
pub fn speed(models: &[&Model], options: &SpeedOptions) -> Result<Vec<Speed>, LlamaError> {
    let (prompt, generate) = (options.prompt.max(1), options.generate.max(1));
    let mut contexts = models
        .iter()
        .map(|model| {
            let options = ContextOptions {
                ctx: prompt.saturating_add(generate),
                threads: options.threads,
                ..ContextOptions::default()
            };
            Context::new(model, &options)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut times = vec![(Vec::new(), Vec::new()); models.len()];
    for run in 0..=options.runs.max(1) {
        for (context, times) in contexts.iter_mut().zip(&mut times) {
            let (prompt, generated) = measure(context, prompt, generate)?;
            if run > 0 {
                times.0.push(prompt);
                times.1.push(generated);
            }
        }
    }
    let results = contexts.iter().zip(times).map(|(context, mut times)| {
        let memory = context.memory();
        Speed {
            prompt_per_second: f64::from(prompt) / median(&mut times.0),
            generated_per_second: f64::from(generate) / median(&mut times.1),
            load_seconds: context.model().load_time().as_secs_f64(),
            model_bytes: memory.model,
            context_bytes: memory.context,
            compute_bytes: memory.compute,
        }
    });
    Ok(results.collect())
}

/// Seconds for a prompt and for generated tokens. The tokens are arbitrary, as their values do not
/// change the time.
fn measure(
    context: &mut Context<'_>,
    prompt: u32,
    generate: u32,
) -> Result<(f64, f64), LlamaError> {
    let vocab = context.model().n_vocab().max(1) as u64;
    let token = |i: u32| (u64::from(i) * 7919 % vocab) as Token;
    let tokens: Vec<Token> = (0..prompt).map(token).collect();
    let start = Instant::now();
    evaluate_prompt(context, &tokens)?;
    context.try_logits()?; // waits for the computation
    let prompt_time = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for i in prompt..prompt + generate {
        context.decode(&[BatchToken {
            token: token(i),
            position: i as i32,
            sequence: 0,
            logits: true,
        }])?;
        context.try_logits()?;
    }
    Ok((prompt_time, start.elapsed().as_secs_f64()))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The most memory that this process has had resident, in bytes, if the system reports it.
pub fn peak_memory() -> Option<u64> {
    status("VmHWM:")
}

/// The memory that this process has resident now, in bytes, if the system reports it.
pub fn memory_now() -> Option<u64> {
    status("VmRSS:")
}

fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory() {
        assert!(peak_memory().unwrap() > 1 << 20);
    }
}
