//! What choosing types and rounding need to know of a model: measured once, and kept in its workspace.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use dwindle_formats::gguf::TensorType;
use fs_err as fs;

use super::workspace::Workspace;
use super::{Choosing, Effort, Error, Text, Workbench};
use crate::architecture::Model;
use crate::blockwise::{Sequences, Words, pool};
use crate::plan::Subject;
use crate::progress::Unit;
use crate::statistics::{
    Group, Identity, Importance, Provenance, Statistics, StatisticsWriter, SurveyFile,
    TensorSurvey, digest,
};
use crate::target::{
    BudgetError, Costs, Part, SurveyTask, Surveyed as Found, TensorCandidates, activations, survey,
};

/// Tokens of a sequence.
pub const CTX: u32 = 512;

/// What was found of a model.
pub struct Surveyed {
    /// What each type of each tensor costs; empty where no types were judged.
    tensors: Vec<(TensorCandidates, f64)>,
    /// What rounding the layers' inputs to 8 bits costs.
    activations: f64,
    /// Importance weights of all layers.
    pub importance: Importance,
    /// What the output layer reads.
    pub output: Option<Statistics>,
}

impl Surveyed {
    /// The costs of types: of those that are wanted, or of all.
    ///
    /// # Errors
    /// A tensor that none of the wanted types fits.
    pub fn costs(&self, model: &Model, wanted: &[TensorType]) -> Result<Costs, BudgetError> {
        let of = |(tensor, kld): &(TensorCandidates, f64)| {
            let mut tensor = tensor.clone();
            if !wanted.is_empty() {
                tensor.all.retain(|c| wanted.contains(&c.ty));
            }
            if tensor.all.is_empty() {
                return Err(BudgetError::NoType {
                    row: model.tensors[tensor.index].row_len(),
                    tensor: tensor.name,
                });
            }
            Ok((tensor, *kld))
        };
        let all: Vec<_> = self.tensors.iter().map(of).collect::<Result<_, _>>()?;
        Ok(Costs::new(all, self.activations))
    }
}

impl Effort {
    /// Sequences that divergences are measured on.
    fn measured(self) -> usize {
        match self {
            Effort::Fast => 1,
            Effort::Normal | Effort::Best => 2,
        }
    }

    /// Groups of blocks whose divergence is measured.
    fn groups(self) -> usize {
        match self {
            Effort::Fast => 8,
            Effort::Normal | Effort::Best => usize::MAX,
        }
    }
}

/// Cuts a text as it is walked on.
///
/// # Errors
/// A text that is too short.
pub fn sequences(
    bench: &Workbench<'_>,
    model: &Model,
    text: &Text,
    count: usize,
) -> Result<Sequences, Error> {
    let words = Words {
        words: &text.words,
        ctx: CTX,
        chunks: count,
        threads: Some(bench.options.threads as u32),
        placement: bench.placement,
    };
    Sequences::of(model, &words).map_err(|e| match e {
        crate::blockwise::BlockwiseError::Text(e) => text.blame(e),
        e => e.into(),
    })
}

/// What is asked of a model, and the workspace that keeps the answer.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The model.
    pub bench: &'a Workbench<'a>,
    /// Where the answer is kept.
    pub workspace: &'a Workspace,
    /// The text that it is measured on.
    pub text: &'a Text,
    /// How thoroughly it is measured.
    pub choosing: &'a Choosing,
    /// Types to judge. If there are none, only importance and the output layer's input are measured.
    pub types: &'a [TensorType],
}

