//! Compresses an open checkpoint.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dwindle_formats::gguf::TensorType;
use dwindle_formats::output::{Claims, folder_of};

use super::fitted::fit_layers;
use super::shrink::{Following, Smaller, shrink};
use super::{
    Choosing, Error, Goal, Outcome, StructureReport, Study, Text, Workbench, choose, workspace,
};
use crate::architecture::Model;
use crate::blockwise::{Unfitted, describe};
use crate::checkpoint::{self, Source};
use crate::fitting::FitOptions;
use crate::llama::placement::Placement;
use crate::plan::{Plan, Recipe, Rounding, Step, Subject, resolve};
use crate::progress::{Progress, Unit};
use crate::statistics::Measured;
use crate::target::{Chosen, Part, refuse_too_small, types_for};
use crate::writing::{Inputs, Options, OutputFile, Summary, compress, divide};

/// An open checkpoint and what to do with it; [`Compress`](super::Compress) documents each option.
pub(super) struct Compression<'a> {
    pub path: &'a Path,
    pub model: &'a Model,
    pub source: &'a dyn Source,
    pub measured: Measured<'a>,
    pub recipe: Recipe,
    pub goal: Option<Goal>,
    pub choosing: Choosing,
    pub text: Option<Text>,
    pub gate: Option<Text>,
    pub workspaces: Option<PathBuf>,
    pub split_size: Option<u64>,
    /// What no output may be.
    pub reads: Claims,
    pub sequential: bool,
    pub fit: FitOptions,
    pub options: Options,
    pub placement: Placement,
    pub progress: &'a dyn Progress,
}

/// A file that was written, or that would be.
#[derive(Debug)]
pub struct Compressed {
    /// What becomes of each tensor.
    pub plan: Plan,
    /// What was written; `None` where only the plan was wanted.
    pub summary: Option<Summary>,
    /// The file, or all of its parts; without an output they have names of no meaning.
    pub files: Vec<OutputFile>,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of the checkpoint's weights.
    pub source_bytes: u64,
    /// How long it took.
    pub time: Duration,
    /// How the model's structure was pruned.
    pub structure: Option<StructureReport>,
    /// The measured result of the goal.
    pub outcome: Option<Outcome>,
    /// Layers that were not fitted to those before.
    pub unfitted: Vec<Unfitted>,
}

/// Whether a file is to be a stock `.gguf`, by its name.
///
/// # Errors
/// Another extension than `.gguf` and `.dwn`.
pub fn is_stock(output: &Path) -> Result<bool, Error> {
    match output.extension().and_then(|e| e.to_str()) {
        Some("gguf") => Ok(true),
        Some("dwn") => Ok(false),
        _ => Err(Error::Extension(PathBuf::from(output))),
    }
}

