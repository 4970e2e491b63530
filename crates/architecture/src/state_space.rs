//! State spaces (Mamba 2) in place of attention in some layers.
//!
//! Dao and Gu, "Transformers are SSMs", arXiv 2405.21060.

use dwindle_formats::gguf::Metadata;

use super::config::{Config, bad};
use super::{Assembly, Error};

/// A dimension of such a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StateDim {
    /// Rows of what comes in: the gate, what is convolved, and a time step for each head.
    In,
    /// What is convolved.
    Convolved,
    /// Heads times their dimension.
    Inner,
    Heads,
    Groups,
    /// Elements that are normed together.
    OfGroup,
    /// Tokens that the convolution reaches over.
    Kernel,
}

/// How a weight comes out of a tensor of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StateForm {
    /// An element for each head becomes a column.
    Column,
    /// The same, whose exponential is taken and negated.
    Decays,
    /// A norm becomes a row for each group.
    ByGroups,
}

/// State spaces of some layers.
#[derive(Debug)]
pub(super) struct StateSpace {
    heads: u64,
    head: u64,
    groups: u64,
    state: u64,
    kernel: u64,
}

impl StateSpace {
    /// What a configuration says, if it says something.
    pub(super) fn of(config: &Config) -> Result<Option<StateSpace>, Error> {
        if config.count(&["mamba_n_heads"])?.is_none() {
            return Ok(None);
        }
        let need = |key| Ok::<_, Error>(u64::from(config.need(&[key])?));
        let hidden = need("hidden_size")?;
        let heads = need("mamba_n_heads")?;
        let head = match config.count(&["mamba_d_head"]) {
            Ok(Some(head)) => head.into(),
            // It may be `auto`.
            _ => (need("mamba_expand")?.saturating_mul(hidden))
                .checked_div(heads)
                .unwrap_or(0),
        };
        let groups = need("mamba_n_groups")?;
        let (inner, twice) = (heads.saturating_mul(head), 2 * hidden);
        if config.get("mamba_expand").is_some() && inner != twice {
            let expected = format!("heads of {twice} elements together, twice `hidden_size`");
            return Err(bad("mamba_d_head", &head.into(), &expected));
        }
        if groups == 0 || inner == 0 || !inner.is_multiple_of(groups) {
            let expected = format!("a number that divides {inner}, which is above 0");
            return Err(bad("mamba_n_groups", &groups.into(), &expected));
        }
        Ok(Some(StateSpace {
            heads,
            head,
            groups,
            state: need("mamba_d_state")?,
            kernel: need("mamba_d_conv")?,
        }))
    }

    pub(super) fn value(&self, dim: StateDim) -> u64 {
        let inner = self.heads.saturating_mul(self.head);
        let states = (2 * self.groups).saturating_mul(self.state);
        let convolved = inner.saturating_add(states);
        match dim {
            StateDim::In => inner.saturating_add(convolved).saturating_add(self.heads),
            StateDim::Convolved => convolved,
            StateDim::Inner => inner,
            StateDim::Heads => self.heads,
            StateDim::Groups => self.groups,
            StateDim::OfGroup => inner / self.groups,
            StateDim::Kernel => self.kernel,
        }
    }

    /// How a weight comes out of a tensor. `shape` is the tensor's, and becomes the weight's, row length first.
    pub(super) fn formed(&self, form: StateForm, tensor: usize, shape: &mut Vec<u64>) -> Assembly {
        match form {
            StateForm::Column | StateForm::Decays => shape.insert(0, 1),
            StateForm::ByGroups => *shape = vec![self.value(StateDim::OfGroup), self.groups],
        }
        match form {
            StateForm::Decays => Assembly::Decay(tensor),
            _ => Assembly::Copy(tensor),
        }
    }

    /// Writes it as metadata.
    ///
    /// Where some layers have them nothing turns, and there is no longest context.
    pub(super) fn describe(&self, architecture: &str, some: bool, metadata: &mut Metadata) {
        let mut set = |name: &str, value: u64| {
            metadata.set(format!("{architecture}.{name}"), value as u32);
        };
        set("ssm.conv_kernel", self.kernel);
        set("ssm.state_size", self.state);
        set("ssm.group_count", self.groups);
        set("ssm.inner_size", self.heads * self.head);
        set("ssm.time_step_rank", self.heads);
        if some {
            set("context_length", 1 << 20);
        }
        metadata.set(format!("{architecture}.rope.scaling.finetuned"), !some);
    }
}
