//! Ctrl-C: what is temporary goes, and a line says what is left.

use std::thread;

use dwindle_formats::output::discard;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Ends the process on a signal, as if nobody had waited for it, but without temporary files. `after`
/// is what the user is told.
pub fn tidy(after: &'static str) {
    // Without it the next run tidies up.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else {
        return;
    };
    thread::spawn(move || {
        for signal in signals.forever() {
            discard();
            eprintln!("\n{after}");
            drop(emulate_default_handler(signal));
        }
    });
}
