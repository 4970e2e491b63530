//! A dictionary of tensors, as a pickle describes it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::machine::{Id, Pickle, Value};
use super::{Elements, PickleError, PickledTensor};

/// Dimensions that a tensor may have.
const DIMENSIONS: usize = 8;

/// Where the bytes of storages are in the file, by their keys.
pub(super) type Places = HashMap<String, Range<usize>>;

/// A storage, as a pickle names it.
pub(super) struct Storage<'a> {
    pub(super) elements: Elements,
    pub(super) key: &'a str,
}

/// The storage that a persistent name stands for: `('storage', TYPE, KEY, DEVICE, COUNT, …)`.
pub(super) fn storage(pickle: &Pickle, id: Id) -> Option<Storage<'_>> {
    let Value::Persistent(name) = pickle.get(id) else {
        return None;
    };
    let parts = pickle.list(*name)?;
    if pickle.text(*parts.first()?)? != "storage" {
        return None;
    }
    // Very old files have views of storages here.
    let view = parts.get(5).map(|id| pickle.get(*id));
    if view.is_some_and(|view| *view != Value::None) {
        return None;
    }
    Some(Storage {
        elements: Elements::named(&pickle.global(*parts.get(1)?)?)?,
        key: pickle.text(*parts.get(2)?)?,
    })
}

/// The tensors of a pickle.
pub(super) fn tensors(pickle: &Pickle, places: &Places) -> Result<Vec<PickledTensor>, PickleError> {
    refuse_calls(pickle)?;
    let top = items(pickle, pickle.root).ok_or(PickleError::NoTensors)?;
    let found = of_items(pickle, top, places)?;
    if !found.is_empty() {
        return Ok(found);
    }
    // A checkpoint of a training has its weights one level down.
    let below = top.iter().find_map(|(key, value)| {
        let is_state = pickle.text(*key) == Some("state_dict");
        is_state.then(|| items(pickle, *value)).flatten()
    });
    let found = of_items(pickle, below.ok_or(PickleError::NoTensors)?, places)?;
    match found.is_empty() {
        true => Err(PickleError::NoTensors),
        false => Ok(found),
    }
}

/// What may be called: it makes dictionaries, sizes and tensors.
fn refuse_calls(pickle: &Pickle) -> Result<(), PickleError> {
    const HARMLESS: [&str; 6] = [
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
    ];
    for value in &pickle.values {
        let Value::Call(function, _) = value else {
            continue;
        };
        match pickle.global(*function) {
            Some(name) if HARMLESS.contains(&name.as_str()) => {}
            Some(name) => return Err(PickleError::Calls(name)),
            None => return Err(PickleError::Calls("what another call gives".into())),
        }
    }
    Ok(())
}

/// The items of a dictionary, ordered or not.
fn items(pickle: &Pickle, id: Id) -> Option<&[(Id, Id)]> {
    match pickle.get(id) {
        Value::Dict(items) => Some(items),
        Value::Call(_, arguments) => match pickle.get(*arguments) {
            Value::Dict(items) => Some(items),
            _ => None,
        },
        _ => None,
    }
}

fn of_items(
    pickle: &Pickle,
    items: &[(Id, Id)],
    places: &Places,
) -> Result<Vec<PickledTensor>, PickleError> {
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for (key, value) in items {
        if let Some(name) = pickle.text(*key)
            && let Some(tensor) = tensor(pickle, name, *value, places)?
        {
            if !names.insert(name) {
                return Err(PickleError::Tensor {
                    tensor: name.to_string(),
                    problem: "is there twice",
                });
            }
            tensors.push(tensor);
        }
    }
    Ok(tensors)
}

/// A value that is a tensor.
fn tensor(
    pickle: &Pickle,
    name: &str,
    id: Id,
    places: &Places,
) -> Result<Option<PickledTensor>, PickleError> {
    let Value::Call(function, arguments) = pickle.get(id) else {
        return Ok(None);
    };
    let (Some(function), Some(arguments)) = (pickle.global(*function), pickle.list(*arguments))
    else {
        return Ok(None);
    };
    if function.ends_with("_rebuild_parameter") {
        // A parameter is a tensor that can be trained; one within another is damage.
        let inner = arguments.first().copied().unwrap_or(id);
        let is_call = |id| matches!(pickle.get(id), Value::Call(f, _) if pickle.global(*f).is_some_and(|f| f.contains("_rebuild_tensor")));
        return match is_call(inner) {
            true => tensor(pickle, name, inner, places),
            false => Ok(None),
        };
    }
    if !function.contains("_rebuild_tensor") {
        return Ok(None);
    }
    let problem = |problem| PickleError::Tensor {
        tensor: name.to_string(),
        problem,
    };
    let &[stored, offset, shape, strides, ..] = arguments else {
        return Err(problem("lacks its storage or its shape"));
    };
    let stored =
        storage(pickle, stored).ok_or_else(|| problem("has elements that are no plain numbers"))?;
    let counts = |id| {
        let list = pickle.list(id).filter(|list| list.len() <= DIMENSIONS);
        let list = list?.iter();
        list.map(|n| pickle.count(*n)).collect::<Option<Vec<_>>>()
    };
    let (Some(offset), Some(shape), Some(strides)) =
        (pickle.count(offset), counts(shape), counts(strides))
    else {
        return Err(problem("has a shape that can't be read"));
    };
    // The third version names the type of the elements apart from the storage.
    let own = arguments.get(6).and_then(|id| pickle.global(*id));
    let elements = own.and_then(|name| Elements::named(&name));
    let elements = elements.unwrap_or(stored.elements);
    if !is_contiguous(&shape, &strides) {
        return Err(problem(
            "is a view whose rows don't lie one after another; save it with `.contiguous()`",
        ));
    }
    let place = places.get(stored.key);
    let place = place.ok_or_else(|| problem("has a storage that the file lacks"))?;
    let range = within(place, elements, offset, &shape)
        .ok_or_else(|| problem("reaches past the end of its storage"))?;
    Ok(Some(PickledTensor {
        name: name.to_string(),
        elements,
        shape,
        range,
    }))
}

fn within(
    place: &Range<usize>,
    elements: Elements,
    offset: usize,
    shape: &[usize],
) -> Option<Range<usize>> {
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    let start = place
        .start
        .checked_add(offset.checked_mul(elements.bytes())?)?;
    let end = start.checked_add(count.checked_mul(elements.bytes())?)?;
    (end <= place.end).then_some(start..end)
}

/// Whether each row follows the one before.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    for (size, stride) in shape.iter().zip(strides).rev() {
        if *size > 1 && *stride != expected {
            return false;
        }
        expected = expected.saturating_mul(*size);
    }
    shape.len() == strides.len()
}
