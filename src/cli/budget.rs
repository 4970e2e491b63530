//! The part of `dwindle compress` that chooses types for a size or a quality.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use dwindle_formats::gguf::TensorType;
use dwindle_formats::output::Scratch;
use fs_err as fs;
use serde::Serialize;

use super::meter::{Checkpoint, Meter, context, unusable};
use super::output::{above_zero, file_name, parse_bytes, read_text};
use super::{Failure, progress};
use crate::eval::EvalOptions;
use crate::llama::model::ModelOptions;
use crate::measure::Experiment;
use crate::plan::{Recipe, Subject};
use crate::statistics::{DiagnosisText, Identity, Sensitivities, digest};
use crate::target::{
    BudgetError, Chosen, Costs, Grouping, Refinement, Search, TYPES, bits_of, candidates,
    fingerprint, groups, measure, of_bits, of_size, rungs,
};

/// What a file is to be like.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// The best file of at most this size, in bytes (`90MB`, `2GiB`) or as a part of the checkpoint's
    /// weights (`35%`): each tensor gets the type that its measured sensitivity deserves. Needs
    /// --stats and --text; writes a stock `.gguf`
    #[arg(long, value_name = "SIZE", value_parser = file_size, group = "target")]
    pub size: Option<FileSize>,
    /// As --size, with so many bits for each weight, metadata not counted
    #[arg(long, value_name = "BITS", value_parser = above_zero, group = "target")]
    pub bpw: Option<f64>,
    /// The smallest file whose mean KL divergence from the checkpoint, measured on the first 8 chunks of
    /// --text, is at most this
    #[arg(long, value_name = "KLD", value_parser = above_zero, group = "target")]
    pub max_kld: Option<f64>,
}

/// How types are chosen.
#[derive(Debug, Clone, Args)]
pub struct Choosing {
    /// How well sensitivities are measured
    #[arg(long, value_enum, default_value = "normal")]
    effort: Effort,
    /// Types to choose from [default: all k-, i- and legacy quants, those below 2 bits only for sizes below
    /// 3 bits a weight, and F16]
    #[arg(long, value_name = "TYPES", value_delimiter = ',', value_parser = element_type)]
    types: Vec<TensorType>,
    /// Keep what is measured in this file, and go on with it when it is there [default: one in the
    /// user's cache folder]
    #[arg(long, value_name = "FILE")]
    sensitivity: Option<PathBuf>,
    /// A text unlike the others, UTF-8, on which files are measured as well; `compress` warns where its
    /// file is worse there than the largest of llama-quantize's file types that is not larger
    #[arg(long, value_name = "FILE")]
    pub gate: Option<PathBuf>,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Effort {
    /// A sixth of the layers at a time, on 1 chunk of the text
    Fast,
    /// Each tensor for itself, on 2 chunks
    Normal,
    /// As normal; then up to 32 files are made and measured on 32 chunks, each to better the last
    Best,
}

/// A size of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FileSize {
    /// Bytes.
    Bytes(u64),
    /// A part of the checkpoint's weights.
    Part(f64),
}

pub fn file_size(text: &str) -> Result<FileSize, String> {
    let Some(percent) = text.strip_suffix('%') else {
        return parse_bytes(text).map(FileSize::Bytes);
    };
    match percent.trim().parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 100.0 => Ok(FileSize::Part(p / 100.0)),
        _ => Err("expected bytes such as `90MB`, or a part such as `35%`".into()),
    }
}

fn element_type(text: &str) -> Result<TensorType, String> {
    let ty = text.parse::<TensorType>().map_err(|e| e.to_string())?;
    match crate::ggml::writable(ty) {
        true => Ok(ty),
        false => Err("it can't be written".into()),
    }
}

/// What was predicted and what came of it.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The predicted mean KL divergence.
    predicted_kld: f64,
    /// The measured one, of the file, on the beginning of the text.
    measured_kld: f64,
    error: f64,
    gate: Option<Gate>,
}

