//! Waiting a little longer each time.

use std::time::Duration;

/// Doubles from the first wait to the longest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// From 2 ms to 50 ms: somebody else is about to finish.
    pub(crate) const fn short() -> Self {
        Self::new(Duration::from_millis(2), Duration::from_millis(50))
    }

    /// How long to wait now.
    pub(crate) fn step(&mut self) -> Duration {
        let now = self.next;
        self.next = (self.next * 2).min(self.longest);
        now
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.step()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_its_limit() {
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(9));
        let steps: Vec<u128> = (0..5).map(|_| backoff.step().as_millis()).collect();
        assert_eq!(steps, [2, 4, 8, 9, 9]);
    }
}
