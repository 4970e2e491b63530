//! What layers read, caught in llama.cpp while it evaluates.

use std::ops::ControlFlow;

use dwindle::llama::activations::Probe;
use dwindle::llama::context::ContextOptions;
use dwindle::llama::lockstep::lockstep;
use dwindle::llama::model::{Model, ModelOptions};
use dwindle_formats::gguf::TensorType;

use crate::common::tiny::{batch, tiny};

fn load() -> Model {
    let feed = tiny(TensorType::F16);
    Model::load_feed("tiny", feed.feed(), &ModelOptions::default()).unwrap()
}

fn options() -> ContextOptions {
    ContextOptions {
        ctx: 64,
        batch: 64,
        ubatch: 64,
        threads: Some(2),
        ..ContextOptions::default()
    }
}

#[test]
fn an_observer_sees_what_it_wants_and_can_end() {
    let model = load();
    let mut probe = Probe::new(&model, &options()).unwrap();
    let tokens = batch(&[1, 70, 71, 72, 73, 74, 75, 76]);
    let count = probe.inputs().len();
    let mut run = |wanted: &[usize], ends: Option<usize>| {
        let wanted: Vec<bool> = (0..count).map(|i| wanted.contains(&i)).collect();
        let mut seen = Vec::new();
        probe.clear();
        let result = probe.run(&tokens, &wanted, &mut |a| {
            seen.push((a.input, a.values.to_vec()));
            match ends {
                Some(i) if i == a.input => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        result.unwrap();
        seen
    };
    let all = run(&(0..count).collect::<Vec<_>>(), None);
    assert_eq!(
        all.iter().map(|s| s.0).collect::<Vec<_>>(),
        (0..count).collect::<Vec<_>>()
    );
    assert!(
        all.iter()
            .all(|(_, v)| v.len() % 8 == 0 && v.iter().all(|v| v.is_finite()))
    );
    for wanted in [vec![0], vec![3], vec![2, 5], vec![count - 1]] {
        let seen = run(&wanted, None);
        let expected: Vec<_> = wanted.iter().map(|i| all[*i].clone()).collect();
        assert!(seen == expected, "{wanted:?}");
    }
    let seen = run(&[1, 2, 3], Some(2));
    assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), [1, 2]);
    assert!(run(&[], None).is_empty());
}

#[test]
fn an_observers_panic_is_the_callers() {
    let model = load();
    let mut probe = Probe::new(&model, &options()).unwrap();
    let run = |probe: &mut Probe<'_>| {
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            probe.run(&batch(&[1, 70]), &[true], &mut |_| panic!("seen"))
        }));
        *caught.unwrap_err().downcast::<&str>().unwrap()
    };
    assert_eq!(run(&mut probe), "seen");
    // It can be used again.
    probe.clear();
    assert_eq!(run(&mut probe), "seen");
}

#[test]
fn two_models_run_in_lockstep() {
    let (first, second) = (load(), load());
    let tokens = batch(&(0..40).map(|i| 3 + i * 7 % 200).collect::<Vec<i32>>());
    let run = |replace: Option<usize>| -> Vec<bool> {
        let mut a = Probe::new(&first, &options()).unwrap();
        let mut b = Probe::new(&second, &options()).unwrap();
        let inputs = a.inputs().to_vec();
        let mut equal = Vec::new();
        lockstep(
            &mut a,
            &mut b,
            &tokens,
            &vec![true; inputs.len()],
            &mut |pair| {
                let input = pair.second.input;
                assert!(pair.second.is_ahead(), "{}", inputs[input].name());
                equal.push(pair.first == pair.second.values);
                if replace == Some(input) {
                    let reader = &inputs[input].readers[0];
                    let zeros = vec![0.0; inputs[input].width * reader.outputs];
                    pair.second.replace(reader, &zeros).unwrap();
                }
                ControlFlow::Continue(())
            },
        )
        .unwrap();
        equal
    };
    let equal = run(None);
    assert!(equal.iter().all(|e| *e));
    // A weight that is replaced when its input is shown counts in the same evaluation.
    let changed = run(Some(3));
    let expected: Vec<bool> = (0..equal.len()).map(|i| i <= 3).collect();
    assert_eq!(changed, expected);
}