impl Compression<'_> {
    /// Writes the file; without an output, what would be written.
    pub fn run(&self, output: Option<&Path>, is_stock: bool) -> Result<Compressed, Error> {
        let start = Instant::now();
        let scratch = output.map_or(Path::new("."), folder_of);
        let whole = self.bench(self.model, self.measured, scratch);
        let smaller = self.smaller(&whole, output.is_some())?;
        let (model, measured) = match &smaller {
            None => (self.model, self.measured),
            Some(smaller) => {
                let importance = smaller.importance.as_ref();
                let known = Measured {
                    importance,
                    ..Measured::default()
                };
                (&smaller.model, known)
            }
        };
        let mut bench = self.bench(model, measured, scratch);
        if let Some(bytes) = self.goal.and_then(|g| g.bytes(bench.subject.bytes())) {
            refuse_too_small(&bench.subject, bytes)?;
        }
        let study = self.study(&bench)?;
        if let Some(study) = &study {
            bench.subject.measured = study.measured();
            bench.study = Some(study);
        }
        let chosen = match (self.goal, &study) {
            (Some(goal), Some(study)) => Some(choose(&bench, &self.choosing, study, goal)?),
            _ => None,
        };
        let plan = match &chosen {
            Some(chosen) => chosen.plan.clone(),
            None => resolve(&self.recipe, &bench.subject)?,
        };
        refuse_factors(&plan, is_stock)?;
        self.warn_of_quantized(&plan);
        self.progress.planned(&plan, is_stock);
        let mut done = Compressed {
            plan,
            summary: None,
            files: Vec::new(),
            parameters: bench.subject.elements(),
            source_bytes: self.source_bytes(),
            time: Duration::ZERO,
            structure: smaller.as_ref().map(|s| s.report.clone()),
            outcome: None,
            unfitted: Vec::new(),
        };
        let Some(output) = output else {
            done.files = self.divided(&bench, &done.plan)?;
            done.time = start.elapsed();
            return Ok(done);
        };
        // A smaller model was fitted while it was made; what was studied is fitted to that.
        let fits = self.sequential && smaller.is_none() && study.is_none();
        self.carry_out(&bench, output, fits, &mut done)?;
        done.outcome = self.outcome(&bench, chosen.as_ref(), &done.files[0].path)?;
        done.time = start.elapsed();
        Ok(done)
    }

    /// Warns where what is quantized already is quantized again.
    fn warn_of_quantized(&self, plan: &Plan) {
        let is_again = |s: &Step| {
            let own = s.stored.ty;
            own.is_quantized() && s.stored.parts.iter().any(|p| p.ty != own)
        };
        let again = plan.steps.iter().filter(|s| is_again(s)).count();
        if again > 0 {
            self.progress.warn(&format!(
                "{again} tensors of the source are quantized already, and are quantized again: the original checkpoint gives a better file"
            ));
        }
    }

    fn source_bytes(&self) -> u64 {
        Subject::unmeasured(self.model, self.source).bytes()
    }

    fn bench<'b>(
        &'b self,
        model: &'b Model,
        measured: Measured<'b>,
        scratch: &'b Path,
    ) -> Workbench<'b> {
        Workbench {
            path: self.path,
            subject: Subject {
                model,
                source: self.source,
                measured,
            },
            original: Subject::unmeasured(self.model, self.source),
            rounding: self.recipe.rounding,
            options: self.options,
            scratch,
            placement: &self.placement,
            study: None,
            progress: self.progress,
        }
    }

    /// Measures a part of what [`Self::run`] measures first, and gives the file that holds it.
    pub fn measure(&self, part: Part) -> Result<PathBuf, Error> {
        if !self.measures() || self.recipe.structure.is_some() {
            return Err(Error::NothingToMeasure);
        }
        let bench = self.bench(self.model, self.measured, Path::new("."));
        let types = self.types(&bench);
        let about = (&self.choosing, types.as_slice());
        Study::part(&bench, &self.workspaces()?, self.text.as_ref(), about, part)
    }

    /// Whether something is to be found out before: for a goal, and where layers are rounded for what they
    /// read and no statistics say that.
    fn measures(&self) -> bool {
        self.goal.is_some()
            || (self.recipe.rounding == Rounding::Output && self.measured.statistics.is_none())
    }

    fn study(&self, bench: &Workbench<'_>) -> Result<Option<Study>, Error> {
        if !self.measures() {
            return Ok(None);
        }
        let text = self.text.as_ref();
        let types = self.types(bench);
        Study::of(bench, &self.workspaces()?, text, (&self.choosing, &types)).map(Some)
    }

    fn workspaces(&self) -> Result<PathBuf, Error> {
        match &self.workspaces {
            Some(folder) => Ok(folder.clone()),
            None => workspace::default_folder(),
        }
    }

    /// Types to judge.
    fn types(&self, bench: &Workbench<'_>) -> Vec<TensorType> {
        match self.goal {
            None => Vec::new(),
            Some(goal) => types_for(&self.choosing.types, goal.bits(&bench.subject)),
        }
    }

    /// The pruned model, if the recipe has a `[structure]`. Layers are not fitted for a plan alone.
    fn smaller(&self, bench: &Workbench<'_>, writes: bool) -> Result<Option<Smaller>, Error> {
        let Some(wanted) = &self.recipe.structure else {
            return Ok(None);
        };
        let following = self.text.as_ref().map(|text| Following {
            text,
            options: &self.fit,
            sequential: self.sequential && writes,
        });
        shrink(bench, wanted, &self.recipe.base, following).map(Some)
    }

    /// Fits what is to be fitted, and writes the file.
    fn carry_out(
        &self,
        bench: &Workbench<'_>,
        output: &Path,
        fits: bool,
        done: &mut Compressed,
    ) -> Result<(), Error> {
        let content = checkpoint::fingerprint::content(self.source);
        let mut inputs = Inputs {
            subject: bench.subject,
            fitted: None,
            content: &content,
        };
        let fitted = match (&self.text, fits) {
            (Some(text), true) => {
                let (parts, left) = fit_layers(bench, &done.plan, &inputs, (text, &self.fit))?;
                describe(&left, &mut done.plan);
                done.unfitted = left;
                Some(parts)
            }
            _ => bench.rounded(&done.plan, &inputs)?,
        };
        inputs.fitted = fitted.as_ref();
        let files = divide(&done.plan, &inputs, output, (self.split_size, self.options))?;
        let paths = files.iter().map(|f| &f.path);
        self.reads.clone().writes(paths).check()?;
        let total = done.plan.bytes();
        self.progress.begin("compressing", total, Unit::Bytes);
        let advance = &mut |n| self.progress.advance(n);
        let summary = compress(&done.plan, &inputs, &files, self.options, advance)?;
        self.progress.end();
        done.summary = Some(summary);
        done.files = files;
        Ok(())
    }

    /// The files that would be written.
    fn divided(&self, bench: &Workbench<'_>, plan: &Plan) -> Result<Vec<OutputFile>, Error> {
        let inputs = Inputs {
            subject: bench.subject,
            fitted: None,
            content: &[0; 32],
        };
        let limits = (self.split_size, self.options);
        Ok(divide(plan, &inputs, Path::new("model.gguf"), limits)?)
    }

    /// Measures the result of a goal.
    fn outcome(
        &self,
        bench: &Workbench<'_>,
        chosen: Option<&Chosen>,
        output: &Path,
    ) -> Result<Option<Outcome>, Error> {
        let (Some(chosen), Some(study)) = (chosen, bench.study) else {
            return Ok(None);
        };
        // A divergence is promised on the text that it was searched on.
        let is_promise = matches!(self.goal, Some(Goal::Divergence(_)));
        let text = match &study.held_out {
            Some(text) if !is_promise => (text, true),
            _ => (&study.text, false),
        };
        Outcome::of(bench, study, (chosen, output), text, self.gate.as_ref()).map(Some)
    }
}

fn refuse_factors(plan: &Plan, is_stock: bool) -> Result<(), Error> {
    let names = plan.not_stock();
    if names.is_empty() || !is_stock {
        return Ok(());
    }
    let shown: Vec<String> = names.iter().take(3).map(|n| format!("`{n}`")).collect();
    let more = if names.len() > 3 { ", …" } else { "" };
    Err(Error::NotStock {
        count: names.len(),
        shown: shown.join(", ") + more,
    })
}
