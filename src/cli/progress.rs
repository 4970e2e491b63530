//! Progress on stderr; quiet when nobody watches.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over bytes: done, total, rate, time left.
pub fn bytes(total: u64, what: &'static str) -> ProgressBar {
    bar(
        total,
        what,
        "{msg:12} {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12}  {eta} left",
    )
}

/// A bar over things that are counted.
pub fn count(total: u64, what: &'static str) -> ProgressBar {
    bar(
        total,
        what,
        "{msg:12} {bar:30} {pos:>6}/{len:6}  {eta} left",
    )
}

/// A bar over work whose units say nothing to people.
pub fn share(what: &'static str) -> ProgressBar {
    bar(0, what, "{msg:12} {bar:30} {percent:>3} %  {eta} left")
}

fn bar(total: u64, what: &'static str, template: &str) -> ProgressBar {
    // indicatif draws nothing when stderr is no terminal.
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.with_message(what)
}
