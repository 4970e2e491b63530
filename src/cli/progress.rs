//! Progress bars and notes on stderr.

use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

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

/// Where stderr is no terminal, a line says so often how far long work is.
const EVERY: Duration = Duration::from_secs(10);

/// Shows the library's progress as bars and notes on stderr.
#[derive(Default)]
pub struct Terminal {
    bar: Mutex<Option<ProgressBar>>,
    told: Mutex<Option<Instant>>,
}

impl Terminal {
    fn bar(&self) -> MutexGuard<'_, Option<ProgressBar>> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells in a line how far the work is, where no bar is drawn.
    fn tell(&self, bar: &ProgressBar) {
        if !bar.is_hidden() || std::io::stderr().is_terminal() {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.get_or_insert_with(Instant::now);
        if last.elapsed() < EVERY {
            return;
        }
        *last = Instant::now();
        let share = bar.position() as f64 / bar.length().unwrap_or(0).max(1) as f64;
        eprintln!(
            "{}: {:.0} %, about {} left",
            bar.message(),
            100.0 * share,
            HumanDuration(bar.eta())
        );
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
            self.tell(bar);
        }
    }

    fn reach(&self, done: u64, total: u64) {
        if let Some(bar) = &*self.bar() {
            bar.set_length(total);
            bar.set_position(done);
            self.tell(bar);
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

    fn reuse(&self, what: &str) {
        eprintln!("note: used again from the workspace: {what}");
    }

    fn note(&self, text: &str) {
        eprintln!("note: {text}");
    }

    fn warn(&self, text: &str) {
        eprintln!("warning: {text}");
    }
}
