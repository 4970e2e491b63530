//! Options of the commands that run a model, and loading it.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use dwindle_formats::gguf::TensorType;

use super::devices::Devices;
use super::{Failure, progress};
use crate::llama::context::{ContextOptions, FlashAttention};
use crate::llama::model::{Model, ModelOptions};
use crate::runtime::{self, Factors, load};

/// Where and how a model runs.
#[derive(Debug, Clone, Args)]
pub struct Runtime {
    #[command(flatten)]
    devices: Devices,
    /// Apply a LoRA adapter (GGUF); may be repeated
    #[arg(long, value_name = "FILE")]
    lora: Vec<PathBuf>,
    /// Multiply factors out while loading instead of executing them
    #[arg(long)]
    multiplied_out: bool,
    /// Threads [default: one per physical core]
    #[arg(short, long)]
    threads: Option<u32>,
}

/// How a context stores keys and values.
#[derive(Debug, Clone, Copy, Args)]
pub struct Attention {
    /// When to use flash attention
    #[arg(
        long,
        visible_alias = "fa",
        value_name = "WHEN",
        default_value = "auto"
    )]
    flash_attn: When,
    /// The type of keys and values; quantized types need flash attention
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    cache_type: CacheType,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum When {
    Auto,
    On,
    Off,
}

/// Types of keys and values that every device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheType {
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl Attention {
    /// Context options with these applied.
    pub fn apply(&self, options: ContextOptions) -> ContextOptions {
        ContextOptions {
            flash_attention: match self.flash_attn {
                When::Auto => FlashAttention::Auto,
                When::On => FlashAttention::On,
                When::Off => FlashAttention::Off,
            },
            cache_type: self.cache_type.ty(),
            ..options
        }
    }
}

impl CacheType {
    /// ggml's type.
    pub fn ty(self) -> TensorType {
        match self {
            CacheType::F32 => TensorType::F32,
            CacheType::F16 => TensorType::F16,
            CacheType::Q8_0 => TensorType::Q8_0,
            CacheType::Q4_0 => TensorType::Q4_0,
        }
    }
}

impl Runtime {
    /// How models are loaded.
    ///
    /// # Errors
    /// A server of devices that doesn't answer.
    pub fn model_options(&self) -> Result<ModelOptions, Failure> {
        Ok(ModelOptions {
            placement: self.devices.placement()?,
            lora: self.lora.clone(),
            ..ModelOptions::default()
        })
    }

    /// The adapters to apply.
    pub fn adapters(&self) -> &[PathBuf] {
        &self.lora
    }

    /// The requested threads.
    pub fn threads(&self) -> Option<u32> {
        self.threads
    }

    /// How models are run.
    pub fn context_options(&self) -> ContextOptions {
        ContextOptions {
            threads: self.threads,
            ..ContextOptions::default()
        }
    }

    /// Loads a checkpoint so that its weights can be replaced.
    pub fn load_replaceable(&self, path: &Path) -> Result<Model, Failure> {
        let options = self.model_options()?;
        let bar = progress::count(0, "loading");
        let model = runtime::load_replaceable(path, &options, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        Ok(model)
    }

    /// Loads a GGUF file, a container or a checkpoint, and checks the digests of files that have
    /// them.
    pub fn load(&self, path: &Path) -> Result<Model, Failure> {
        let options = self.model_options()?;
        let bar = progress::count(0, "loading");
        let factors = if self.multiplied_out {
            Factors::MultipliedOut
        } else {
            Factors::Executed
        };
        let model = load(path, &options, factors, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        Ok(model)
    }
}
