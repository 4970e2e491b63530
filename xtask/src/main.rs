//! Everything the project does to itself; `cargo xtask` alone lists it.

mod demo;
mod docs;
mod gpu;
mod hostile;
mod methods;
mod native;
mod scale;
mod setup;
mod shell;
mod smaller;
mod soak;
mod subject;
mod test;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND

  demo   get what is missing, build, compress the fixture model in several ways, verify, run and
         evaluate each, and print one table
  docs   write docs/cli.md anew, from the program
  gpu vulkan|cuda [FEATURE...]
         build with that feature (and more), into target/vulkan or target/cuda, say what is linked, and hold
         what models give on the GPU against the CPU; docs/running.md says what must be installed
  methods [MODEL CALIBRATION-TEXT TEST-TEXT]
         print one table of what every method costs a model, the fixture by default
  smaller [MODEL CALIBRATION-TEXT TEST-TEXT]
         print one table of smaller models beside quantized ones: bytes, quality, speed, memory
  hostile [METADATA STRUCTURE SEED]
         run and evaluate so many damaged models of each kind, 2000 and 1000 by default
  native build for this processor only, into target/native
  scale [SHAPE...]
         print one table of the time and memory that a file of a size takes, for random weights in the
         shapes of large models; needs up to 10 GB of disk, and an hour or two
  soak [MINUTES]
         serve the fixture to hostile clients on loopback, 10 minutes by default, and say how it
         stood that
  test [--quick]
         everything that CI runs: formatting, lints, documentation, dependencies, tests, fuzz
         targets; --quick leaves out the slow tests, and says which";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["demo"] => setup::prepare().and_then(|()| demo::main()),
        ["docs"] => setup::prepare().and_then(|()| docs::main()),
        ["gpu", ref rest @ ..] => setup::install_missing().and_then(|()| gpu::main(rest)),
        ["methods", ref rest @ ..] => setup::prepare().and_then(|()| methods::main(rest)),
        ["smaller", ref rest @ ..] => setup::prepare().and_then(|()| smaller::main(rest)),
        ["hostile", ref rest @ ..] => setup::prepare().and_then(|()| hostile::main(rest)),
        ["native"] => setup::install_missing().and_then(|()| native::main()),
        ["scale", ref rest @ ..] => setup::prepare().and_then(|()| scale::main(rest)),
        ["soak", ref rest @ ..] => setup::prepare().and_then(|()| soak::main(rest)),
        ["test"] => setup::install_missing().and_then(|()| test::main()),
        ["test", "--quick"] => setup::install_missing().and_then(|()| test::quick()),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
