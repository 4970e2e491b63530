//! `dwindle export --format hf`: what was converted goes back, and converts to the same again.

use std::path::Path;

use dwindle_formats::gguf::read_header;
use tempfile::tempdir;

use crate::common::program;
use crate::common::program::{dwindle, refusal, says, sentence, stdout};
use crate::common::record::Record;

/// Names, shapes, types and bytes of all tensors, and the metadata without what names the file.
fn contents(file: &Path) -> (Vec<String>, Vec<Vec<u8>>) {
    let bytes = std::fs::read(file).unwrap();
    let header = read_header(&bytes).unwrap();
    let metadata = header.metadata.iter().filter(|(key, _)| {
        !key.starts_with("dwindle.") && !["general.name", "general.size_label"].contains(key)
    });
    let mut words: Vec<String> = metadata.map(|(k, v)| format!("{k} = {v:?}")).collect();
    let mut tensors: Vec<_> = header.tensors.iter().collect();
    tensors.sort_by_key(|t| &t.name);
    let mut data = Vec::new();
    for t in tensors {
        words.push(format!("{} {:?} {}", t.name, t.shape, t.ty));
        let start = (header.data_start + t.offset) as usize;
        let len = t.ty.bytes(&t.shape).unwrap() as usize;
        data.push(bytes[start..start + len].to_vec());
    }
    words.sort();
    (words, data)
}

#[test]
fn every_family_goes_back_and_comes_again() {
    let dir = tempdir().unwrap();
    let mut exported = 0;
    for record in Record::all() {
        let name = &record.name;
        let (model, back) = (dir.path().join("model"), dir.path().join("back"));
        let (first, second) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
        for old in [&model, &back] {
            let _ = std::fs::remove_dir_all(old);
        }
        record.write(&model);
        let compress = |from: &Path, to: &Path| {
            let mut command = dwindle(["compress", "--preset", "source"]);
            stdout(command.arg(from).arg("-o").arg(to));
        };
        compress(&model, &first);
        let mut command = dwindle(["export", "--format", "hf"]);
        command.arg(&first).arg("--checkpoint").arg(&model);
        command.arg("-o").arg(&back);
        let output = command.output().unwrap();
        if !output.status.success() {
            // Its weights lie in the checkpoint in another form.
            says(&sentence(&output, 3), &["export"]);
            continue;
        }
        compress(&back, &second);
        assert!(contents(&first) == contents(&second), "{name}");
        says(&refusal(&mut command, 3), &["is there already"]);
        exported += 1;
    }
    assert!(exported > 20, "{exported}");
}

#[test]
fn a_quantized_file_goes_back_in_half_precision_and_another_family_is_refused() {
    let dir = tempdir().unwrap();
    let (small, back) = (dir.path().join("small.gguf"), dir.path().join("back"));
    stdout(&mut program::compress("q8_0", &small));
    let export = |checkpoint: &Path| {
        let mut command = dwindle(["export", "--format", "hf", "--json"]);
        command.arg(&small).arg("--checkpoint").arg(checkpoint);
        command.arg("-o").arg(&back);
        command
    };
    stdout(&mut export(&program::checkpoint()));
    let config = std::fs::read_to_string(back.join("config.json")).unwrap();
    says(&config, &["\"float16\""]);
    let again = dir.path().join("again.gguf");
    stdout(
        dwindle(["compress", "--preset", "q8_0"])
            .arg(&back)
            .arg("-o")
            .arg(&again),
    );
    // Blocks of 32 with their scale: rounded once, they are rounded to themselves.
    let sizes = [&small, &again].map(|f| std::fs::metadata(f).unwrap().len());
    assert!(sizes[0].abs_diff(sizes[1]) < 256, "{sizes:?}");

    let other = dir.path().join("other");
    Record::of("qwen3").write(&other);
    std::fs::remove_dir_all(&back).unwrap();
    let sentence = refusal(&mut export(&other), 3);
    says(&sentence, &["architecture `llama`", "a `qwen3`"]);
    assert!(!back.exists());
}
