//! PyTorch's files before 1.6: pickles of a magic number, a version, the system, the dictionary and the keys of its
//! storages, then the storages in the order of the keys, each behind the number of its elements.

use std::collections::HashMap;

use super::machine::{self, Value};
use super::state::{Places, storage, tensors};
use super::{PickleError, PickledTensor};
use crate::bounded::limits;

/// The integer that such a file begins with.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

pub(super) fn read(bytes: &[u8]) -> Result<Vec<PickledTensor>, PickleError> {
    let mut at = 0usize;
    let mut next = || {
        let most = usize::try_from(limits::INDEX).unwrap_or(usize::MAX);
        let end = bytes.len().min(at.saturating_add(most));
        let pickle = machine::read(&bytes[at..end])?;
        at += pickle.len;
        Ok::<_, PickleError>(pickle)
    };
    let magic = next().map_err(|_| PickleError::NoTensors)?;
    if *magic.get(magic.root) != Value::Long(MAGIC.to_vec()) {
        return Err(PickleError::NoTensors);
    }
    let (_version, _system) = (next()?, next()?);
    let state = next()?;
    let keys = next()?;

    let mut sizes = HashMap::new();
    for id in 0..state.values.len() {
        if let Some(found) = storage(&state, id) {
            sizes.insert(found.key, found.elements.bytes());
        }
    }
    let mut places = Places::new();
    let damaged = |at| PickleError::Damaged { at };
    let list = keys.list(keys.root).ok_or(damaged(at))?;
    for key in list {
        let key = keys.text(*key).ok_or(damaged(at))?;
        let size = sizes.get(key).ok_or(damaged(at))?;
        let count = bytes.get(at..at + 8).ok_or(damaged(at))?;
        let count = u64::from_le_bytes(count.try_into().map_err(|_| damaged(at))?);
        let len = usize::try_from(count)
            .ok()
            .and_then(|n| n.checked_mul(*size));
        let end = len.and_then(|len| (at + 8).checked_add(len));
        let end = end.filter(|end| *end <= bytes.len()).ok_or(damaged(at))?;
        places.insert(key.to_string(), at + 8..end);
        at = end;
    }
    tensors(&state, &places)
}
