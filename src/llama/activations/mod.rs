//! The inputs of a model's linear layers, caught while llama.cpp evaluates tokens.
//!
//! llama.cpp asks a callback about every node of its graph, and computes up to the nodes that are
//! wanted. A linear layer is a `MUL_MAT` or a `MUL_MAT_ID` with a named weight; its input is the
//! other operand. Layers that read the same operand (Q, K and V; gate and up) share one
//! [`LinearInput`], which a short first evaluation finds.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::context::{BatchToken, Context, ContextOptions};
use super::error::LlamaError;
use super::guard::CalledBack;
use super::model::Model;
use linear::{Linear, address, name};
use operand::Buffers;

mod input;
pub(super) mod linear;
pub(super) mod operand;

pub use input::{Activation, LinearInput, Reader};

/// Tokens of the evaluation that finds the layers: more than one, since some graphs differ there.
const DISCOVERY_TOKENS: usize = 16;

/// Called with the rows of each wanted input, in the order of evaluation; breaking ends the
/// evaluation where that is possible.
pub type Observer<'a> = dyn FnMut(Activation<'_>) -> ControlFlow<()> + 'a;

/// A context whose linear layers' inputs can be observed.
#[derive(Debug)]
pub struct Probe<'m> {
    // Dropped before the state, to which llama.cpp has a pointer.
    context: Context<'m>,
    state: Shared,
    inputs: Vec<LinearInput>,
}

// SAFETY: the state is reached through `&mut self` only; the observer's pointer is in it during
// `run` only, and the callback is called on the thread that runs.
unsafe impl Send for Probe<'_> {}

impl<'m> Probe<'m> {
    /// Makes a context and evaluates a few tokens in it to find the linear layers.
    ///
    /// # Errors
    /// llama.cpp's words.
    pub fn new(model: &'m Model, options: &ContextOptions) -> Result<Probe<'m>, LlamaError> {
        Probe::with_nodes(model, options, &[])
    }

    /// As [`Self::new`]. What the nodes of these names hold is shown as well: each that the graph
    /// has once stands among [`Self::inputs`] as an input without readers.
    ///
    /// # Errors
    /// llama.cpp's words.
    pub fn with_nodes(
        model: &'m Model,
        options: &ContextOptions,
        nodes: &[&str],
    ) -> Result<Probe<'m>, LlamaError> {
        let mut state = Shared::new();
        state.get().nodes = nodes.iter().map(|n| n.to_string()).collect();
        let user_data = state.0.as_ptr().cast();
        let context = Context::observed(model, options, Some(on_node), user_data)?;
        let mut probe = Probe {
            context,
            state,
            inputs: Vec::new(),
        };
        probe.discover()?;
        Ok(probe)
    }

    /// Every input of a linear layer, in the order of evaluation.
    pub fn inputs(&self) -> &[LinearInput] {
        &self.inputs
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.context.model()
    }

    /// Forgets every sequence.
    pub fn clear(&mut self) {
        self.context.clear();
    }

    /// Evaluates tokens and shows the observer those of [`Self::inputs`] that `wanted` has as true.
    /// A last layer sees only the rows of tokens that need logits. Nothing is computed after the
    /// last wanted input if the model runs on the CPU alone; logits are of no use in either case.
    ///
    /// # Errors
    /// As [`Context::decode`], or a wanted input was not seen.
    pub fn run(
        &mut self,
        tokens: &[BatchToken],
        wanted: &[bool],
        observer: &mut Observer<'_>,
    ) -> Result<(), LlamaError> {
        self.evaluate((tokens, None), (wanted, false), observer)
    }

    /// As [`Self::run`], where rows stand in place of the tokens' embeddings; see
    /// [`Context::decode_rows`].
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_rows(
        &mut self,
        (tokens, rows): (&[BatchToken], &[f32]),
        wanted: &[bool],
        observer: &mut Observer<'_>,
    ) -> Result<(), LlamaError> {
        self.evaluate((tokens, Some(rows)), (wanted, false), observer)
    }

