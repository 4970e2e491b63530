//! Options of every command that runs a model, and opening whatever file they name.

use std::path::Path;

use clap::Args;
use dwindle::llama::context::ContextOptions;
use dwindle::llama::model::{Model, ModelOptions};
use dwindle::pipeline::{Factors, load, load_as};
use dwindle::plan::Recipe;

use super::{Failure, progress};

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
    /// Multiply factors out while loading, instead of executing them
    #[arg(long)]
    multiplied_out: bool,
    /// Threads [default: one per physical core]
    #[arg(short, long)]
    threads: Option<u32>,
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
            ..ModelOptions::default()
        }
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
        let recipe = Recipe::base("f16");
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
