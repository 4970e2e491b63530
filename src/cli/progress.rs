//! Progress bars and notes on stderr.

use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::report::{report_fallbacks, report_zeros};
use crate::plan::Plan;
use crate::progress::{Progress, Unit};

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

/// A bar over work whose units mean nothing to users.
pub fn share(what: &'static str) -> ProgressBar {
    bar(0, what, "{msg:12} {bar:30} {percent:>3} %  {eta} left")
}

fn bar(total: u64, what: &'static str, template: &str) -> ProgressBar {
    // indicatif draws nothing when stderr is not a terminal.
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.with_message(what)
}

/// Shows the library's progress as bars and notes on stderr.
#[derive(Default)]
pub struct Terminal(Mutex<Option<ProgressBar>>);

impl Terminal {
    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Terminal {
    fn begin(&self, stage: &'static str, total: u64, unit: Unit) {
        *self.bar() = Some(match unit {
            Unit::Bytes => bytes(total, stage),
            Unit::Share => share(stage),
            _ => count(total, stage),
        });
    }

    fn advance(&self, units: u64) {
        if let Some(bar) = &*self.bar() {
            bar.inc(units);
        }
    }

    fn reach(&self, done: u64, total: u64) {
        if let Some(bar) = &*self.bar() {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bar().take() {
            bar.finish_and_clear();
        }
    }

    fn planned(&self, plan: &Plan, is_stock: bool) {
        report_fallbacks(plan);
        report_zeros(plan, is_stock);
    }

    fn note(&self, text: &str) {
        eprintln!("note: {text}");
    }

    fn warn(&self, text: &str) {
        eprintln!("warning: {text}");
    }
}