    /// As [`Self::run`], but shows inputs before their readers are computed, where their producers
    /// can be distinguished from other nodes by name, and the model is in the host's memory. The
    /// observer may then replace the readers' weights.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_ahead(
        &mut self,
        tokens: &[BatchToken],
        wanted: &[bool],
        observer: &mut Observer<'_>,
    ) -> Result<(), LlamaError> {
        self.evaluate((tokens, None), (wanted, true), observer)
    }

    fn evaluate(
        &mut self,
        (tokens, rows): (&[BatchToken], Option<&[f32]>),
        (wanted, ahead): (&[bool], bool),
        observer: &mut Observer<'_>,
    ) -> Result<(), LlamaError> {
        let observer = std::ptr::from_mut(observer);
        // SAFETY: only the lifetime is changed; the pointer is dropped before this call returns.
        let observer =
            unsafe { std::mem::transmute::<*mut Observer<'_>, *mut Observer<'static>>(observer) };
        let state = self.state.get();
        state.begin(wanted, ahead, self.context.model(), observer);
        let result = match rows {
            Some(rows) => self.context.decode_rows(tokens, rows),
            None => self.context.decode(tokens),
        };
        let state = self.state.get();
        state.end();
        if let Some(panic) = state.panic.take() {
            resume_unwind(panic);
        }
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        result?;
        let unseen = |i: &usize| wanted.get(*i) == Some(&true) && !state.run.seen[*i];
        match (0..self.inputs.len()).find(unseen) {
            Some(i) if !state.run.ended => Err(LlamaError::Activation {
                weight: self.inputs[i].name().to_string(),
                reason: "llama.cpp's graph lacks it for these tokens",
            }),
            _ => Ok(()),
        }
    }

    fn discover(&mut self) -> Result<(), LlamaError> {
        let model = self.context.model();
        let count = DISCOVERY_TOKENS
            .min(self.context.n_batch())
            .min(self.context.n_ctx() as usize);
        let tokens: Vec<BatchToken> = (0..count)
            .map(|position| BatchToken {
                token: model.bos().unwrap_or(0),
                position: position as i32,
                sequence: 0,
                logits: true,
            })
            .collect();
        self.state.get().mode = Mode::Discover;
        let result = self.context.decode(&tokens);
        let state = self.state.get();
        state.mode = Mode::Idle;
        result?;
        self.context.clear();
        state.finish_discovery();
        self.inputs.clone_from(&state.inputs);
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    Idle,
    Discover,
    Run,
}

/// What the callback knows and finds.
#[derive(Default)]
struct State {
    mode: Mode,
    /// Names of nodes that are shown as inputs without readers.
    nodes: Vec<String>,
    inputs: Vec<LinearInput>,
    /// Of each weight, its input.
    by_weight: HashMap<String, usize>,
    /// Of each input, the name of the node that makes it, if that is its only node of this name.
    producers: Vec<Option<String>>,
    /// Whether llama.cpp may be stopped: everything it computes is in the host's memory.
    on_host: bool,
    found: Found,
    run: Run,
    error: Option<LlamaError>,
    panic: Option<Box<dyn std::any::Any + Send>>,
}

/// What is needed only while layers are looked for.
#[derive(Default)]
struct Found {
    /// Operands, with the experts' choice, by their addresses.
    by_operand: HashMap<(usize, usize), usize>,
    nodes: HashMap<String, usize>,
}

/// One call of [`Probe::run`].
#[derive(Default)]
struct Run {
    wanted: Vec<bool>,
    /// Inputs that are shown where they are made, by the name of the node that makes them.
    ahead: HashMap<String, usize>,
    model: Option<*const Model>,
    observer: Option<*mut Observer<'static>>,
    seen: Vec<bool>,
    /// The operand that the first reader of each input read last.
    operands: Vec<usize>,
    last: Option<usize>,
    ended: bool,
    buffers: Buffers,
}

