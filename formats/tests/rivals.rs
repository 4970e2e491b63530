//! Writers of one file, many at once: each finishes or is told that another is at it.

#[path = "common/sample.rs"]
mod sample;

use dwindle_formats::container::{Container, WriteError, verify};

const WRITERS: usize = 4;
const ROUNDS: usize = 1000;

#[test]
fn rivals_never_damage_what_one_of_them_has_finished() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.dwn");
    let whole = sample::sample(true);
    std::fs::write(&path, &whole).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    match sample::write(&path, true) {
                        Ok(()) | Err(WriteError::Busy(_)) => {}
                        Err(e) => panic!("round {round}: {e}"),
                    }
                    let bytes = std::fs::read(&path).unwrap();
                    let container = Container::read(&bytes).unwrap();
                    assert!(verify(&container, &bytes, |_| (), |_| ()).is_empty());
                }
            });
        }
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
