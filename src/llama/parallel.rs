//! Several texts at once in one context: each has a sequence of its own, and every evaluation takes
//! the next token of each text that is being written, and as much of new prompts as fits beside.

use std::collections::VecDeque;

use super::context::{BatchToken, Context, ContextOptions};
use super::error::LlamaError;
use super::generate::{Stop, Utf8Stream};
use super::model::Model;
use super::recall::Recall;
use super::sampler::{Sampler, Sampling};
use super::stop_texts::StopTexts;
use super::vocabulary::Token;

/// A text to be continued.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The prompt; at least one token, and fewer than the context has.
    pub prompt: Vec<Token>,
    /// Tokens to generate at most.
    pub limit: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stops: Vec<String>,
}

/// What happens to a job.
#[derive(Debug)]
pub enum Event {
    /// More text, whole characters.
    Text(String),
    /// The end.
    Done {
        /// Why; a stop text counts as the model's own end.
        stop: Stop,
        /// Tokens that were generated.
        tokens: usize,
        /// Tokens of the prompt that were remembered, and not read again.
        recalled: usize,
    },
    /// llama.cpp failed.
    Failed(LlamaError),
}

/// Receives a job's events; returning false (nobody listens any more) ends the job.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// Texts that are being written side by side.
pub struct Parallel<'m> {
    context: Context<'m>,
    model: &'m Model,
    options: ContextOptions,
    slots: Vec<Option<Slot>>,
    memory: Box<dyn Recall + 'm>,
}

struct Slot {
    /// Tokens that are not evaluated yet: of the prompt, or the one that was chosen last.
    waiting: VecDeque<Token>,
    /// Tokens that the sequence has.
    read: Vec<Token>,
    recalled: usize,
    generated: usize,
    limit: usize,
    sampler: Sampler,
    text: Utf8Stream,
    stops: StopTexts,
    sink: Sink,
    listens: bool,
}

