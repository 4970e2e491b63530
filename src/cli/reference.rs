//! The command-line reference, generated from the tree that parses the arguments.

use clap::builder::StyledStr;
use clap::{Arg, Command};

use super::Failure;
use super::output::line;

const HEAD: &str = "\
# Command line

This page is generated from the program by `cargo xtask docs`; a test fails where the two differ.
`dwindle COMMAND --help` prints the same.
";

/// Prints the page for this command tree.
pub fn main(tree: Command) -> Result<(), Failure> {
    line(page(tree).trim_end())
}

/// The whole page: the program, then each command that is not hidden.
fn page(mut tree: Command) -> String {
    tree.build();
    let mut page = HEAD.to_string();
    section(&mut page, &tree, "dwindle");
    for command in shown(&tree) {
        section(
            &mut page,
            command,
            &format!("dwindle {}", command.get_name()),
        );
    }
    page
}

/// Commands that are shown to users.
fn shown(tree: &Command) -> impl Iterator<Item = &Command> {
    tree.get_subcommands()
        .filter(|c| !c.is_hide_set() && c.get_name() != "help")
}

/// One command: what it is for, how it is called, what each argument means.
fn section(page: &mut String, command: &Command, name: &str) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    let about = text(command.get_long_about().or(command.get_about()));
    page.push_str(&format!(
        "\n## `{name}`\n\n{about}\n\n```text\n{usage}\n```\n"
    ));
    let mut commands = shown(command).peekable();
    if commands.peek().is_some() {
        page.push_str("\nCommands:\n\n");
    }
    for command in commands {
        let link = format!("dwindle-{}", command.get_name());
        let about = text(command.get_about());
        page.push_str(&format!("- [`{}`](#{link}): {about}\n", command.get_name()));
    }
    let arguments = command.get_positionals().filter(|a| !a.is_hide_set());
    list(page, "Arguments", arguments);
    // `--help` and `--version` explain themselves.
    let own = |a: &&Arg| !a.is_hide_set() && !matches!(a.get_id().as_str(), "help" | "version");
    list(
        page,
        "Options",
        command.get_opts().chain(flags(command)).filter(own),
    );
    let after = text(command.get_after_long_help());
    if !after.is_empty() {
        page.push_str(&format!("\n```text\n{after}\n```\n"));
    }
}

/// Options without a value.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    let takes_none = |a: &&Arg| !a.is_positional() && !a.get_action().takes_values();
    command.get_arguments().filter(takes_none)
}

/// A list of arguments under a heading; nothing where there are none.
fn list<'a>(page: &mut String, heading: &str, args: impl Iterator<Item = &'a Arg>) {
    for (i, arg) in args.enumerate() {
        if i == 0 {
            page.push_str(&format!("\n{heading}:\n\n"));
        }
        entry(page, arg);
    }
}

/// One argument: its names, its help, its default and the values that it takes.
fn entry(page: &mut String, arg: &Arg) {
    let help = text(arg.get_long_help().or(arg.get_help())).replace("\n\n", "\n\n  ");
    page.push_str(&format!("- {}: {help}", names(arg)));
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|v| v.to_string_lossy())
        .collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        page.push_str(&format!(" (default: `{}`)", defaults.join(",")));
    }
    page.push('\n');
    if !arg.get_action().takes_values() {
        return;
    }
    for value in arg
        .get_possible_values()
        .iter()
        .filter(|v| !v.is_hide_set())
    {
        let help = text(value.get_help());
        let colon = if help.is_empty() { "" } else { ": " };
        page.push_str(&format!("  - `{}`{colon}{help}\n", value.get_name()));
    }
}

/// `-o`, `--output <FILE>` and aliases; `<FILE>` for positional arguments.
fn names(arg: &Arg) -> String {
    let values: Vec<String> = arg
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(|v| format!("<{v}>"))
        .collect();
    let values = values.join(" ");
    if arg.is_positional() {
        return format!("`{values}`");
    }
    let short = arg.get_short().map(|c| format!("-{c}"));
    let long = arg.get_long().map(|l| format!("--{l}"));
    let aliases = arg.get_visible_aliases().unwrap_or_default();
    let mut names: Vec<String> = short.into_iter().chain(long).collect();
    names.extend(aliases.iter().map(|a| format!("--{a}")));
    if let Some(last) = names.last_mut().filter(|_| arg.get_action().takes_values()) {
        last.push_str(&format!(" {values}"));
    }
    let names: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    names.join(", ")
}

fn text(styled: Option<&StyledStr>) -> String {
    styled
        .map(ToString::to_string)
        .unwrap_or_default()
        .trim()
        .to_string()
}