impl Question<'_> {
    /// Surveys the model, or reads what earlier runs have found, all of it or parts.
    ///
    /// # Errors
    /// Whatever ends a measurement.
    pub fn answer(&self) -> Result<Surveyed, Error> {
        let key = self.key();
        let file = self.file(&key, ".json");
        let found = match SurveyFile::open(&file, &key)? {
            Some(found) => {
                self.bench.progress.reuse("the survey");
                found
            }
            None => {
                let found = self.joined()?;
                found.write(&file)?;
                found
            }
        };
        let output = self
            .workspace
            .file(&format!("output-{}.safetensors", short(&key)));
        let output = output.exists().then(|| Statistics::open(&output));
        Ok(read(self.bench.subject.model, found, output.transpose()?))
    }

    /// Surveys a part of the model, if no earlier run has. Gives the file that holds it.
    ///
    /// # Errors
    /// Whatever ends a measurement.
    pub fn part(&self, part: Part) -> Result<PathBuf, Error> {
        let key = self.key();
        let file = self.part_file(&key, part);
        if SurveyFile::open(&file, &key)?.is_none() {
            self.measure(&key, part)?.write(&file)?;
        } else {
            self.bench.progress.reuse("the part");
        }
        Ok(file)
    }

    /// The survey of all parts. Where other machines have measured some, only the others are measured here.
    fn joined(&self) -> Result<SurveyFile, Error> {
        let key = self.key();
        let count = self.parts_found(&key);
        let mut parts = Vec::new();
        for part in (1..=count).filter_map(|number| Part::new(number, count)) {
            let file = self.part_file(&key, part);
            if count > 1 && !file.exists() {
                let missing =
                    format!("part {part} of the measurement is missing, and is measured here");
                self.bench.progress.note(&missing);
            }
            let found = match SurveyFile::open(&file, &key)? {
                Some(found) => found,
                None => self.measure(&key, part)?,
            };
            parts.push(found);
        }
        Ok(joined(&key, self.bench.subject.model, parts))
    }

    /// In how many parts it is being measured: by the most of them that are there, 1 if none is.
    fn parts_found(&self, key: &str) -> u32 {
        let begin = format!("survey-{}-", short(key));
        let entries = fs::read_dir(self.workspace.folder()).into_iter().flatten();
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let part = name
                .strip_prefix(&begin)
                .and_then(|rest| rest.strip_suffix(".json"));
            if let Some(part) = part.and_then(|p| p.replace("-of-", "/").parse::<Part>().ok()) {
                *counts.entry(part.numbers()[1]).or_default() += 1;
            }
        }
        let most = counts
            .into_iter()
            .max_by_key(|(count, found)| (*found, *count));
        most.map_or(1, |(count, _)| count)
    }

    /// A digest of everything that the answer depends on.
    fn key(&self) -> String {
        let names: Vec<String> = self.types.iter().map(ToString::to_string).collect();
        let about = format!(
            "{} {} {} {} {:?} {:?} {}",
            env!("CARGO_PKG_VERSION"),
            SurveyFile::VERSION,
            digest(self.text.words.as_bytes()),
            self.choosing.sequences(),
            self.bench.rounding,
            self.choosing.effort,
            names.join(","),
        );
        digest(about.as_bytes())
    }

    fn file(&self, key: &str, end: &str) -> PathBuf {
        self.workspace.file(&format!("survey-{}{end}", short(key)))
    }

    fn part_file(&self, key: &str, part: Part) -> PathBuf {
        let [number, count] = part.numbers();
        self.file(key, &format!("-{number}-of-{count}.json"))
    }

    /// Measures a part. Where it is killed, the next run goes on.
    fn measure(&self, key: &str, part: Part) -> Result<SurveyFile, Error> {
        let bench = self.bench;
        let subject = Subject::unmeasured(bench.subject.model, bench.subject.source);
        let [number, count] = part.numbers();
        let kept = format!("surveying-{}-{number}-of-{count}", short(key));
        let kept = self.workspace.file(&kept);
        let effort = self.choosing.effort;
        let count = self.choosing.sequences().min(effort.judged());
        let sequences = sequences(bench, subject.model, self.text, count)?;
        let scratches = self.workspace.folder();
        let task = SurveyTask {
            subject,
            types: self.types,
            rounding: bench.rounding,
            cut: sequences.cut.clone(),
            measured: if self.types.is_empty() {
                0
            } else {
                effort.measured()
            },
            groups: effort.groups(),
            part,
            scratch: scratch(subject.model, &sequences, bench.options.memory, scratches),
            kept: &kept,
        };
        let progress = bench.progress;
        progress.begin("measuring", 0, Unit::Items);
        let made = pool(sequences.cut.threads)?.install(|| {
            survey(&task, &sequences.tokens, &mut |done, total| {
                progress.reach(done.into(), total.into());
            })
        });
        progress.end();
        let made = made?;
        if let Some((weights, sums)) = &made.output {
            let identity = Identity::of(subject.model, subject.source)?;
            let file = format!("output-{}.safetensors", short(key));
            write_output(
                &self.workspace.file(&file),
                identity,
                self.text,
                weights,
                sums,
            )?;
        }
        let tensors = made.tensors.iter().map(Found::described).collect();
        fs::remove_dir_all(kept)?;
        Ok(SurveyFile::new(key.to_string(), made.coarse, tensors))
    }
}

