//! Linear attention, whose heads of keys serve several heads of values each.

use dwindle_formats::gguf::Metadata;
use serde_json::Value;

use super::config::{Config, bad};
use super::{Assembly, Error, ModelTensor};
use dwindle_checkpoint::SourceTensor;

/// A dimension of a layer of linear attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinearDim {
    /// Rows of Q, K and V.
    Mixed,
    /// The same, and those of the gate.
    MixedAndGate,
    /// Heads of values times their dimension.
    Values,
    /// Heads of values.
    ValueHeads,
    /// What decides how a state decays, and how it learns, for each head of values.
    TwiceValueHeads,
    /// The dimension of a head of values.
    ValueHead,
    /// Tokens that a convolution reaches over.
    Kernel,
}

/// What a head of values has of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Each {
    /// Its dimension.
    Dimension,
    One,
}

/// How a weight comes out of a tensor of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinearForm {
    /// Heads of values, grouped by their keys in the checkpoint, in turns: rows behind those of Q and K.
    TurnsBehind,
    /// The same of a convolution, which has a dimension of one between.
    ConvolutionTurnsBehind,
    /// A convolution, which has a dimension of one between.
    Convolution,
    /// Heads of values in turns: rows, so many each.
    Turns(Each),
    /// Heads of values in turns: columns.
    ColumnsInTurns,
    /// The same of single elements, whose exponential is taken and negated.
    DecaysInTurns,
    /// Elements whose exponential is taken and negated.
    Decays,
    /// All Q, all K and all V of what lies by heads of keys with the gate.
    Ungrouped,
    /// The gate of what lies so.
    UngroupedGate,
}

/// Linear attention of some layers.
#[derive(Debug)]
pub(super) struct Linear {
    key_heads: u64,
    value_heads: u64,
    key_head: u64,
    value_head: u64,
    kernel: u64,
    /// For each layer, whether it has it.
    layers: Vec<bool>,
}

impl Linear {
    /// What a configuration says, if it says something.
    pub(super) fn of(config: &Config) -> Result<Option<Linear>, Error> {
        if config.count(&["linear_num_key_heads"])?.is_none() {
            return Ok(None);
        }
        let need = |key| Ok::<_, Error>(u64::from(config.need(&[key])?));
        let layers = need("num_hidden_layers")?;
        let interval = u64::from(config.count(&["full_attention_interval"])?.unwrap_or(4));
        let linear = Linear {
            key_heads: need("linear_num_key_heads")?,
            value_heads: need("linear_num_value_heads")?,
            key_head: need("linear_key_head_dim")?,
            value_head: need("linear_value_head_dim")?,
            kernel: need("linear_conv_kernel_dim")?,
            layers: match config.get("layer_types").and_then(Value::as_array) {
                Some(kinds) => kinds.iter().map(|k| k == "linear_attention").collect(),
                // So many at once are more than llama.cpp has layers.
                None => (1..=layers.min(1 << 16))
                    .map(|n| !n.is_multiple_of(interval.max(1)))
                    .collect(),
            },
        };
        if linear.layers.len() as u64 != layers {
            let found = config.get("layer_types").cloned().unwrap_or_default();
            let expected = format!("one kind for each of {layers} layers");
            return Err(bad("layer_types", &found, &expected));
        }
        if !linear.value_heads.is_multiple_of(linear.key_heads) {
            let expected = format!("a multiple of {} heads of keys", linear.key_heads);
            let found = Value::from(linear.value_heads);
            return Err(bad("linear_num_value_heads", &found, &expected));
        }
        if linear.value_head != linear.key_head {
            let expected = format!(
                "{}, that of keys, which llama.cpp takes for granted",
                linear.key_head
            );
            return Err(bad(
                "linear_value_head_dim",
                &linear.value_head.into(),
                &expected,
            ));
        }
        Ok(Some(linear))
    }

    /// Whether a layer has it.
    pub(super) fn has(&self, layer: u64) -> bool {
        self.layers.get(layer as usize) == Some(&true)
    }

    pub(super) fn value(&self, dim: LinearDim) -> u64 {
        let keys = self.keys().saturating_mul(2);
        let values = self.value_heads.saturating_mul(self.value_head);
        match dim {
            LinearDim::Mixed => keys.saturating_add(values),
            LinearDim::MixedAndGate => keys.saturating_add(values.saturating_mul(2)),
            LinearDim::Values => values,
            LinearDim::ValueHeads => self.value_heads,
            LinearDim::TwiceValueHeads => 2 * self.value_heads,
            LinearDim::ValueHead => self.value_head,
            LinearDim::Kernel => self.kernel,
        }
    }

    /// Rows of K, and of Q.
    fn keys(&self) -> u64 {
        self.key_heads.saturating_mul(self.key_head)
    }

    /// Heads of values as llama.cpp has them: the first of each head of keys, then the second, and so on.
    fn turns(&self) -> Vec<u64> {
        let each = self.value_heads / self.key_heads;
        let turn = |n: u64| (0..self.key_heads).map(move |key| key * each + n);
        (0..each).flat_map(turn).collect()
    }