/// The comparison on the second text.
#[derive(Debug, Serialize)]
struct Gate {
    file_type: String,
    bytes: u64,
    kld: f64,
    own_kld: f64,
}

impl Effort {
    fn grouping(self) -> Grouping {
        match self {
            Effort::Fast => Grouping::Neighbours(6),
            _ => Grouping::Single,
        }
    }

    fn chunks(self) -> usize {
        match self {
            Effort::Fast => 1,
            Effort::Normal | Effort::Best => 2,
        }
    }
}

/// From so many bits a weight on, types of less than two are left out: they take longest to try, and
/// none is chosen.
const AMPLE_BITS: f64 = 3.0;

fn types_for(least_bits: Option<f64>) -> Vec<TensorType> {
    let is_ample = least_bits.is_some_and(|bits| bits >= AMPLE_BITS);
    let wanted = TYPES.iter().filter(|ty| !is_ample || bits_of(**ty) >= 2.0);
    wanted.copied().collect()
}

/// Chunks on which files are measured.
const CHUNKS: usize = 8;

/// Files that are made and measured to better a choice.
const REFINEMENTS: usize = 32;

/// Chunks on which those files are measured: on few, chance would choose.
const REFINING_CHUNKS: usize = 32;

impl Target {
    /// Whether there is one.
    pub fn is_wanted(&self) -> bool {
        self.size.is_some() || self.bpw.is_some() || self.max_kld.is_some()
    }

    /// The bits a weight that it means, where it says so.
    pub fn bits(&self, checkpoint: &Checkpoint<'_>) -> Option<f64> {
        let bytes = self.size.map(|s| s.of(checkpoint.subject.bytes()));
        let bits = bytes.map(|b| 8.0 * b as f64 / checkpoint.subject.elements() as f64);
        self.bpw.or(bits)
    }

    /// The types of the file that was asked for.
    pub fn choose(
        &self,
        choosing: &Choosing,
        checkpoint: &Checkpoint<'_>,
    ) -> Result<Chosen, Failure> {
        let costs = choosing.costs(checkpoint, self.bits(checkpoint))?;
        let chosen = self.by_costs(&costs, checkpoint)?;
        let Some((costs, better)) = choosing.refined(&costs, checkpoint, &chosen)? else {
            return Ok(chosen);
        };
        if self.max_kld.is_none() {
            return Ok(better);
        }
        let again = self.by_costs(&costs, checkpoint)?;
        Ok(std::cmp::min_by_key(chosen, again, |c| c.bytes))
    }

    /// The same, by what was measured of tensors alone.
    fn by_costs(&self, costs: &Costs, checkpoint: &Checkpoint<'_>) -> Result<Chosen, Failure> {
        let task = checkpoint.task();
        if let Some(kld) = self.max_kld {
            return smallest(costs, checkpoint, kld);
        }
        if let Some(bits) = self.bpw {
            return Ok(of_bits(costs, &task, bits)?);
        }
        let none = || Failure::Usage("give `--size`, `--bpw` or `--max-kld`".into());
        let bytes = self.size.ok_or_else(none)?.of(checkpoint.subject.bytes());
        Ok(of_size(costs, &task, bytes)?)
    }
}

impl Choosing {
    /// The file to keep what is measured in, where one was named.
    pub fn sensitivity(&self) -> Option<&Path> {
        self.sensitivity.as_deref()
    }

