//! The lines that tell what happens.

use std::collections::VecDeque;

/// Lines that a failure shows.
const KEPT: usize = 400;

/// What becomes of the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TraceMode {
    /// Nothing: the fastest.
    #[default]
    Off,
    /// The last ones are kept for a failure.
    Keep,
    /// All are printed.
    Print,
}

#[derive(Default)]
pub(crate) struct Trace {
    mode: TraceMode,
    lines: VecDeque<String>,
}

impl Trace {
    pub(crate) fn new(mode: TraceMode) -> Trace {
        Trace { mode, lines: VecDeque::new() }
    }

    pub(crate) fn line(&mut self, time: u64, line: impl FnOnce() -> String) {
        match self.mode {
            TraceMode::Off => {}
            TraceMode::Print => println!("{:>9} {}", time, line()),
            TraceMode::Keep => {
                if self.lines.len() == KEPT {
                    self.lines.pop_front();
                }
                self.lines.push_back(format!("{time:>9} {}", line()));
            }
        }
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}
