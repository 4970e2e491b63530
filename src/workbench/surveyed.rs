//! What choosing types and rounding need to know of a model: measured once, and kept in its workspace.

use std::collections::HashMap;
use std::path::Path;

use dwindle_formats::gguf::TensorType;
use fs_err as fs;

use super::workspace::Workspace;
use super::{Choosing, Effort, Error, Text, Workbench};
use crate::architecture::Model;
use crate::blockwise::{Sequences, Words, pool};
use crate::plan::{Rounding, Subject};
use crate::progress::Unit;
use crate::statistics::{
    Group, Identity, Importance, Provenance, Statistics, StatisticsWriter, SurveyFile, digest,
};
use crate::target::{
    BudgetError, Costs, Survey, SurveyTask, Surveyed as Found, TensorCandidates, survey,
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

/// Surveys a model, or reads what an earlier run has found. If there are no types to judge, only importance
/// and the output layer's input are measured.
///
/// # Errors
/// Whatever ends a measurement.
pub fn surveyed(
    bench: &Workbench<'_>,
    workspace: &Workspace,
    text: &Text,
    (choosing, types): (&Choosing, &[TensorType]),
) -> Result<Surveyed, Error> {
    let subject = Subject::unmeasured(bench.subject.model, bench.subject.source);
    let effort = choosing.effort;
    let names: Vec<String> = types.iter().map(ToString::to_string).collect();
    let about = format!(
        "{} {} {} {} {:?} {effort:?} {}",
        env!("CARGO_PKG_VERSION"),
        SurveyFile::VERSION,
        digest(text.words.as_bytes()),
        choosing.sequences(),
        bench.rounding,
        names.join(","),
    );
    let key = digest(about.as_bytes());
    let short = &key[..16];
    let file = workspace.file(&format!("survey-{short}.json"));
    let output = workspace.file(&format!("output-{short}.safetensors"));
    let found = match SurveyFile::open(&file, &key)? {
        Some(found) => {
            bench.progress.reuse("the survey");
            found
        }
        None => {
            let task = Task {
                subject,
                types,
                effort,
                sequences: choosing.sequences().min(effort.judged()),
                rounding: bench.rounding,
                scratch: workspace.folder(),
                kept: &workspace.file(&format!("surveying-{short}")),
                bench,
            };
            let made = task.run(text)?;
            if let Some((weights, sums)) = &made.output {
                let identity = Identity::of(subject.model, subject.source)?;
                write_output(&output, identity, text, weights, sums)?;
            }
            let tensors = made.tensors.iter().map(Found::described).collect();
            let found = SurveyFile::new(key, made.activations, tensors);
            found.write(&file)?;
            fs::remove_dir_all(task.kept)?;
            found
        }
    };
    let output = output.exists().then(|| Statistics::open(&output));
    Ok(read(subject.model, found, output.transpose()?))
}

struct Task<'a> {
    subject: Subject<'a>,
    types: &'a [TensorType],
    effort: Effort,
    sequences: usize,
    rounding: Rounding,
    scratch: &'a Path,
    kept: &'a Path,
    bench: &'a Workbench<'a>,
}

impl Task<'_> {
    fn run(&self, text: &Text) -> Result<Survey, Error> {
        let bench = self.bench;
        let sequences = sequences(bench, self.subject.model, text, self.sequences)?;
        let measured = if self.types.is_empty() {
            0
        } else {
            self.effort.measured()
        };
        let task = SurveyTask {
            subject: self.subject,
            types: self.types,
            rounding: self.rounding,
            cut: sequences.cut.clone(),
            measured,
            groups: self.effort.groups(),
            scratch: scratch(
                self.subject.model,
                &sequences,
                bench.options.memory,
                self.scratch,
            ),
            kept: self.kept,
        };
        let progress = bench.progress;
        progress.begin("measuring", 0, Unit::Items);
        let made = pool(sequences.cut.threads)?.install(|| {
            survey(&task, &sequences.tokens, &mut |done, total| {
                progress.reach(done.into(), total.into());
            })
        });
        progress.end();
        Ok(made?)
    }
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
    let mut tensors = Vec::new();
    let mut columns = HashMap::new();
    let all = model.tensors.iter().enumerate();
    let by_name: HashMap<&str, usize> = all.map(|(i, t)| (t.name.as_str(), i)).collect();
    for found in file.tensors {
        let index = by_name.get(found.name.as_str());
        let Some(found) = index.and_then(|i| Found::read(found, *i, model)) else {
            continue;
        };
        if !found.importance.is_empty() {
            columns.insert(found.candidates.name.clone(), found.importance);
        }
        if !found.candidates.all.is_empty() {
            tensors.push((found.candidates, found.kld));
        }
    }
    Surveyed {
        tensors,
        activations: file.activations,
        importance: Importance::of(columns),
        output,
    }
}
