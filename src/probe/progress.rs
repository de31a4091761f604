//! Progress of long work, on standard error where a person looks at it; else nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Console;

/// How often what is shown moves by itself.
const TICK: Duration = Duration::from_millis(100);

/// A bar towards so much, drawn by this template of `indicatif`; it goes away when it is dropped.
pub(super) fn bar(console: &Console, total: u64, template: &str) -> ProgressBar {
    let bar = new(console, ProgressBar::new(total));
    let style = ProgressStyle::with_template(template).expect("a template of ours");
    bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    bar
}

/// A sign of life beside a text that changes, where nobody knows how long it takes.
pub(super) fn spinner(console: &Console) -> ProgressBar {
    let spinner = new(console, ProgressBar::new_spinner());
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("a template of ours");
    spinner.set_style(style);
    spinner
}

fn new(console: &Console, bar: ProgressBar) -> ProgressBar {
    if console.progress {
        bar.enable_steady_tick(TICK);
    } else {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.with_finish(indicatif::ProgressFinish::AndClear)
}
