//! A model that is loaded and unloaded leaves nothing behind. Alone in its process, whose memory it
//! watches.

#[path = "../common/mod.rs"]
mod common;

use dwindle::llama::context::{Context, ContextOptions};
use dwindle::llama::model::ModelOptions;
use dwindle::runtime::{Factors, load};
use tempfile::tempdir;

use crate::common::program::{dwindle, stdout};
use crate::common::tiny::{Kind, batch, low_rank};

const CYCLES: u64 = 200;

#[test]
fn loading_again_and_again_leaks_nothing() {
    let dir = tempdir().unwrap();
    let (model, file) = (dir.path().join("model.gguf"), dir.path().join("x.dwn"));
    low_rank(Kind::Tied, 32).write(&model);
    let recipe = dir.path().join("recipe.toml");
    let rule = "type = \"f16\"\n[[rule]]\nroles = [\"ffn_up\", \"token_embd\"]\n\
                method = \"svd\"\nrank = 32\n";
    std::fs::write(&recipe, rule).unwrap();
    let mut compress = dwindle(["compress"]);
    compress.arg(&model).arg("--recipe").arg(&recipe);
    stdout(compress.arg("-o").arg(&file));

    let cycle = || {
        let options = ModelOptions::default();
        let model = load(&file, &options, Factors::Executed, &mut |_, _| ()).unwrap();
        let mut context = Context::new(&model, &ContextOptions::default()).unwrap();
        context.decode(&batch(&[1, 70, 71, 72])).unwrap();
    };
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    };
    (0..20).for_each(|_| cycle());
    let before = resident();
    (0..CYCLES).for_each(|_| cycle());
    let after = resident();
    // Allocators wander; a twentieth of each load lost would be more.
    let lost = CYCLES * std::fs::metadata(&file).unwrap().len() / 20;
    assert!(
        after < before + lost,
        "{before} bytes before, {after} after"
    );
}
