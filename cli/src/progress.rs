//! Progress of something that takes long: a bar on a terminal, lines otherwise.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// Without a terminal a line is printed when something changed, at most this often.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// The most that was ever to be done.
    total: u64,
    last: Option<(Instant, String)>,
}

impl Progress {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(1).with_style(style)
        });
        Self { bar, total: 0, last: None }
    }

    /// So much is left; `message` says it for people.
    pub(crate) fn show(&mut self, left: u64, message: &str) {
        self.total = self.total.max(left);
        if let Some(bar) = &self.bar {
            bar.set_length(self.total.max(1));
            bar.set_position(self.total - left);
            bar.set_message(message.to_owned());
            return;
        }
        let due = self.last.as_ref().is_none_or(|(at, text)| text != message && at.elapsed() >= LINE_EVERY);
        if due {
            println!("{message}");
            self.last = Some((Instant::now(), message.to_owned()));
        }
    }

    /// It ended; the bar goes, `message` stays.
    pub(crate) fn end(self, message: &str) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        println!("{message}");
    }
}
