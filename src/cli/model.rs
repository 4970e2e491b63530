//! Options of every command that runs a model, and opening whatever file they name.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use dwindle_formats::gguf::TensorType;

use super::{Failure, progress};
use crate::llama::context::{ContextOptions, FlashAttention};
use crate::llama::model::{Model, ModelOptions};
use crate::plan::{Base, Recipe};
use crate::runtime::{Factors, load, load_as};

/// Where and how a model runs.
#[derive(Debug, Clone, Args)]
pub struct Runtime {
    /// Layers to offload to the GPU [default: as many as llama.cpp does by itself]
    #[arg(
        long = "gpu-layers",
        visible_alias = "n-gpu-layers",
        short = 'g',
        value_name = "N"
    )]
    gpu_layers: Option<u32>,
    /// Devices to use, by llama.cpp's names (`CUDA0,CUDA1`); `none` for the CPU
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    device: Option<Vec<String>>,
    /// Apply a LoRA adapter (GGUF); may be given several times
    #[arg(long, value_name = "FILE")]
    lora: Vec<PathBuf>,
    /// Multiply factors out while loading, instead of executing them
    #[arg(long)]
    multiplied_out: bool,
    /// Threads [default: one per physical core]
    #[arg(short, long)]
    threads: Option<u32>,
}

/// How a context holds keys and values.
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
    /// The type of keys and values; quantized ones want flash attention
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
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CacheType {
    F32,
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl Attention {
    /// The options of a runtime's contexts with these.
    pub fn apply(&self, options: ContextOptions) -> ContextOptions {
        ContextOptions {
            flash_attention: match self.flash_attn {
                When::Auto => FlashAttention::Auto,
                When::On => FlashAttention::On,
                When::Off => FlashAttention::Off,
            },
            cache_type: match self.cache_type {
                CacheType::F32 => TensorType::F32,
                CacheType::F16 => TensorType::F16,
                CacheType::Q8_0 => TensorType::Q8_0,
                CacheType::Q4_0 => TensorType::Q4_0,
            },
            ..options
        }
    }
}

impl Runtime {
    /// How models are loaded.
    pub fn model_options(&self) -> ModelOptions {
        ModelOptions {
            gpu_layers: self.gpu_layers,
            devices: self.device.as_ref().map(|names| match names.as_slice() {
                [only] if only == "none" => Vec::new(),
                names => names.to_vec(),
            }),
            lora: self.lora.clone(),
            ..ModelOptions::default()
        }
    }

    /// The adapters to apply.
    pub fn adapters(&self) -> &[PathBuf] {
        &self.lora
    }

    /// Threads that were asked for.
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

    /// Loads a checkpoint in F16, so that its weights can be replaced.
    pub fn load_replaceable(&self, path: &Path) -> Result<Model, Failure> {
        let bar = progress::count(0, "loading");
        let recipe = Recipe::of(Base::F16);
        let model = load_as(path, &recipe, &self.model_options(), &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        Ok(model)
    }

    /// Loads a GGUF file, a container or a checkpoint, checking the digests of files that have
    /// them.
    pub fn load(&self, path: &Path) -> Result<Model, Failure> {
        let bar = progress::count(0, "loading");
        let factors = match self.multiplied_out {
            true => Factors::MultipliedOut,
            false => Factors::Executed,
        };
        let model = load(path, &self.model_options(), factors, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        Ok(model)
    }
}