/// The state behind the pointer that llama.cpp has.
#[derive(Debug)]
struct Shared(NonNull<State>);

impl Shared {
    fn new() -> Shared {
        Shared(NonNull::from(Box::leak(Box::default())))
    }

    fn get(&mut self) -> &mut State {
        // SAFETY: the state lives as long as `self`, and llama.cpp uses its pointer only inside
        // `decode`, during which no reference from here is alive.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it was leaked from a box, and is taken back once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// llama.cpp asks whether a node is wanted, and later shows the node; returning false then ends
/// the evaluation.
unsafe extern "C" fn on_node(
    node: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    let _called = CalledBack::begin();
    // SAFETY: the pointer is the one given to `Context::observed`, and nobody else uses the state
    // during `decode`; the node is a valid tensor during the call.
    let (state, node) = unsafe { (&mut *user_data.cast::<State>(), &*node) };
    // No panic may cross into llama.cpp.
    let answer = catch_unwind(AssertUnwindSafe(|| match state.mode {
        Mode::Idle => !ask,
        Mode::Discover => {
            if ask {
                state.note(node);
            }
            !ask
        }
        Mode::Run if ask => state.asked(node).is_some(),
        Mode::Run => state.shown(node),
    }));
    answer.unwrap_or_else(|panic| {
        state.panic.get_or_insert(panic);
        state.run.ended = true;
        !ask && !state.on_host
    })
}

impl State {
    fn begin(
        &mut self,
        wanted: &[bool],
        ahead: bool,
        model: &Model,
        observer: *mut Observer<'static>,
    ) {
        let count = self.inputs.len();
        self.mode = Mode::Run;
        let last = wanted.iter().rposition(|w| *w);
        let run = &mut self.run;
        run.ahead.clear();
        // The last input is always read where it is made, so that its layer need not be computed.
        let early = (0..count.min(wanted.len()))
            .filter(|i| wanted[*i])
            .filter(|i| {
                let is_node = self.inputs[*i].readers.is_empty();
                is_node || (self.on_host && (ahead || Some(*i) == last))
            });
        for input in early {
            if let Some(producer) = &self.producers[input] {
                run.ahead.insert(producer.clone(), input);
            }
        }
        run.model = Some(model);
        run.wanted = wanted.to_vec();
        run.wanted.resize(count, false);
        run.last = last;
        run.observer = Some(observer);
        run.seen = vec![false; count];
        run.operands = vec![0; count];
        run.ended = false;
    }

    /// Forgets what lives only as long as the call.
    fn end(&mut self) {
        self.mode = Mode::Idle;
        self.run.observer = None;
        self.run.model = None;
    }

    /// Notes a node of the first evaluation.
    fn note(&mut self, node: &sys::ggml_tensor) {
        let known = self.found.nodes.len();
        self.on_host = (self.on_host || known == 0) && operand::is_on_host(node);
        *self.found.nodes.entry(name(node).to_string()).or_default() += 1;
        if self.nodes.iter().any(|n| n == name(node)) {
            self.inputs.push(LinearInput {
                width: node.ne[0].max(0) as usize,
                slices: 1,
                readers: Vec::new(),
            });
            self.producers.push(Some(name(node).to_string()));
        }
        let Some(linear) = Linear::of(node) else {
            return;
        };
        if !operand::is_readable(linear.operand) || linear.operand.ne[0] != linear.weight.ne[0] {
            return;
        }
        let reader = Reader {
            weight: linear.weight_name.to_string(),
            outputs: linear.weight.ne[1].max(0) as usize,
        };
        let by_weight = self.by_weight.get(linear.weight_name);
        let input = match by_weight.or_else(|| self.found.by_operand.get(&linear.key())) {
            Some(i) if self.inputs[*i].slices == linear.slices() => *i,
            _ => {
                self.inputs.push(LinearInput {
                    width: linear.operand.ne[0].max(0) as usize,
                    slices: linear.slices(),
                    readers: Vec::new(),
                });
                let producer = linear.chosen.is_none() && linear.slices() == 1;
                self.producers
                    .push(producer.then(|| name(linear.operand).to_string()));
                self.inputs.len() - 1
            }
        };
        self.found.by_operand.entry(linear.key()).or_insert(input);
        if self
            .by_weight
            .insert(reader.weight.clone(), input)
            .is_none()
        {
            self.inputs[input].readers.push(reader);
        }
    }

    fn finish_discovery(&mut self) {
        let nodes = std::mem::take(&mut self.found).nodes;
        for producer in &mut self.producers {
            if producer.as_ref().is_some_and(|p| nodes.get(p) != Some(&1)) {
                *producer = None;
            }
        }
    }

    /// The input that a node shows, if it is wanted.
    fn asked(&mut self, node: &sys::ggml_tensor) -> Option<usize> {
        if self.run.ended {
            return None;
        }
        if let Some(linear) = Linear::of(node)
            && let Some(&input) = self.by_weight.get(linear.weight_name)
            && self.run.wanted[input]
        {
            let operand = address(linear.operand);
            let is_first = self.inputs[input].name() == linear.weight_name;
            // Rows that stand in place of embeddings are made by no node.
            let is_ahead = self.run.ahead.values().any(|i| *i == input);
            if is_first && !(is_ahead && self.run.seen[input]) {
                self.run.operands[input] = operand;
                return Some(input);
            }
            // All readers must read what was shown.
            if self.run.operands[input] != operand {
                self.fail(LlamaError::Activation {
                    weight: linear.weight_name.to_string(),
                    reason: "llama.cpp's graph differs from that of its first evaluation",
                });
                return None;
            }
        }
        // A linear layer may itself make the input of another.
        self.run.ahead.get(name(node)).copied()
    }

    /// Gives the observer what a node shows; false ends the evaluation.
    fn shown(&mut self, node: &sys::ggml_tensor) -> bool {
        if let Some(input) = self.asked(node) {
            let linear =
                Linear::of(node).filter(|l| self.by_weight.get(l.weight_name) == Some(&input));
            if let Err(reason) = self.observe(input, node, linear) {
                self.fail(LlamaError::Activation {
                    weight: self.inputs[input].name().to_string(),
                    reason,
                });
            }
            if self.run.last == Some(input) && !self.run.ended {
                return !self.on_host;
            }
        }
        !(self.run.ended && self.on_host)
    }

    fn observe(
        &mut self,
        input: usize,
        node: &sys::ggml_tensor,
        linear: Option<Linear<'_>>,
    ) -> Result<(), &'static str> {
        let (Some(observer), Some(model)) = (self.run.observer, self.run.model) else {
            return Ok(());
        };
        let width = self.inputs[input].width;
        let slices = self.inputs[input].slices;
        let operand = linear.as_ref().map_or(node, |l| l.operand);
        if operand.ne[0] != width as i64 {
            return Err("its width differs from that of the first evaluation");
        }
        let routes = match &linear {
            Some(l) if slices > 1 || l.chosen.is_some() => {
                Some(operand::routes(operand, l.weight, l.chosen)?)
            }
            _ => None,
        };
        let values = self.run.buffers.rows(operand)?;
        self.run.seen[input] = true;
        self.run.operands[input] = address(operand);
        // SAFETY: the observer and the model live during `run`, which is what calls llama.cpp, and
        // nobody else uses the observer meanwhile.
        let flow = unsafe {
            let rows = Activation::of_rows(input, values, routes.as_deref());
            (*observer)(match linear {
                Some(_) => rows,
                None => rows.ahead(&*model),
            })
        };
        self.run.ended |= flow.is_break();
        Ok(())
    }

    fn fail(&mut self, error: LlamaError) {
        self.error.get_or_insert(error);
        self.run.ended = true;
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
