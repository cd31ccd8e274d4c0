//! Tells a disk that is slow from one that has stopped.

use crate::pg::Tick;

/// For how long a disk that owes something has completed nothing. Looked at often; a pause of the whole process
/// counts as a single short look, since nothing could be completed in it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DiskWatch {
    seen: (u64, u64),
    last_look: Tick,
    stalled_ms: u64,
}

/// Time that one look may add, in milliseconds.
const LOOK_MS_MAX: u64 = 1_000;

impl DiskWatch {
    /// `owes`: something was asked for and is not done. `progress` changes whenever something is done. Returns the
    /// milliseconds since then.
    pub(super) fn look(&mut self, now: Tick, owes: bool, progress: (u64, u64)) -> u64 {
        let since_last = now.0.saturating_sub(self.last_look.0).min(LOOK_MS_MAX);
        self.last_look = now;
        if !owes || progress != self.seen {
            (self.seen, self.stalled_ms) = (progress, 0);
        } else {
            self.stalled_ms += since_last;
        }
        self.stalled_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_that_owes_and_does_nothing_stalls() {
        let mut watch = DiskWatch::default();
        let mut now = 1_000;
        let mut look = |ms: u64, owes, progress| {
            now += ms;
            watch.look(Tick(now), owes, progress)
        };
        look(50, true, (1, 0));
        assert_eq!(look(50, true, (1, 0)), 50);
        assert_eq!(look(50, true, (1, 0)), 100);
        assert_eq!(look(50, true, (1, 1)), 0, "a sync was completed");
        assert_eq!(look(9_000, false, (1, 1)), 0, "an idle disk completes nothing");
        assert_eq!(look(50, true, (1, 1)), 50);
        assert_eq!(look(60_000, true, (1, 1)), 1_050, "the process slept");
    }
}
