//! Every form of the container, and what contradicts it.

use std::collections::BTreeMap;

use dwindle_formats::container::{Form, Over, Part, StoredPlan, StoredTensor};
use dwindle_formats::gguf::TensorType;

fn tensor(name: &str, shape: &[u64], form: Form, parts: &[(&str, &[u64])]) -> StoredTensor {
    StoredTensor {
        name: name.into(),
        shape: shape.to_vec(),
        ty: TensorType::F32,
        method: "test".into(),
        parameters: BTreeMap::new(),
        form,
        parts: parts
            .iter()
            .map(|(suffix, shape)| Part {
                name: format!("{name}.{suffix}"),
                ty: TensorType::F32,
                shape: shape.to_vec(),
            })
            .collect(),
    }
}

fn checked(tensors: &[StoredTensor]) -> Result<(), String> {
    let plan = StoredPlan {
        tensors: tensors.to_vec(),
    };
    plan.check().map_err(|e| e.to_string())
}

#[track_caller]
fn good(tensors: &[StoredTensor]) {
    assert_eq!(checked(tensors), Ok(()));
    let json = serde_json::to_string(tensors).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<StoredTensor>>(&json).unwrap(),
        tensors
    );
}

#[track_caller]
fn bad(tensors: &[StoredTensor]) {
    assert!(checked(tensors).is_err(), "accepted: {tensors:?}");
}

fn tucker(over: Over, slices: u64) -> Form {
    Form::Tucker { over, slices }
}

#[test]
fn low_rank_forms_share_a_rank_and_an_input() {
    let first = tensor(
        "q",
        &[8, 6],
        Form::LowRank,
        &[("a", &[8, 2]), ("b", &[2, 6])],
    );
    let shared = |input: &str| Form::SharedLowRank {
        input: input.into(),
    };
    let second = tensor("k", &[8, 4], shared("q"), &[("b", &[2, 4])]);
    good(&[first.clone(), second.clone()]);
    bad(&[second.clone(), first.clone()]);
    bad(&[
        first.clone(),
        tensor("k", &[8, 4], shared("q"), &[("b", &[3, 4])]),
    ]);
    bad(&[
        first.clone(),
        tensor("k", &[9, 4], shared("q"), &[("b", &[2, 4])]),
    ]);
    bad(&[
        first,
        second,
        tensor("v", &[8, 4], shared("k"), &[("b", &[2, 4])]),
    ]);
    let experts: [(&str, &[u64]); 2] = [("a", &[8, 2, 3]), ("b", &[2, 6, 3])];
    good(&[tensor("e", &[8, 6, 3], Form::LowRank, &experts)]);
    bad(&[tensor("e", &[8, 6, 2], Form::LowRank, &experts)]);
    let sparse: [(&str, &[u64]); 3] = [("s", &[8, 6]), ("a", &[8, 2]), ("b", &[2, 6])];
    good(&[tensor("w", &[8, 6], Form::SparseLowRank, &sparse)]);
    bad(&[tensor("w", &[8, 6], Form::SparseLowRank, &sparse[1..])]);
    bad(&[tensor("w", &[8, 5], Form::SparseLowRank, &sparse)]);
}

#[test]
fn tucker_has_the_factors_that_its_core_needs() {
    let all: [(&str, &[u64]); 4] = [
        ("a", &[8, 5]),
        ("core", &[5, 3, 2]),
        ("b", &[3, 4]),
        ("s", &[2, 3]),
    ];
    good(&[tensor("w", &[8, 12], tucker(Over::Heads, 3), &all)]);
    good(&[tensor("w", &[8, 4, 3], tucker(Over::Experts, 3), &all)]);
    bad(&[tensor("w", &[8, 12], tucker(Over::Heads, 4), &all)]);
    bad(&[tensor("w", &[8, 12], tucker(Over::Heads, 0), &all)]);
    bad(&[tensor("w", &[8, 12], tucker(Over::Heads, 3), &all[..3])]);
    let whole: [(&str, &[u64]); 1] = [("core", &[8, 4, 3])];
    good(&[tensor("w", &[8, 12], tucker(Over::Heads, 3), &whole)]);
    bad(&[tensor(
        "w",
        &[8, 12],
        tucker(Over::Heads, 3),
        &[("core", &[8, 12])],
    )]);
}

#[test]
fn a_stack_over_layers_has_all_its_slices_elsewhere() {
    let cp = Form::Cp {
        over: Over::Layers,
        slices: 3,
    };
    let parts: [(&str, &[u64]); 3] = [("a", &[8, 2]), ("b", &[2, 4]), ("s", &[2, 3])];
    let slice = |name: &str, of: &str, index| {
        let of = of.into();
        tensor(name, &[8, 4], Form::Slice { of, index }, &[])
    };
    let holder = tensor("l0", &[8, 4], cp, &parts);
    good(&[holder.clone(), slice("l1", "l0", 1), slice("l2", "l0", 2)]);
    bad(&[holder.clone(), slice("l1", "l0", 3)]);
    bad(&[holder.clone(), slice("l1", "l0", 0)]);
    bad(&[slice("l1", "l0", 1), holder.clone()]);
    bad(&[holder.clone(), slice("l1", "l0", 1), slice("l2", "l1", 1)]);
    let mut other = slice("l1", "l0", 1);
    other.shape = vec![4, 8];
    bad(&[holder, other]);
}

#[test]
fn a_tensor_train_multiplies_to_its_shape() {
    let train = |over, rows: &[u64], cols: &[u64]| Form::TensorTrain {
        over,
        rows: rows.to_vec(),
        cols: cols.to_vec(),
    };
    let cores: [(&str, &[u64]); 2] = [("core0", &[6, 2]), ("core1", &[4, 9])];
    let matrix = train(None, &[2, 3], &[2, 4]);
    good(&[tensor("w", &[8, 6], matrix.clone(), &cores)]);
    bad(&[tensor("w", &[6, 8], matrix.clone(), &cores)]);
    bad(&[tensor("w", &[8, 6], matrix.clone(), &cores[..1])]);
    bad(&[tensor(
        "w",
        &[8, 6],
        matrix,
        &[("core0", &[7, 2]), ("core1", &[4, 9])],
    )]);
    bad(&[tensor(
        "w",
        &[8, 6],
        train(None, &[6], &[8]),
        &[("core0", &[8, 6])],
    )]);
    bad(&[tensor(
        "w",
        &[8, 6],
        train(None, &[u64::MAX, 6], &[2, 4]),
        &cores,
    )]);
    bad(&[tensor("w", &[8, 6], train(None, &[2, 3], &[0, 4]), &cores)]);
    let stack: [(&str, &[u64]); 3] = [("core0", &[2, 5]), ("core1", &[3, 8]), ("core2", &[8, 3])];
    let layers = train(Some(Over::Layers), &[5, 4, 1], &[1, 1, 8]);
    assert_eq!(layers.stacked(), 5);
    good(&[tensor("w", &[8, 4], layers, &stack)]);
    let experts = train(Some(Over::Experts), &[5, 4, 1], &[1, 1, 8]);
    good(&[tensor("w", &[8, 4, 5], experts.clone(), &stack)]);
    bad(&[tensor("w", &[8, 4, 6], experts, &stack)]);
}
