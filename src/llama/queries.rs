//! What attention asks of its keys: the queries of each layer, caught while llama.cpp evaluates tokens.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::activations::linear::name;
use super::activations::operand::Buffers;
use super::context::{BatchToken, Context, ContextOptions, FlashAttention};
use super::error::LlamaError;
use super::guard::CalledBack;
use super::model::Model;

/// The queries of one layer, as they meet the keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Queries<'a> {
    /// The layer, as llama.cpp counts.
    pub layer: usize,
    /// Elements of a key's head, and of a query's.
    pub key_head: usize,
    /// Elements of a value's head.
    pub value_head: usize,
    /// Heads of keys. Neighbouring queries share one.
    pub key_heads: usize,
    /// Heads of queries.
    pub query_heads: usize,
    /// Cells that the last token sees: fewer where the layer has a sliding window.
    pub seen: usize,
    /// Rows of the first head's tokens, then of the next head's.
    pub rows: &'a [f32],
}

type Observer<'a> = dyn FnMut(Queries<'_>) + 'a;

/// A context whose queries can be observed. It uses flash attention, which has keys, values and queries in one node, and keeps
/// keys and values in F16.
#[derive(Debug)]
pub struct Asking<'m> {
    // Dropped before the state, to which llama.cpp has a pointer.
    context: Context<'m>,
    state: Shared,
}

#[derive(Debug)]
struct Shared(NonNull<State>);

#[derive(Default)]
struct State {
    observer: Option<*mut Observer<'static>>,
    buffers: Buffers,
    error: Option<LlamaError>,
    panic: Option<Box<dyn std::any::Any + Send>>,
}

// SAFETY: the state is reached through `&mut Asking` only, and by the callback on the thread that evaluates.
unsafe impl Send for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it was leaked from a box, and is taken back once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl<'m> Asking<'m> {
    /// Makes a context.
    ///
    /// # Errors
    /// llama.cpp's words.
    pub fn new(model: &'m Model, options: &ContextOptions) -> Result<Asking<'m>, LlamaError> {
        let state = Shared(NonNull::from(Box::leak(Box::default())));
        let options = ContextOptions {
            flash_attention: FlashAttention::On,
            ..options.clone()
        };
        let user_data = state.0.as_ptr().cast();
        let context = Context::observed(model, &options, Some(on_node), user_data)?;
        Ok(Asking { context, state })
    }

    /// The context.
    pub fn context(&mut self) -> &mut Context<'m> {
        &mut self.context
    }

    /// Evaluates tokens and shows the queries of each layer.
    ///
    /// # Errors
    /// As [`Context::decode`].
    pub fn decode(
        &mut self,
        tokens: &[BatchToken],
        observer: &mut Observer<'_>,
    ) -> Result<(), LlamaError> {
        let observer = std::ptr::from_mut(observer);
        // SAFETY: only the lifetime is changed; the pointer is dropped before this call returns.
        let observer =
            unsafe { std::mem::transmute::<*mut Observer<'_>, *mut Observer<'static>>(observer) };
        // SAFETY: the state lives as long as `self`, and llama.cpp uses its pointer only inside `decode`, during which no
        // reference from here is alive.
        unsafe { self.state.0.as_mut() }.observer = Some(observer);
        let decoded = self.context.decode(tokens);
        // SAFETY: as above.
        let state = unsafe { self.state.0.as_mut() };
        state.observer = None;
        if let Some(panic) = state.panic.take() {
            resume_unwind(panic);
        }
        match state.error.take() {
            Some(error) => Err(error),
            None => decoded,
        }
    }
}

/// llama.cpp asks whether a node is wanted, and later shows it.
unsafe extern "C" fn on_node(
    node: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    let _called = CalledBack::begin();
    // SAFETY: the pointer is the one given to `Context::observed`, and nobody else uses the state during `decode`; the node
    // is a valid tensor during the call.
    let (state, node) = unsafe { (&mut *user_data.cast::<State>(), &*node) };
    let (Some(observer), Some(layer)) = (state.observer, layer(node)) else {
        return !ask;
    };
    if ask {
        return true;
    }
    // No panic may cross into llama.cpp.
    let shown = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the observer lives during `decode`.
        show(node, layer, &mut state.buffers, unsafe { &mut *observer })
    }));
    match shown {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => {
            state.error.get_or_insert(LlamaError::Activation {
                weight: format!("the queries of layer {layer}"),
                reason,
            });
        }
        Err(panic) => {
            state.panic.get_or_insert(panic);
        }
    }
    true
}

/// The layer whose attention a node computes, by the name of its keys' tensor.
fn layer(node: &sys::ggml_tensor) -> Option<usize> {
    if node.op != sys::GGML_OP_FLASH_ATTN_EXT {
        return None;
    }
    // SAFETY: sources and views of a node are valid while its graph is.
    let keys = unsafe { node.src[1].as_ref()? };
    let name = name(root(keys));
    // Names of copies on other devices have more around theirs.
    let (_, number) = name.split_once("cache_k_l")?;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// The tensor that a view is of.
fn root(tensor: &sys::ggml_tensor) -> &sys::ggml_tensor {
    // SAFETY: a view's source is valid as long as the view.
    unsafe { tensor.view_src.as_ref() }.unwrap_or(tensor)
}

fn show(
    node: &sys::ggml_tensor,
    layer: usize,
    buffers: &mut Buffers,
    observer: &mut Observer<'_>,
) -> Result<(), &'static str> {
    // SAFETY: the sources of a node are valid while its graph is.
    let source = |i: usize| unsafe { node.src[i].as_ref() }.ok_or("a part of it is missing");
    let (queries, keys, values) = (source(0)?, source(1)?, source(2)?);
    let size = |n: i64| n.max(0) as usize;
    // SAFETY: as above.
    let seen = match unsafe { node.src[3].as_ref() } {
        Some(mask) => {
            let (width, last) = (size(mask.ne[0]), size(queries.ne[1]).saturating_sub(1));
            let rows = buffers.rows(mask)?;
            let row = rows.iter().skip(last * width).take(width);
            row.filter(|bias| bias.is_finite()).count()
        }
        None => size(keys.ne[1]),
    };
    observer(Queries {
        layer,
        key_head: size(keys.ne[0]),
        value_head: size(values.ne[0]),
        key_heads: size(keys.ne[2]),
        query_heads: size(queries.ne[2]),
        seen,
        rows: buffers.rows(queries)?,
    });
    Ok(())
}
