//! Waiting for a condition with a deadline: the only way in which tests and scripts wait.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// A condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("waited {waited:?} for {what}, in vain: {last}")]
pub struct Timeout {
    /// What was waited for.
    pub what: String,
    /// For how long.
    pub waited: Duration,
    /// Why the condition was not met when it was last looked at.
    pub last: String,
}

/// Calls `condition` until it returns `Ok`, and returns that; after `limit` the last `Err` says what was missing.
pub fn wait_until<T, E: Display>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T, E>,
) -> Result<T, Timeout> {
    let start = Instant::now();
    loop {
        let missing = match condition() {
            Ok(value) => return Ok(value),
            Err(missing) => missing,
        };
        if start.elapsed() >= limit {
            let last = missing.to_string();
            return Err(Timeout { what: what.to_owned(), waited: start.elapsed(), last });
        }
        thread::sleep(PAUSE);
    }
}
