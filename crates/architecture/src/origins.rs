//! What a model tensor takes from the source.

use super::{Assembly, ModelTensor};
use dwindle_checkpoint::Source;

impl Assembly {
    /// The tensors of the checkpoint that it takes from, as positions in [`Source::tensors`].
    pub fn sources(&self) -> Vec<usize> {
        match self {
            Assembly::Copy(tensor)
            | Assembly::PlusOne(tensor)
            | Assembly::Decay(tensor)
            | Assembly::PermuteRotary { tensor, .. } => vec![*tensor],
            Assembly::Transpose(of)
            | Assembly::Select { of, .. }
            | Assembly::Columns { of, .. }
            | Assembly::Alternate { of, .. } => of.assembly.sources(),
            Assembly::Stack(all) => all.clone(),
            Assembly::Fused { parts, .. } => parts.to_vec(),
            Assembly::Made { .. } => Vec::new(),
        }
    }
}

impl ModelTensor {
    /// Tells the source that this tensor's bytes will not be needed again soon.
    pub fn release(&self, source: &dyn Source) {
        let all = self.assembly.sources();
        all.into_iter().for_each(|index| source.release(index));
    }
}