    /// Rows of Q, K and V where heads of values are in turns.
    fn behind(&self) -> Vec<u64> {
        let first = 2 * self.keys();
        let head = |head: u64| first + head * self.value_head..first + (head + 1) * self.value_head;
        (0..first)
            .chain(self.turns().into_iter().flat_map(head))
            .collect()
    }

    /// Where the rows of all Q, all K, all V, and those of the gate, lie if each head of keys has its Q, its K, its V
    /// and its gate one after another.
    fn ungrouped(&self) -> (Vec<u64>, Vec<u64>) {
        let values = self.value_heads / self.key_heads * self.value_head;
        let group = 2 * self.key_head + 2 * values;
        let of = |first: u64, count: u64| {
            (0..self.key_heads).flat_map(move |g| g * group + first..g * group + first + count)
        };
        let behind = 2 * self.key_head;
        let mixed = of(0, self.key_head)
            .chain(of(self.key_head, self.key_head))
            .chain(of(behind, values));
        (mixed.collect(), of(behind + values, values).collect())
    }

    /// The shape that the checkpoint has of a weight of this shape, both slowest dimension first.
    pub(super) fn source_shape(&self, form: LinearForm, shape: &mut Vec<u64>) {
        use LinearForm::{Convolution, ConvolutionTurnsBehind, Ungrouped, UngroupedGate};
        match form {
            Convolution | ConvolutionTurnsBehind => shape.insert(1, 1),
            Ungrouped | UngroupedGate => shape[0] = self.value(LinearDim::MixedAndGate),
            _ => {}
        }
    }

    /// How a weight comes out of a tensor. `shape` is the tensor's, and becomes the weight's, row length first.
    pub(super) fn formed(
        &self,
        form: LinearForm,
        tensor: usize,
        source: &SourceTensor,
        shape: &mut Vec<u64>,
    ) -> Assembly {
        if matches!(
            form,
            LinearForm::Convolution | LinearForm::ConvolutionTurnsBehind
        ) {
            shape.remove(1);
        }
        let of = |assembly| {
            Box::new(ModelTensor {
                name: source.name.clone(),
                shape: shape.clone(),
                assembly,
                always_f32: false,
            })
        };
        let copy = of(Assembly::Copy(tensor));
        let (of, rows) = match form {
            LinearForm::Convolution => return Assembly::Copy(tensor),
            LinearForm::Decays => return Assembly::Decay(tensor),
            LinearForm::ColumnsInTurns => {
                return Assembly::Columns {
                    of: copy,
                    each: self.value_head,
                    blocks: self.turns(),
                };
            }
            LinearForm::DecaysInTurns => (of(Assembly::Decay(tensor)), self.turns()),
            LinearForm::TurnsBehind | LinearForm::ConvolutionTurnsBehind => (copy, self.behind()),
            LinearForm::Turns(Each::One) => (copy, self.turns()),
            LinearForm::Turns(Each::Dimension) => {
                let rows = |head: u64| head * self.value_head..(head + 1) * self.value_head;
                (copy, self.turns().into_iter().flat_map(rows).collect())
            }
            LinearForm::Ungrouped => (copy, self.ungrouped().0),
            LinearForm::UngroupedGate => (copy, self.ungrouped().1),
        };
        if shape.len() > 1 {
            shape[1] = rows.len() as u64;
        }
        Assembly::Select { of, rows }
    }

    /// Writes it as metadata.
    ///
    /// # Errors
    /// When a number of the configuration is none.
    pub(super) fn describe(
        &self,
        architecture: &str,
        config: &Config,
        metadata: &mut Metadata,
    ) -> Result<(), Error> {
        let interval = config.count(&["full_attention_interval"])?.unwrap_or(4);
        let key = |name: &str| format!("{architecture}.{name}");
        metadata.set(key("ssm.conv_kernel"), self.kernel as u32);
        metadata.set(key("ssm.state_size"), self.key_head as u32);
        metadata.set(key("ssm.group_count"), self.key_heads as u32);
        metadata.set(key("ssm.time_step_rank"), self.value_heads as u32);
        let inner = self.value(LinearDim::Values) as u32;
        metadata.set(key("ssm.inner_size"), inner);
        metadata.set(key("attention.recurrent_layers"), self.layers.clone());
        metadata.set(key("full_attention_interval"), interval);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear() -> Linear {
        Linear {
            key_heads: 2,
            value_heads: 4,
            key_head: 1,
            value_head: 1,
            kernel: 4,
            layers: vec![true],
        }
    }

    #[test]
    fn heads_of_values_take_turns() {
        assert_eq!(linear().turns(), [0, 2, 1, 3]);
        assert_eq!(linear().behind(), [0, 1, 2, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn groups_come_apart() {
        // Each group: Q, K, two rows of V, two of the gate.
        let (mixed, gate) = linear().ungrouped();
        assert_eq!(mixed, [0, 6, 1, 7, 2, 3, 8, 9]);
        assert_eq!(gate, [4, 5, 10, 11]);
    }
}