/// A key as it stands in names of files.
fn short(key: &str) -> &str {
    &key[..16]
}

/// Parts as one survey. The embedding may be in two of them: in one as what is looked up, in a later one as
/// the output layer, by whose input its types are judged.
fn joined(key: &str, model: &Model, parts: Vec<SurveyFile>) -> SurveyFile {
    let coarse = parts.iter().map(|part| part.coarse).sum();
    let mut found: HashMap<String, TensorSurvey> = HashMap::new();
    for tensor in parts.into_iter().flat_map(|part| part.tensors) {
        let before = found.get(&tensor.name).map_or(0.0, |t| t.kld);
        let kld = before + tensor.kld;
        found.insert(tensor.name.clone(), TensorSurvey { kld, ..tensor });
    }
    let ordered = model.tensors.iter().filter_map(|t| found.remove(&t.name));
    SurveyFile::new(key.to_string(), coarse, ordered.collect())
}

/// The folder for streams, where they are not to be in memory: what a block's layers read takes about
/// eight times the stream.
pub fn scratch<'a>(
    model: &Model,
    sequences: &Sequences,
    memory: u64,
    folder: &'a Path,
) -> Option<&'a Path> {
    let key = format!("{}.embedding_length", model.architecture);
    let width = model.metadata.get(&key).and_then(|v| v.as_u64());
    let stream = 4 * sequences.tokens.len() as u64 * width.unwrap_or(0);
    (12 * stream > memory / 2).then_some(folder)
}

fn write_output(
    file: &Path,
    identity: Identity,
    text: &Text,
    weights: &[String],
    sums: &crate::statistics::Accumulator,
) -> Result<(), Error> {
    let tokens = sums.rows().next().unwrap_or(0);
    let provenance = Provenance {
        dwindle: env!("CARGO_PKG_VERSION").to_string(),
        model: identity,
        text: text.name(),
        text_sha256: digest(text.words.as_bytes()),
        tokens,
        chunks: tokens / u64::from(CTX),
        ctx: CTX,
    };
    let group = Group {
        weights: weights.to_vec(),
        width: sums.width(),
        slices: 1,
        blocks: sums.blocks(),
    };
    let mut writer = StatisticsWriter::create(file, provenance, vec![group])?;
    writer.write(0, sums)?;
    Ok(writer.finish()?)
}

fn read(model: &Model, file: SurveyFile, output: Option<Statistics>) -> Surveyed {
    let all = model.tensors.iter().enumerate();
    let by_name: HashMap<&str, usize> = all.map(|(i, t)| (t.name.as_str(), i)).collect();
    let read = |found: TensorSurvey| {
        let index = by_name.get(found.name.as_str())?;
        Found::read(found, *index, model)
    };
    let found: Vec<Found> = file.tensors.into_iter().filter_map(read).collect();
    let activations = activations(file.coarse, &found);
    let mut tensors = Vec::new();
    let mut columns = HashMap::new();
    for found in found {
        if !found.importance.is_empty() {
            columns.insert(found.candidates.name.clone(), found.importance);
        }
        if !found.candidates.all.is_empty() {
            tensors.push((found.candidates, found.kld));
        }
    }
    Surveyed {
        tensors,
        activations,
        importance: Importance::of(columns),
        output,
    }
}
