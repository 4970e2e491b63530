//! Texts that have ended are parked, and others that begin alike are not read again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::program::{checkpoint, compress, dwindle, fixture, refusal, says, stdout};
use crate::common::record::Record;
use crate::common::server::{Server, request};

const PROMPT: &str = "In the beginning God created the heaven and the earth. And the earth was without form, and void; and \
                      darkness was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And";

/// What is said, and how many tokens of the prompt were remembered and how many there are.
#[track_caller]
fn asked(server: &Server, body: &Value) -> (String, [u64; 2]) {
    let (status, body) = server.post("/v1/completions", body);
    assert_eq!(status, 200, "{body}");
    let usage = &body["usage"];
    let recalled = &usage["prompt_tokens_details"]["cached_tokens"];
    let counts = [recalled, &usage["prompt_tokens"]].map(|n| n.as_u64().unwrap());
    (body["choices"][0]["text"].as_str().unwrap().into(), counts)
}

/// Parked files of all models, once there are so many.
#[track_caller]
fn parked(dir: &Path, count: usize) -> Vec<PathBuf> {
    let begin = Instant::now();
    loop {
        let folders = std::fs::read_dir(dir).into_iter().flatten();
        let folders = folders.filter_map(|f| std::fs::read_dir(f.unwrap().path()).ok());
        let files = folders.flatten().map(|file| file.unwrap().path());
        let files: Vec<PathBuf> = files
            .filter(|f| f.extension().is_some_and(|e| e == "dwkv"))
            .collect();
        if files.len() == count {
            return files;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{files:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Options of a server that parks in a folder.
fn parking<'a>(ctx: &'a str, folder: &'a Path) -> [&'a str; 6] {
    let folder = folder.to_str().unwrap();
    ["--ctx", ctx, "--park", "64MiB", "--park-dir", folder]
}

#[test]
fn a_text_that_begins_alike_is_not_read_again_even_by_the_next_server() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("parked");
    let options = parking("256", &path);
    let server = Server::start(&checkpoint(), &options);
    let (answer, [recalled, all]) = asked(&server, &request(PROMPT, 24));
    assert_eq!(recalled, 0);
    let (again, [recalled, _]) = asked(&server, &request(PROMPT, 24));
    assert_eq!((again, recalled), (answer.clone(), all - 1));
    let files = parked(&path, 1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = files[0].parent().unwrap();
        let mode = std::fs::metadata(folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "what was asked is nobody else's");
    }
    // Another text with the same beginning, and one that goes on, in whose place the shorter one goes.
    let other = &PROMPT[..PROMPT.len() - 40];
    let fresh = asked(
        &Server::start(&checkpoint(), &["--ctx", "256"]),
        &request(other, 24),
    );
    let (text, [recalled, all]) = asked(&server, &request(other, 24));
    // Its last word is another token.
    assert_eq!(text, fresh.0);
    assert!(recalled + 3 > all, "{recalled} of {all}");
    let longer = format!("{PROMPT}{answer} And God said");
    let (_, [recalled, longer_all]) = asked(&server, &request(&longer, 1));
    assert!(recalled > all && recalled < longer_all);
    parked(&path, 2);
    server.kill();

    let server = Server::start(&checkpoint(), &options);
    let (again, [recalled, all]) = asked(&server, &request(PROMPT, 24));
    assert_eq!((again, recalled), (answer, all - 1));
}

#[test]
fn clients_share_a_beginning_and_models_share_nothing() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("parked");
    let folder = parking("256", &path);
    let server = Server::start(&checkpoint(), &[&folder[..], &["--parallel", "3"]].concat());
    asked(&server, &request(PROMPT, 1));
    std::thread::scope(|scope| {
        for end in [" Adam", " and Eve", " said unto him"] {
            let server = &server;
            scope.spawn(move || {
                let (_, [recalled, all]) = asked(server, &request(&format!("{PROMPT}{end}"), 8));
                assert!(recalled + 8 > all, "{recalled} of {all}");
            });
        }
    });
    parked(&path, 3);
    // Each server removes what is too much, so that there is one.
    let mut second = dwindle(["serve", "--port", "0"]);
    let error = refusal(second.args(folder).arg(checkpoint()), 3);
    says(&error, &["another server", "parked", "another folder"]);
    server.kill();

    // The same weights that compute something else, and the same in another type.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for file in std::fs::read_dir(checkpoint()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), other.join(file.file_name())).unwrap();
    }
    let config = std::fs::read_to_string(other.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["rms_norm_eps"] = json!(0.02);
    std::fs::write(other.join("config.json"), config.to_string()).unwrap();
    let quantized = dir.path().join("q8_0.gguf");
    stdout(&mut compress("q8_0", &quantized));
    for model in [&other, &quantized] {
        let server = Server::start(model, &folder);
        assert_eq!(
            asked(&server, &request(PROMPT, 1)).1[0],
            0,
            "{}",
            model.display()
        );
    }
}

#[test]
fn texts_are_packed_by_a_codebook() {
    let dir = tempdir().unwrap();
    let codebook = dir.path().join("codebook");
    let mut calibrate = dwindle(["cache", "calibrate", "--window", "192", "--windows", "6"]);
    calibrate
        .args(["--trials", "2"])
        .arg(checkpoint())
        .arg("-o")
        .arg(&codebook);
    stdout(calibrate.arg("--text").arg(fixture("kjv-calibration.txt")));
    let text = std::fs::read_to_string(fixture("kjv-heldout.txt")).unwrap();
    let prompt: String = text.chars().take(700).collect();
    let mut sizes = Vec::new();
    for own in [None, Some(codebook.to_str().unwrap())] {
        let path = dir.path().join("parked");
        let folder = parking("512", &path);
        let own: Vec<&str> = own
            .into_iter()
            .flat_map(|own| ["--codebook", own])
            .collect();
        let server = Server::start(&checkpoint(), &[&folder[..], &own].concat());
        let (answer, [recalled, all]) = asked(&server, &request(&prompt, 12));
        assert_eq!(recalled, 0, "what another codebook has packed is not found");
        sizes.push(parked(&path, sizes.len() + 1));
        server.kill();
        let server = Server::start(&checkpoint(), &[&folder[..], &own].concat());
        let (again, [recalled, _]) = asked(&server, &request(&prompt, 12));
        assert_eq!((&again[..16], recalled), (&answer[..16], all - 1));
    }
    let bytes = |file: &PathBuf| std::fs::metadata(file).unwrap().len();
    let mut sizes: Vec<u64> = sizes[1].iter().map(bytes).collect();
    sizes.sort_unstable();
    assert!(sizes[0] * 4 < sizes[1], "{sizes:?}");

    let other = dir.path().join("other");
    Record::of("llama").write(&other);
    let mut serve = dwindle(["serve", "--port", "0", "--park", "1G", "--codebook"]);
    let error = refusal(serve.arg(&codebook).arg(&other), 3);
    says(
        &error,
        &["codebook of another model", "dwindle cache calibrate"],
    );
}

#[test]
fn a_damaged_file_is_ignored_with_a_warning() {
    let dir = tempdir().unwrap();
    let options = parking("256", dir.path());
    let server = Server::start(&checkpoint(), &options);
    let (answer, _) = asked(&server, &request(PROMPT, 24));
    let file = parked(dir.path(), 1).remove(0);
    server.kill();
    let sound = std::fs::read(&file).unwrap();
    // In the description, which is read at the start, and in a record, which is read when it is needed.
    for (at, is_seen_at_start) in [(40, true), (sound.len() * 3 / 4, false)] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let mut server = Server::start(&checkpoint(), &options);
        let (again, [recalled, _]) = asked(&server, &request(PROMPT, 24));
        assert_eq!((again, recalled), (answer.clone(), 0));
        let warning = match is_seen_at_start {
            true => server.warnings.remove(0),
            false => server.line(),
        };
        let name = file.file_name().unwrap().to_str().unwrap();
        says(&warning, &["warning:", name, "checksum"]);
        // The text that was read takes its place.
        let begin = Instant::now();
        while std::fs::read(&file).unwrap() != sound {
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
        server.kill();
    }
}

#[test]
fn every_kind_of_memory_comes_back() {
    let dir = tempdir().unwrap();
    for name in ["llama", "gemma3", "granitehybrid", "lfm2"] {
        let model = dir.path().join(name);
        Record::of(name).write(&model);
        let server = Server::start(&model, &["--ctx", "256", "--park", "64MiB"]);
        let alone = Server::start(&model, &["--ctx", "256"]);
        let tokens: Vec<u32> = (0..96).map(|i| 20 + i * 7 % 60).collect();
        // All that was read of the first is a beginning of the second.
        let bodies =
            [64, 96].map(|n| json!({"prompt": tokens[..n], "max_tokens": 1, "temperature": 0}));
        for (body, expected) in bodies.iter().zip([0, 64]) {
            let (text, [recalled, _]) = asked(&server, body);
            assert_eq!(recalled, expected, "{name}");
            assert_eq!(text, asked(&alone, body).0, "{name}");
        }
    }
}

#[test]
fn no_more_is_parked_than_there_is_room_for() {
    let dir = tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let server = Server::start(&checkpoint(), &["--ctx", "256", "--park", "1KiB"]);
    for _ in 0..2 {
        assert_eq!(asked(&server, &request(PROMPT, 4)).1[0], 0);
    }
    let mut server = server;
    says(
        &server.line(),
        &["not parked", "bytes before they are packed"],
    );

    // Room for one file only.
    let options = [
        "--park",
        "1MiB",
        "--park-dir",
        path,
        "--park-disk",
        "160KiB",
    ];
    let server = Server::start(&checkpoint(), &[&["--ctx", "256"][..], &options].concat());
    let prompts = [PROMPT, fixture_text()];
    for prompt in prompts {
        asked(&server, &request(prompt, 4));
    }
    let begin = Instant::now();
    while asked(&server, &request(prompts[1], 4)).1[0] == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    parked(dir.path(), 1);
}

/// Some other text.
fn fixture_text() -> &'static str {
    "And it came to pass in those days, that there went out a decree from Caesar Augustus, that all the world should be \
     taxed. And this taxing was first made when Cyrenius was governor of Syria. And all went to be taxed, every one"
}

#[test]
fn what_cant_be_parked_with_is_refused() {
    let refused = |options: &[&str], file: &Path, code: i32| {
        refusal(
            dwindle(["serve", "--port", "0"]).args(options).arg(file),
            code,
        )
    };
    let text = fixture("kjv-heldout.txt");
    let options = ["--park", "1G", "--codebook", text.to_str().unwrap()];
    says(&refused(&options, &checkpoint(), 3), &["kjv-heldout.txt"]);
    let dir = tempdir().unwrap();
    let model = dir.path().join("bert");
    Record::of("bert").write(&model);
    says(
        &refused(&["--park", "1G"], &model, 2),
        &["--park", "embeds"],
    );
}
