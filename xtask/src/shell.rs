//! Running other programs and saying so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The program with its arguments, as a user would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|w| {
            let w = w.to_string_lossy();
            match w.strip_prefix(&*root().to_string_lossy()) {
                Some(rest) => rest.trim_start_matches('/').to_string(),
                None => w.into_owned(),
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a program in the repository's root, its output shown.
pub fn run(command: &mut Command) -> Result<(), String> {
    eprintln!("$ {}", line(command));
    let status = command
        .current_dir(root())
        .status()
        .map_err(|e| format!("`{}` does not start: {e}", line(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{}` failed: {status}", line(command)))
    }
}

/// Runs a program in the repository's root and gives what it printed on stdout.
pub fn output(command: &mut Command) -> Result<String, String> {
    eprintln!("$ {}", line(command));
    let output = command
        .current_dir(root())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("`{}` does not start: {e}", line(command)))?;
    if !output.status.success() {
        return Err(format!("`{}` failed: {}", line(command), output.status));
    }
    String::from_utf8(output.stdout).map_err(|e| e.to_string())
}

/// Runs a program in the repository's root and reads what it printed as JSON.
pub fn json(command: &mut Command) -> Result<Value, String> {
    serde_json::from_str(&output(command)?).map_err(|e| e.to_string())
}

/// A number in a report.
pub fn number(value: &Value, path: &str) -> Result<f64, String> {
    value
        .pointer(path)
        .and_then(Value::as_f64)
        .ok_or_else(|| format!("the report lacks `{path}`"))
}

/// Runs a program that is silent for minutes, and says every half minute that it still runs.
pub fn run_patiently(command: &mut Command, what: &str) -> Result<(), String> {
    let (done, waiting) = mpsc::channel::<()>();
    let what = what.to_string();
    let start = Instant::now();
    let ticker = thread::spawn(move || {
        while let Err(mpsc::RecvTimeoutError::Timeout) =
            waiting.recv_timeout(Duration::from_secs(30))
        {
            eprintln!("… {what}: {} s so far", start.elapsed().as_secs());
        }
    });
    let result = run(command);
    drop(done);
    // The ticker only sleeps and prints.
    let _ = ticker.join();
    result
}

/// `cargo` with the profile that every command of the project uses, so that llama.cpp is compiled
/// once.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// Whether cargo knows a subcommand that is installed apart from it.
pub fn has_subcommand(name: &str) -> bool {
    cargo(&[name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
