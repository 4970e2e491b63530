//! The builder that compresses a checkpoint, from file names to a file.

use std::path::{Path, PathBuf};

use dwindle_formats::output::Claims;

use super::compression::{Compressed, Compression, is_stock};
use super::types_of::types_of;
use super::{Choosing, Error, Goal, Text};
use crate::architecture::Model;
use crate::checkpoint::lora::Lora;
use crate::checkpoint::merged::Merged;
use crate::checkpoint::{self, Caches, Source};
use crate::fitting::FitOptions;
use crate::llama::placement::Placement;
use crate::plan::{Base, Recipe, Rounding, preset};
use crate::progress::Progress;
use crate::statistics::{Diagnosis, Identity, Importance, Measured, Statistics};
use crate::target::Part;
use crate::writing::Options;

/// A checkpoint to be compressed, and how.
///
/// Without more, each tensor is copied into F16.
#[must_use]
pub struct Compress<'p> {
    checkpoint: PathBuf,
    adapter: Option<PathBuf>,
    recipe: Recipe,
    goal: Option<Goal>,
    choosing: Choosing,
    recipe_file: Option<PathBuf>,
    types_of: Option<PathBuf>,
    statistics: Option<PathBuf>,
    importance: Option<PathBuf>,
    diagnosis: Option<PathBuf>,
    text: Option<PathBuf>,
    gate: Option<PathBuf>,
    workspaces: Option<PathBuf>,
    split_size: Option<u64>,
    sequential: bool,
    fit: FitOptions,
    options: Options,
    placement: Placement,
    progress: &'p dyn Progress,
}

