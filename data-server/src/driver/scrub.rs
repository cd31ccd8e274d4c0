//! When groups are scrubbed: one of those that this server leads at a time, the longest overdue first, with what
//! clients and recovery leave.

use super::{Driver, TICK, unix_s};
use protocol::PgId;
use protocol::data::{DataError, DataReply, DataResponse};
use std::rc::Rc;

/// Bytes compared and read per second while nobody else wants the disk ...
const IDLE_BYTES: i64 = 64 << 20;
/// ... and while somebody does.
const BUSY_BYTES: i64 = 6 << 20;

/// How often groups are scrubbed, in seconds; 0 for only when an administrator says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubIntervals {
    /// Copies are compared.
    pub light_s: u64,
    /// Every block of every copy is read too.
    pub deep_s: u64,
}

impl Default for ScrubIntervals {
    fn default() -> Self {
        Self { light_s: 24 * 3600, deep_s: 7 * 24 * 3600 }
    }
}

impl Driver {
    /// Lets the scrub under way go on, or begins the next one.
    pub(super) fn scrub_on(self: &Rc<Self>, busy: bool) {
        let per_tick = if busy { BUSY_BYTES } else { IDLE_BYTES } / (1000 / TICK.as_millis() as i64);
        let ScrubIntervals { light_s, deep_s } = self.scrub_every.get();
        let now = unix_s();
        let (next, reading) = {
            let groups = self.groups.borrow();
            let due = groups.iter().filter_map(|(pg, replica)| {
                let (since, deep) = replica.scrub_due(now, light_s, deep_s)?;
                Some((since, *pg, deep, replica.is_scrubbing()))
            });
            // One under way is due since ever, so that it comes first.
            let next = due.min_by_key(|(since, pg, ..)| (*since, *pg));
            let reading = groups.iter().filter(|(_, replica)| replica.is_verifying()).map(|(pg, _)| *pg);
            (next, reading.collect::<Vec<PgId>>())
        };
        let share = per_tick / (1 + reading.len() as i64);
        if let Some((_, pg, deep, is_running)) = next {
            if !is_running {
                self.step(pg, |replica, cx| {
                    replica.handle_scrub_start(cx, deep);
                });
            }
            self.step(pg, |replica, cx| replica.handle_scrub_credit(cx, share));
        }
        for pg in reading {
            self.step(pg, |replica, cx| replica.handle_scrub_credit(cx, share));
        }
    }

    /// An administrator wants these groups scrubbed.
    pub(super) fn start_scrubs(self: &Rc<Self>, pgs: &[PgId], deep: bool) -> DataResponse {
        for pg in pgs {
            let mut leads = false;
            self.step(*pg, |replica, cx| leads = replica.handle_scrub_start(cx, deep));
            if !leads {
                let map = self.map.borrow();
                let config = map.as_ref().and_then(|map| map.pgs.get(pg));
                return Err(DataError::NotPrimary { version: config.map_or(0, |config| config.version) });
            }
        }
        Ok(DataReply::Scrubbing)
    }
}