    /// The first of these options that was given.
    pub fn given(&self) -> Option<&'static str> {
        let given = [
            (!self.types.is_empty(), "--types"),
            (self.sensitivity.is_some(), "--sensitivity"),
            (self.gate.is_some(), "--gate"),
            (self.effort != Effort::Normal, "--effort"),
        ];
        given.into_iter().find(|(is, _)| *is).map(|(_, name)| name)
    }

    /// What each type of each tensor costs, for files of so many bits a weight at least, where that is
    /// known.
    pub fn costs(
        &self,
        checkpoint: &Checkpoint<'_>,
        least_bits: Option<f64>,
    ) -> Result<Costs, Failure> {
        let Checkpoint {
            path,
            subject: Subject { model, source, .. },
            ..
        } = *checkpoint;
        let task = checkpoint.task();
        let text = read_text(checkpoint.text)?;
        // Before measurements that may take hours.
        self.gate.as_deref().map(read_text).transpose()?;
        let types = match self.types.as_slice() {
            [] => types_for(least_bits),
            own => own.to_vec(),
        };
        let bar = progress::count(model.tensors.len() as u64, "trying types");
        let tensors = candidates(&task, &types, checkpoint.options, &|| bar.inc(1))?;
        bar.finish_and_clear();
        let groups = groups(&tensors, self.effort.grouping());
        let ctx = context(model);
        let options = EvalOptions {
            ctx,
            chunks: Some(self.effort.chunks()),
            ..EvalOptions::default()
        };
        let about = DiagnosisText {
            name: file_name(checkpoint.text),
            sha256: digest(text.as_bytes()),
            ctx,
            chunks: self.effort.chunks(),
        };
        let identity = Identity::of(model, source)?;
        let fingerprint = fingerprint(&checkpoint.subject)?;
        let file = match &self.sensitivity {
            Some(file) => file.clone(),
            None => cache_file(&fingerprint, &about)?,
        };
        let mut known = Sensitivities::open(&file, identity, fingerprint, about)?;
        let is_new = |group: &&Vec<usize>| {
            let names: Vec<String> = group.iter().map(|i| tensors[*i].name.clone()).collect();
            known.of(&names).is_none()
        };
        let missing = groups.iter().filter(is_new).count();
        if missing > 0 {
            let running = crate::runtime::load_as(
                path,
                &Recipe::base("f16"),
                &ModelOptions::default(),
                &mut |_, _| (),
            )?;
            let bar = progress::count(missing as u64, "measuring");
            let mut experiment = Experiment::new(
                &running,
                checkpoint.subject,
                (&text, &options),
                checkpoint.scratch,
            );
            measure(
                &checkpoint.subject,
                &mut experiment,
                &tensors,
                &groups,
                &mut known,
                &mut |known| {
                    bar.inc(1);
                    known.write(&file)
                },
            )
            .map_err(|e| match e {
                BudgetError::Eval(e) => unusable(checkpoint.text, e),
                e => e.into(),
            })?;
            bar.finish_and_clear();
        }
        Ok(Costs::new(tensors, &groups, &known))
    }

    /// Where the effort allows it, a choice bettered by files that are made and measured, and what errors
    /// count by it.
    pub fn refined(
        &self,
        costs: &Costs,
        checkpoint: &Checkpoint<'_>,
        chosen: &Chosen,
    ) -> Result<Option<(Costs, Chosen)>, Failure> {
        if self.effort != Effort::Best {
            return Ok(None);
        }
        let trial = Trial::new(checkpoint, REFINING_CHUNKS)?;
        let bar = progress::count(REFINEMENTS as u64, "bettering");
        let first = (chosen.clone(), trial.kld(chosen)?);
        let mut search = Refinement::new(costs, checkpoint.task(), first, REFINEMENTS);
        while let Some(chosen) = search.propose()? {
            search.found(trial.kld(&chosen)?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(Some(search.finish()))
    }

    /// Measures what became of a file.
    pub fn outcome(
        &self,
        checkpoint: &Checkpoint<'_>,
        chosen: &Chosen,
        file: &Path,
    ) -> Result<Outcome, Failure> {
        let measured = Meter::new(checkpoint, checkpoint.text, CHUNKS)?.kld(file)?;
        let gate = match &self.gate {
            Some(text) => gate(text, checkpoint, chosen, file)?,
            None => None,
        };
        Ok(Outcome {
            predicted_kld: chosen.assignment.kld,
            measured_kld: measured.value,
            error: measured.error,
            gate,
        })
    }
}

impl FileSize {
    /// Bytes, of a checkpoint whose weights take so many.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            FileSize::Bytes(bytes) => bytes,
            FileSize::Part(part) => (part * whole as f64) as u64,
        }
    }
}

