//! Saved prompts of models with sliding windows, and of others that are unlike the fixture.

use dwindle_formats::state::{Rows, Section, State, read};

use crate::common::program::{dwindle, fixture, stdout};
use crate::common::record::Record;

/// Parts of the rows of a section: where they are in the file.
fn parts(state: &State, section: usize) -> (&Rows, usize) {
    let Section::Attention(attention) = &state.sections[section] else {
        panic!("a recurrent section");
    };
    let stream = &attention.streams[0];
    (stream.rows.as_ref().unwrap(), stream.positions.len())
}

#[test]
fn windows_are_carried_bit_by_bit_and_the_rest_by_a_codebook() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = std::fs::read_to_string(fixture("kjv-heldout.txt")).unwrap();
    let words: Vec<&str> = text.split_whitespace().take(120).collect();
    // A window beside whole attention, and learned positions in place of RoPE.
    for (name, sections) in [("gemma3", 2), ("gpt2", 1)] {
        let model = at(name);
        Record::of(name).write(&model);
        let mut calibrate = dwindle(["cache", "calibrate", "--window", "96", "--windows", "8"]);
        calibrate
            .args(["--trials", "2", "--percent", "50", "-o"])
            .arg(at("codebook"));
        stdout(
            calibrate
                .arg(&model)
                .arg("--text")
                .arg(fixture("kjv-calibration.txt")),
        );
        let mut run = dwindle(["run", "--temp", "0", "-n", "1", "-p", &words.join(" ")]);
        stdout(run.arg(&model).arg("--save-session").arg(at("state")));
        let mut pack = dwindle(["cache", "pack", "--ratio", "4", "--codebook"]);
        pack.arg(at("codebook"))
            .arg(at("state"))
            .arg("-o")
            .arg(at("packed"));
        stdout(&mut pack);
        let mut unpack = dwindle(["cache", "unpack", "--codebook"]);
        unpack
            .arg(at("codebook"))
            .arg(at("packed"))
            .arg("-o")
            .arg(at("back"));
        stdout(&mut unpack);

        let [before, after] = ["state", "back"].map(|name| std::fs::read(at(name)).unwrap());
        assert_eq!(before.len(), after.len());
        let state = read(&before).unwrap();
        assert_eq!(state.sections.len(), sections, "{name}");
        for section in 0..sections {
            let (rows, cells) = parts(&state, section);
            let mut same = 0;
            let all: Vec<_> = rows.keys.iter().chain(&rows.values).collect();
            for part in &all {
                let range = part.at..part.at + part.row_bytes() * cells;
                same += usize::from(before[range.clone()] == after[range]);
            }
            let expected = if section == 0 { 0 } else { all.len() };
            assert_eq!(same, expected, "{name}: section {section}");
        }
    }
}