impl<'m> Parallel<'m> {
    /// A context for as many texts as `options` has sequences, and a memory of those that have ended.
    ///
    /// # Errors
    /// llama.cpp's words, mostly that memory is short.
    pub fn new(
        model: &'m Model,
        options: &ContextOptions,
        memory: Box<dyn Recall + 'm>,
    ) -> Result<Parallel<'m>, LlamaError> {
        let context = Context::new(model, options)?;
        let slots = (0..context.n_sequences()).map(|_| None).collect();
        Ok(Parallel {
            context,
            model,
            options: options.clone(),
            slots,
            memory,
        })
    }

    /// Whether another job fits.
    pub fn has_room(&self) -> bool {
        self.slots.iter().any(Option::is_none)
    }

    /// Whether no job is there.
    pub fn is_idle(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Takes a job; without room, or with a prompt that does not fit, the job fails at once.
    pub fn add(&mut self, job: Job, mut sink: Sink) {
        let limit = self.context.n_ctx() as usize;
        let free = self.slots.iter().position(Option::is_none);
        let fits = !job.prompt.is_empty() && job.prompt.len() < limit;
        let (Some(free), true) = (free, fits) else {
            sink(Event::Failed(LlamaError::Batch {
                what: "the length of the prompt in tokens",
                found: job.prompt.len() as i64,
                limit: limit as i64,
            }));
            return;
        };
        self.context.forget(free);
        let sampler = match self.renew().and_then(|()| Sampler::new(&job.sampling)) {
            Ok(sampler) => sampler,
            Err(error) => {
                sink(Event::Failed(error));
                return;
            }
        };
        let recalled = self.memory.recall(&mut self.context, free, &job.prompt);
        let mut read = job.prompt;
        let waiting = read.split_off(recalled.min(read.len() - 1)).into();
        self.slots[free] = Some(Slot {
            waiting,
            recalled: read.len(),
            read,
            generated: 0,
            limit: job.limit,
            sampler,
            text: Utf8Stream::default(),
            stops: StopTexts::new(job.stops),
            sink,
            listens: true,
        });
    }

    /// Makes the context anew where llama.cpp has failed in it, and no text in it can go on.
    fn renew(&mut self) -> Result<(), LlamaError> {
        if self.context.is_broken() && self.is_idle() {
            self.context = Context::new(self.model, &self.options)?;
        }
        Ok(())
    }

    /// Evaluates once: a token of each text that is being written, and prompts beside.
    pub fn step(&mut self) {
        let (batch, ends) = self.batch();
        if batch.is_empty() {
            return;
        }
        let evaluated = self.context.decode(&batch);
        if let Err(error) = evaluated.and_then(|()| self.choose(&ends)) {
            self.fail(batch.len(), &error);
            return;
        }
        // Those that nobody listens to are noticed while their prompts are evaluated, too.
        for index in 0..self.slots.len() {
            if self.slots[index].as_mut().is_some_and(|s| !s.is_heard()) {
                self.finish(index, None);
            }
        }
    }

    /// Chooses the next token of each of these slots, whose logits were evaluated in this order.
    fn choose(&mut self, ends: &[usize]) -> Result<(), LlamaError> {
        let n_vocab = self.model.n_vocab();
        let ctx = self.context.n_ctx() as usize;
        for (row, index) in ends.iter().enumerate() {
            let Some(slot) = &mut self.slots[*index] else {
                continue;
            };
            let logits = self.context.try_logits()?;
            let logits = &logits[row * n_vocab..(row + 1) * n_vocab];
            let stop = slot.next(self.model, logits, ctx);
            if stop.is_some() || !slot.listens {
                self.finish(*index, stop);
            }
        }
        Ok(())
    }

    /// Ends all texts: nothing is known of what is in the context.
    fn fail(&mut self, tokens: usize, error: &LlamaError) {
        let reason = match error {
            LlamaError::Decode { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        for slot in &mut self.slots {
            if let Some(mut slot) = slot.take() {
                let reason = reason.clone();
                (slot.sink)(Event::Failed(LlamaError::Decode { tokens, reason }));
            }
        }
    }

    /// Tokens to evaluate, and the slots of those that want logits, in their order.
    fn batch(&mut self) -> (Vec<BatchToken>, Vec<usize>) {
        let (mut batch, mut ends) = (Vec::new(), Vec::new());
        let room = self.context.n_batch();
        // Texts that are being written come first, so that long prompts don't hold them up.
        let mut order: Vec<usize> = (0..self.slots.len()).collect();
        order.sort_by_key(|i| self.slots[*i].as_ref().map_or(0, |s| s.waiting.len()));
        for index in order {
            let Some(slot) = &mut self.slots[index] else {
                continue;
            };
            let count = slot.waiting.len().min(room - batch.len());
            for token in slot.waiting.drain(..count) {
                batch.push(BatchToken {
                    token,
                    position: slot.read.len() as i32,
                    sequence: index as i32,
                    logits: false,
                });
                slot.read.push(token);
            }
            if count > 0
                && slot.waiting.is_empty()
                && let Some(last) = batch.last_mut()
            {
                last.logits = true;
                ends.push(index);
            }
        }
        (batch, ends)
    }

    fn finish(&mut self, index: usize, stop: Option<Stop>) {
        if let Some(mut slot) = self.slots[index].take() {
            if let Some(stop) = stop {
                slot.end(stop);
            }
            self.memory.keep(&mut self.context, index, &slot.read);
        }
        self.context.forget(index);
    }
}

impl Slot {
    /// Chooses the next token; `Some` where the text ends.
    fn next(&mut self, model: &Model, logits: &[f32], ctx: usize) -> Option<Stop> {
        if self.generated == self.limit {
            return Some(Stop::Length);
        }
        let chosen = self.sampler.sample(logits);
        if chosen.as_ref().is_ok_and(|token| model.is_end(*token)) {
            return Some(Stop::End);
        }
        let written = chosen.and_then(|token| Ok((token, model.piece(token, false)?)));
        let (token, bytes) = match written {
            Ok(written) => written,
            Err(error) => {
                (self.sink)(Event::Failed(error));
                self.listens = false;
                return None;
            }
        };
        self.generated += 1;
        let text = self.text.push(&bytes);
        let (text, is_stopped) = self.stops.push(&text);
        self.say(text);
        if is_stopped {
            return Some(Stop::Caller);
        }
        if self.generated == self.limit {
            return Some(Stop::Length);
        }
        if self.read.len() >= ctx {
            return Some(Stop::ContextFull);
        }
        self.waiting.push_back(token);
        None
    }

    fn say(&mut self, text: String) {
        if !text.is_empty() && self.listens {
            self.listens = (self.sink)(Event::Text(text));
        }
    }

    fn is_heard(&mut self) -> bool {
        self.listens && (self.sink)(Event::Text(String::new()))
    }

    fn end(&mut self, stop: Stop) {
        if stop != Stop::Caller {
            let rest = self.text.finish();
            let (text, _) = self.stops.push(&rest);
            self.say(text);
            let held = self.stops.finish();
            self.say(held);
        }
        if self.listens {
            (self.sink)(Event::Done {
                stop,
                tokens: self.generated,
                recalled: self.recalled,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use super::super::recall::Forgetful;
    use super::*;

    fn fixture() -> Model {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kjv-llama");
        let options = crate::llama::model::ModelOptions::default();
        let factors = crate::runtime::Factors::default();
        crate::runtime::load(&path, &options, factors, &mut |_, _| ()).unwrap()
    }

    /// Asks for three tokens.
    fn add(parallel: &mut Parallel<'_>) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel();
        let job = Job {
            prompt: vec![1, 70, 71],
            limit: 3,
            sampling: Sampling::default(),
            stops: Vec::new(),
        };
        parallel.add(job, Box::new(move |event| events.send(event).is_ok()));
        receiver
    }

    #[test]
    fn a_context_in_which_llama_failed_ends_its_texts_and_is_made_anew() {
        let model = fixture();
        let options = ContextOptions {
            ctx: 64,
            sequences: 2,
            threads: Some(1),
            ..ContextOptions::default()
        };
        let mut parallel = Parallel::new(&model, &options, Box::new(Forgetful)).unwrap();
        let ended = [add(&mut parallel), add(&mut parallel)];
        parallel.context.break_off();
        parallel.step();
        for events in ended {
            assert!(matches!(events.recv(), Ok(Event::Failed(_))));
        }
        assert!(parallel.is_idle());

        let answered = add(&mut parallel);
        while !parallel.is_idle() {
            parallel.step();
        }
        let last = answered.iter().last();
        assert!(matches!(last, Some(Event::Done { .. })), "{last:?}");
    }

    #[test]
    fn a_computation_that_cant_be_waited_for_has_no_logits() {
        let model = fixture();
        let mut context = Context::new(&model, &ContextOptions::default()).unwrap();
        let token = BatchToken {
            token: 1,
            position: 0,
            sequence: 0,
            logits: true,
        };
        context.decode(&[token]).unwrap();
        assert_eq!(context.try_logits().unwrap().len(), model.n_vocab());
        context.break_off();
        assert!(matches!(context.try_logits(), Err(LlamaError::Broken)));
        assert!(context.logits().is_empty());
    }
}