/// Where choices are tried: made as files, and measured.
struct Trial<'a> {
    checkpoint: &'a Checkpoint<'a>,
    meter: Meter,
    dir: Scratch,
}

impl<'a> Trial<'a> {
    fn new(checkpoint: &'a Checkpoint<'a>, chunks: usize) -> Result<Trial<'a>, Failure> {
        Ok(Trial {
            checkpoint,
            meter: Meter::new(checkpoint, checkpoint.text, chunks)?,
            dir: checkpoint.temporary()?,
        })
    }

    fn kld(&self, chosen: &Chosen) -> Result<f64, Failure> {
        let file = self.dir.path().join("candidate.gguf");
        self.checkpoint.write(&chosen.plan, &file)?;
        Ok(self.meter.kld(&file)?.value)
    }
}

/// The smallest file that is measured to diverge by at most so much.
fn smallest(costs: &Costs, checkpoint: &Checkpoint<'_>, kld: f64) -> Result<Chosen, Failure> {
    let trial = Trial::new(checkpoint, CHUNKS)?;
    let mut search = Search::new(costs, checkpoint.task(), kld);
    let bar = progress::count(0, "trying files");
    while let Some(chosen) = search.propose()? {
        let found = trial.kld(&chosen)?;
        bar.inc(1);
        search.found(chosen, found);
    }
    bar.finish_and_clear();
    Ok(search.finish()?.0)
}

/// Holds a file against the largest of llama-quantize's that is not larger, on another text.
fn gate(
    text: &Path,
    checkpoint: &Checkpoint<'_>,
    chosen: &Chosen,
    file: &Path,
) -> Result<Option<Gate>, Failure> {
    let task = checkpoint.task();
    let smaller = rungs(&task)
        .into_iter()
        .filter(|rung| rung.bytes <= chosen.bytes);
    let Some(rung) = smaller.max_by_key(|rung| rung.bytes) else {
        eprintln!(
            "note: none of llama-quantize's file types is as small, so `--gate` compares nothing"
        );
        return Ok(None);
    };
    let dir = checkpoint.temporary()?;
    let plain = dir.path().join("plain.gguf");
    checkpoint.write(&rung.plan, &plain)?;
    let meter = Meter::new(checkpoint, text, CHUNKS)?;
    Ok(Some(Gate {
        file_type: rung.file_type,
        bytes: rung.bytes,
        kld: meter.kld(&plain)?.value,
        own_kld: meter.kld(file)?.value,
    }))
}

impl Outcome {
    /// What the user is told.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "mean KL divergence {:.5} ± {:.5}, predicted {:.5}",
            self.measured_kld, self.error, self.predicted_kld
        )];
        if let Some(gate) = &self.gate {
            lines.push(format!(
                "on the second text {:.5}; {} of {} bytes has {:.5} there",
                gate.own_kld, gate.file_type, gate.bytes, gate.kld
            ));
        }
        lines
    }

    /// What should make the user think again.
    pub fn warning(&self) -> Option<String> {
        let gate = self.gate.as_ref().filter(|g| g.own_kld > g.kld)?;
        Some(format!(
            "on the text of `--gate` plain {} is better: {:.5} against {:.5}; calibrate and measure on \
             texts that are more like it",
            gate.file_type, gate.kld, gate.own_kld
        ))
    }
}

/// Where sensitivities of a model on a text are kept, by the convention of the XDG base directories.
fn cache_file(model: &str, text: &DiagnosisText) -> Result<PathBuf, Failure> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let cache = var("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .ok_or_else(|| {
            Failure::Usage(
                "there is neither `XDG_CACHE_HOME` nor `HOME`; say with `--sensitivity` where to keep \
                 what is measured"
                    .into(),
            )
        })?;
    let folder = cache.join("dwindle");
    fs::create_dir_all(&folder)?;
    let key = format!("{model}{}{}", text.sha256, text.chunks);
    let key = digest(key.as_bytes());
    Ok(folder.join(format!("sensitivity-{}.json", &key[..16])))
}
