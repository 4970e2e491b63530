//! The thread that evaluates: takes requests as there is room, and writes their texts side by side.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::llama::context::ContextOptions;
use crate::llama::model::{LlamaError, Model};
use crate::llama::parallel::{Event, Job, Parallel};

/// Requests that may wait for room.
const QUEUE: usize = 1024;

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
    model: Arc<Model>,
    options: Arc<EngineOptions>,
    queue: mpsc::Sender<(Job, mpsc::UnboundedSender<Event>)>,
}

impl Engine {
    /// Starts the thread, which ends when the last clone of the engine is dropped.
    ///
    /// # Errors
    /// No context can be made, or no thread.
    pub fn start(model: Model, options: EngineOptions) -> Result<Engine, LlamaError> {
        let model = Arc::new(model);
        let (queue, requests) = mpsc::channel(QUEUE);
        let (started, starting) = std::sync::mpsc::channel();
        let (worker, context) = (Arc::clone(&model), options.context.clone());
        let failed = |reason: String| LlamaError::Context {
            ctx: options.context.ctx,
            reason,
        };
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || match Parallel::new(&worker, &context) {
                Ok(parallel) => {
                    // The caller waits for this.
                    let _ = started.send(Ok(()));
                    work(parallel, requests);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(|e| failed(e.to_string()))?;
        starting
            .recv()
            .map_err(|_| failed("the thread ended".into()))??;
        Ok(Engine {
            model,
            options: Arc::new(options),
            queue,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The name under which clients see the model.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Tokens of context for each text.
    pub fn ctx(&self) -> usize {
        self.options.context.ctx as usize
    }

    /// Asks for a text; its events come one after the other. Dropping the receiver ends the job.
    /// `None` where too many requests wait.
    pub fn submit(&self, job: Job) -> Option<mpsc::UnboundedReceiver<Event>> {
        let (events, receiver) = mpsc::unbounded_channel();
        self.queue.try_send((job, events)).ok()?;
        Some(receiver)
    }
}

fn work(
    mut parallel: Parallel<'_>,
    mut requests: mpsc::Receiver<(Job, mpsc::UnboundedSender<Event>)>,
) {
    loop {
        if parallel.is_idle() {
            let Some(request) = requests.blocking_recv() else {
                return;
            };
            add(&mut parallel, request);
        }
        while parallel.has_room()
            && let Ok(request) = requests.try_recv()
        {
            add(&mut parallel, request);
        }
        parallel.step();
    }
}

fn add(parallel: &mut Parallel<'_>, (job, events): (Job, mpsc::UnboundedSender<Event>)) {
    if events.is_closed() {
        return;
    }
    parallel.add(
        job,
        Box::new(move |event| match event {
            // Asked only whether somebody listens.
            Event::Text(text) if text.is_empty() => !events.is_closed(),
            event => events.send(event).is_ok(),
        }),
    );
}
