//! `dwindle submit`: a script that compresses a model on the machines of a Slurm cluster.

use clap::Parser;

use super::Failure;
use super::output::line;

/// Print a shell script that runs `compress` on a Slurm cluster
///
/// The script submits an array job that measures the model in parts, and one behind it that writes and
/// verifies the file. What a lost part leaves out, the second job measures itself. The folder of workspaces
/// must be one that all machines share.
#[derive(Debug, Parser)]
pub struct Args {
    /// Parts to measure side by side; with `--effort fast` up to 8 are of use, else as many as the model has
    /// blocks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=9999))]
    parts: u32,
    /// Options for every sbatch, such as `--mem=8G --cpus-per-task=8`
    #[arg(
        long,
        value_name = "OPTIONS",
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true
    )]
    sbatch: String,
    /// The program, as the machines find it
    #[arg(long, default_value = "dwindle")]
    program: String,
    /// What `dwindle compress` is to be called with: a checkpoint, a target, `-o` and `--workspace`
    #[arg(last = true, required = true, value_name = "ARGS")]
    compress: Vec<String>,
}

/// Runs `dwindle submit`.
pub fn main(args: &Args) -> Result<(), Failure> {
    let output = args.output()?;
    if !args
        .compress
        .iter()
        .any(|a| a == "--workspace" || a.starts_with("--workspace="))
    {
        return Err(Failure::Usage(
            "`--workspace DIR` is missing behind `--`: a folder that all machines share".into(),
        ));
    }
    line(args.script(&output).trim_end())
}

impl Args {
    /// The file that `compress` writes.
    fn output(&self) -> Result<String, Failure> {
        let mut words = self.compress.iter();
        let named = words.find_map(|word| match word.strip_prefix("--output=") {
            Some(named) => Some(Some(named.to_string())),
            None => is_output(word).then_some(None),
        });
        let named = named.and_then(|here| here.or(words.next().cloned()));
        named.ok_or_else(|| {
            Failure::Usage("`-o FILE` is missing behind `--`: the file to write".into())
        })
    }

    fn script(&self, output: &str) -> String {
        let quoted = |words: &[String]| {
            let words: Vec<String> = words.iter().map(|word| shell(word)).collect();
            words.join(" ")
        };
        let program = shell(&self.program);
        let measuring = format!(
            "{program} compress {}",
            quoted(&without_output(&self.compress))
        );
        let writing = format!("{program} compress {}", quoted(&self.compress));
        let verifying = format!("{program} verify {}", shell(output));
        let parts = self.parts;
        let options = &self.sbatch;
        format!(
            "#!/bin/sh
# Submits two jobs: the parts of the measurement, and the file.
set -e
parts=$(sbatch --parsable --job-name=dwindle-measure --requeue --array=1-{parts} {options} <<'JOB'
#!/bin/sh
exec {measuring} --part \"$SLURM_ARRAY_TASK_ID/{parts}\"
JOB
)
file=$(sbatch --parsable --job-name=dwindle-write --requeue --dependency=\"afterany:${{parts%%;*}}\" {options} <<'JOB'
#!/bin/sh
set -e
{writing}
{verifying}
JOB
)
echo \"measuring: job ${{parts%%;*}}, writing: job ${{file%%;*}}\"
"
        )
    }
}

/// The arguments without the output: a part writes none.
fn without_output(words: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if is_output(word) {
            words.next();
        } else if !word.starts_with("--output=") {
            out.push(word.clone());
        }
    }
    out
}

/// Whether a word says that the next one is the output.
fn is_output(word: &str) -> bool {
    word == "-o" || word == "--output"
}

/// A word as a shell reads it back.
fn shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,%+@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_from_a_shell_as_they_were() {
        for word in [
            "", "a b", "it's", "$HOME", "40%", "`x`", "a\\b", "\"q\"", "--x=y",
        ] {
            let script = format!("printf %s {}", shell(word));
            let output = std::process::Command::new("sh")
                .args(["-c", &script])
                .output();
            assert_eq!(output.map(|o| o.stdout).ok(), Some(word.into()), "{word}");
        }
    }
}
