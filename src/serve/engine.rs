//! The evaluating thread: takes requests as there is room, and generates their texts side by side.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use super::error::ApiError;
use super::limits::Limits;
use super::line::{Line, Waiting};
use crate::llama::context::ContextOptions;
use crate::llama::embedding::embed;
use crate::llama::model::{LlamaError, Model, Token};
use crate::llama::parallel::{Event, Job, Parallel};
use crate::llama::recall::Recall;

/// Requests that may wait for room. Each is at most a context of tokens.
const QUEUE: usize = 128;

/// How a model is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// The context: tokens of each text, and texts side by side.
    pub context: ContextOptions,
    /// The name under which clients see the model.
    pub name: String,
}

/// A model that takes requests.
#[derive(Debug, Clone)]
pub struct Engine {
    worker: Arc<Worker>,
}

#[derive(Debug)]
struct Worker {
    model: Arc<Model>,
    name: String,
    limits: Limits,
    threads: Option<u32>,
    line: Arc<Line>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the thread, which ends with the last clone of the engine. Texts that have ended go into the memory.
    ///
    /// # Errors
    /// The model has no tokenizer, or no context can be made, or no thread.
    pub fn start(
        model: Model,
        options: EngineOptions,
        memory: Box<dyn Recall + Send>,
    ) -> Result<Engine, LlamaError> {
        let ctx = options.context.ctx;
        let limits = match model.embeds() {
            true => Limits::new(&model, ctx.min(model.n_ctx_train()) as usize)?.of_many_texts(),
            false => Limits::new(&model, ctx as usize)?,
        };
        let model = Arc::new(model);
        let line = Arc::new(Line::new(QUEUE));
        let thread = match model.embeds() {
            // Embeddings are computed as they are asked for.
            true => {
                line.set_over();
                None
            }
            false => Some(start(&model, &line, &options.context, memory)?),
        };
        Ok(Engine {
            worker: Arc::new(Worker {
                model,
                name: options.name,
                limits,
                threads: options.context.threads,
                line,
                thread: Mutex::new(thread),
            }),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.worker.model
    }

    /// The name under which clients see the model.
    pub fn name(&self) -> &str {
        &self.worker.name
    }

    /// What a request may have.
    pub(super) fn limits(&self) -> &Limits {
        &self.worker.limits
    }

    /// Asks for a text; its events come one after the other. Dropping the receiver ends the job.
    /// `None` where too many requests wait.
    pub fn submit(&self, job: Job) -> Option<mpsc::UnboundedReceiver<Event>> {
        let (events, receiver) = mpsc::unbounded_channel();
        let is_in = self.worker.line.join(Waiting { job, events });
        is_in.then_some(receiver)
    }

    /// The embeddings of texts.
    ///
    /// # Errors
    /// What is wrong, for the client.
    pub(super) fn embed(&self, texts: &[Vec<Token>]) -> Result<Vec<Vec<f32>>, ApiError> {
        let found = embed(self.model(), texts, None, self.worker.threads);
        found.map_err(|error| match error {
            LlamaError::TextLength { .. } => ApiError::field("input", error.to_string()),
            error => ApiError::internal(error.to_string()),
        })
    }

    /// Ends all jobs, and waits so long for the evaluation in progress. True where nothing computes
    /// any more: the thread has ended, and there is no other clone of the engine, which might be
    /// tokenizing.
    pub fn stop(&self, within: Duration) -> bool {
        self.worker.line.close();
        self.worker.line.wait_over(within) && Arc::strong_count(&self.worker) == 1
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.line.close();
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A process that exits while llama.cpp computes would take its statics away from it. A
            // panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

/// Starts the thread that evaluates.
fn start(
    model: &Arc<Model>,
    line: &Arc<Line>,
    context: &ContextOptions,
    memory: Box<dyn Recall + Send>,
) -> Result<JoinHandle<()>, LlamaError> {
    let (started, starting) = std::sync::mpsc::channel();
    let failed = |reason: String| LlamaError::Context {
        ctx: context.ctx,
        reason,
    };
    let (theirs, options) = (Arc::clone(model), context.clone());
    let over = Over(Arc::clone(line));
    let thread = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            let Over(line) = &over;
            match Parallel::new(&theirs, &options, memory) {
                Ok(parallel) => {
                    // The caller waits for this.
                    let _ = started.send(Ok(()));
                    work(parallel, line);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })
        .map_err(|e| failed(e.to_string()))?;
    starting
        .recv()
        .map_err(|_| failed("the thread ended".into()))??;
    Ok(thread)
}

/// Says that the thread has ended, however it did.
struct Over(Arc<Line>);

impl Drop for Over {
    fn drop(&mut self) {
        // After a panic nobody takes jobs any more.
        self.0.close();
        self.0.set_over();
    }
}

fn work(mut parallel: Parallel<'_>, line: &Line) {
    loop {
        if parallel.is_idle() {
            let Some(waiting) = line.wait() else {
                return;
            };
            add(&mut parallel, waiting);
        }
        while parallel.has_room()
            && let Some(waiting) = line.next()
        {
            add(&mut parallel, waiting);
        }
        if line.is_closed() {
            return;
        }
        parallel.step();
    }
}

fn add(parallel: &mut Parallel<'_>, Waiting { job, events }: Waiting) {
    parallel.add(
        job,
        Box::new(move |event| match event {
            // Asked only whether somebody listens.
            Event::Text(text) if text.is_empty() => !events.is_closed(),
            event => events.send(event).is_ok(),
        }),
    );
}