impl<'p> Compress<'p> {
    /// A Hugging Face folder, a GGUF file, or the name of a model in the Hugging Face cache.
    pub fn checkpoint(checkpoint: impl Into<PathBuf>) -> Compress<'p> {
        Compress {
            checkpoint: checkpoint.into(),
            adapter: None,
            recipe: Recipe::of(Base::F16),
            goal: None,
            choosing: Choosing::default(),
            recipe_file: None,
            types_of: None,
            statistics: None,
            importance: None,
            diagnosis: None,
            text: None,
            gate: None,
            workspaces: None,
            split_size: None,
            sequential: false,
            fit: FitOptions {
                ctx: 512,
                chunks: 64,
                threads: None,
            },
            options: Options::default(),
            placement: Placement::default(),
            progress: &(),
        }
    }

    /// The folder of a LoRA adapter of PEFT, which is merged into the checkpoint.
    pub fn merge(self, adapter: Option<PathBuf>) -> Compress<'p> {
        Compress { adapter, ..self }
    }

    /// A preset, or one of llama-quantize's file types (`q4_k_m`).
    ///
    /// # Errors
    /// [`Error::Recipe`] where there is none of that name.
    pub fn preset(self, name: &str) -> Result<Compress<'p>, Error> {
        Ok(self.recipe(preset(name)?))
    }

    /// Rules from roles, layers and names to methods.
    pub fn recipe(self, recipe: Recipe) -> Compress<'p> {
        Compress { recipe, ..self }
    }

    /// The file that the recipe was read from, so that it is not overwritten.
    pub fn recipe_file(self, file: Option<PathBuf>) -> Compress<'p> {
        Compress {
            recipe_file: file,
            ..self
        }
    }

    /// A size or a quality, for which the type of each tensor is chosen. Makes a stock `.gguf` whose codes
    /// are chosen for the layers' outputs. Whatever that needs is measured first, on [`Self::text`] or on a
    /// text that comes with dwindle.
    pub fn goal(mut self, goal: Goal) -> Compress<'p> {
        self.recipe.rounding = Rounding::Output;
        self.goal = Some(goal);
        self
    }

    /// How types are chosen for a goal.
    pub fn choosing(self, choosing: Choosing) -> Compress<'p> {
        Compress { choosing, ..self }
    }

    /// A GGUF file that was made of the same checkpoint, whose types each tensor gets.
    pub fn types_of(self, file: Option<PathBuf>) -> Compress<'p> {
        Compress {
            types_of: file,
            ..self
        }
    }

    /// Statistics of [`calibrate`](crate::measure::calibrate), which also give importance weights.
    pub fn statistics(self, file: impl Into<Option<PathBuf>>) -> Compress<'p> {
        Compress {
            statistics: file.into(),
            ..self
        }
    }

    /// Importance weights, as llama-imatrix writes them.
    pub fn importance(self, file: impl Into<Option<PathBuf>>) -> Compress<'p> {
        Compress {
            importance: file.into(),
            ..self
        }
    }

    /// What compressing each tensor costs, by which ranks are chosen.
    pub fn diagnosis(self, file: impl Into<Option<PathBuf>>) -> Compress<'p> {
        Compress {
            diagnosis: file.into(),
            ..self
        }
    }

    /// The text, in UTF-8, that measurements run on and layers are fitted on.
    pub fn text(self, file: impl Into<Option<PathBuf>>) -> Compress<'p> {
        Compress {
            text: file.into(),
            ..self
        }
    }

    /// A second text, on which the file for a goal is compared with llama-quantize's.
    pub fn gate(self, file: impl Into<Option<PathBuf>>) -> Compress<'p> {
        Compress {
            gate: file.into(),
            ..self
        }
    }

    /// The folder for what is measured of models, a folder in it for each; by default in the user's cache
    /// folder.
    pub fn workspaces(self, folder: impl Into<Option<PathBuf>>) -> Compress<'p> {
        Compress {
            workspaces: folder.into(),
            ..self
        }
    }

    /// The most bytes that a `.gguf` may have. A larger one is written as parts that llama.cpp loads together,
    /// `model-00001-of-00003.gguf` and so on in the place of `model.gguf`. For a goal, a file counts whole.
    pub fn split_size(self, bytes: impl Into<Option<u64>>) -> Compress<'p> {
        Compress {
            split_size: bytes.into(),
            ..self
        }
    }

    /// Whether layers are fitted to the outputs of the compressed layers before them, and on how
    /// much of the text.
    pub fn sequential(self, sequential: bool, fit: FitOptions) -> Compress<'p> {
        Compress {
            sequential,
            fit,
            ..self
        }
    }

    /// Bytes of memory for what is worked on; half of the machine's where it is not said.
    pub fn memory(mut self, bytes: u64) -> Compress<'p> {
        self.options.memory = bytes;
        self
    }

    /// Worker threads; one for each core where it is not said.
    pub fn threads(mut self, threads: usize) -> Compress<'p> {
        self.options.threads = threads;
        self
    }

    /// The devices that models run on; the GPUs that llama.cpp sees where it is not said.
    pub fn placement(self, placement: Placement) -> Compress<'p> {
        Compress { placement, ..self }
    }

    /// Receives progress.
    pub fn progress(self, progress: &'p dyn Progress) -> Compress<'p> {
        Compress { progress, ..self }
    }

    /// Writes the file, `.gguf` for any llama.cpp or `.dwn` for the compressed container, or
    /// continues where a killed run that would write the same has stopped.
    ///
    /// # Errors
    /// [`Error`]; existing files are then untouched.
    pub fn write(&self, output: impl AsRef<Path>) -> Result<Compressed, Error> {
        self.run(Some(output.as_ref()), is_stock(output.as_ref())?)
    }

    /// What [`Self::write`] would do.
    ///
    /// # Errors
    /// [`Error`].
    pub fn plan(&self, is_stock: bool) -> Result<Compressed, Error> {
        self.run(None, is_stock)
    }

    /// Measures a part of what [`Self::write`] measures first, so that several machines can share that: with
    /// one folder of workspaces, or one after another what [`join`](super::workspace::join) brings together.
    /// Gives the file that holds it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn measure(&self, part: Part) -> Result<PathBuf, Error> {
        self.with(None, true, |compression| compression.measure(part))
    }

    fn run(&self, output: Option<&Path>, is_stock: bool) -> Result<Compressed, Error> {
        self.with(output, is_stock, |compression| {
            compression.run(output, is_stock)
        })
    }

    /// The checkpoint, with the adapter merged into it if there is one.
    fn opened(&self, path: &Path) -> Result<(Box<dyn Source>, Model), Error> {
        let (source, model) = crate::architecture::open(path)?;
        let Some(adapter) = &self.adapter else {
            return Ok((source, model));
        };
        let lora = Lora::open(adapter).map_err(crate::architecture::Error::from)?;
        let merged = Merged::new(source, &lora);
        let mut merged = merged.map_err(crate::architecture::Error::from)?;
        for tensor in &model.tensors {
            merged.level(&tensor.assembly.sources());
        }
        Ok((Box::new(merged), model))
    }

    /// Opens all that is read, and does something with it.
    fn with<T>(
        &self,
        output: Option<&Path>,
        is_stock: bool,
        work: impl FnOnce(&Compression<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        crate::llama::backend::init();
        // Before work that may take hours.
        let path = checkpoint::resolve(&self.checkpoint, &Caches::from_env());
        let reads = self.reads(path.as_deref().unwrap_or(&self.checkpoint));
        reads.clone().writes(output).check()?;
        if self.split_size.is_some() && !is_stock {
            return Err(Error::SplitContainer);
        }
        let path = path.map_err(crate::architecture::Error::from)?;
        let [text, gate] = [&self.text, &self.gate].map(|file| file.as_deref().map(Text::read));
        let (text, gate) = (text.transpose()?, gate.transpose()?);
        let importance = self.importance.as_deref().map(Importance::open);
        let importance = importance.transpose()?;
        let (source, model) = self.opened(&path)?;
        let notes = model.notes();
        notes.iter().for_each(|text| self.progress.note(text));
        let mut recipe = self.recipe.clone();
        if let Some(file) = &self.types_of {
            recipe.rules = types_of(file, &model)?;
        }
        let statistics = self.statistics.as_deref().map(Statistics::open);
        let statistics = statistics.transpose()?;
        if let Some(statistics) = &statistics {
            let likeness = statistics.check_model(&model, source.as_ref())?;
            likeness.warning().inspect(|text| self.progress.warn(text));
        }
        let identity = || Identity::of(&model, source.as_ref());
        let diagnosis = match &self.diagnosis {
            Some(file) => Some(Diagnosis::open(file, &identity()?)?),
            None => None,
        };
        let from_statistics = || statistics.as_ref().map(Importance::from_statistics);
        let importance = importance.or_else(from_statistics);
        let compression = Compression {
            path: &path,
            model: &model,
            source: source.as_ref(),
            measured: Measured {
                importance: importance.as_ref(),
                statistics: statistics.as_ref(),
                diagnosis: diagnosis.as_ref(),
                walked: false,
            },
            recipe,
            goal: self.goal,
            choosing: self.choosing.clone(),
            text,
            gate,
            workspaces: self.workspaces.clone(),
            split_size: self.split_size,
            reads,
            sequential: self.sequential,
            fit: self.fit.clone(),
            options: Options {
                compress: output.is_some() && !is_stock,
                ..self.options
            },
            placement: self.placement.clone(),
            progress: self.progress,
        };
        work(&compression)
    }

    /// What is read.
    fn reads(&self, checkpoint: &Path) -> Claims {
        Claims::new()
            .reads("the checkpoint", [checkpoint])
            .reads("the adapter", &self.adapter)
            .reads("the recipe", &self.recipe_file)
            .reads("the file whose types are taken", &self.types_of)
            .reads("the importance file", &self.importance)
            .reads("the statistics", &self.statistics)
            .reads("the diagnosis", &self.diagnosis)
            .reads("a text", &self.text)
            .reads("a text", &self.gate)
    }
}
