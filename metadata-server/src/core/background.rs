//! What a leader does without being asked: the first transaction, expiry, placement.

use super::flow::Asker;
use super::{Core, Turn};
use crate::state::key;
use crate::state::layers::{Disk, View};
use crate::state::planner::{PlanInput, UPDATES_MAX, plan};
use crate::state::prep::PgUpdate;
use crush::CrushMap;
use protocol::SessionId;

/// How often clocks are looked at, in milliseconds.
const TICK_MS: u64 = 100;
/// A planner that nobody wakes looks this often (learners may be added after a wait), in milliseconds.
const PLAN_INTERVAL_MS: u64 = 1_000;
/// A new cluster starts with fewer servers than a pool's size after this many milliseconds of leadership.
const START_SMALL_AFTER_MS: u64 = 10_000;

/// When the planner looks at the map, and what it keeps from one look to the next.
#[derive(Default)]
pub(super) struct Planner {
    /// The next look; not before the last plan took effect.
    at: u64,
    is_busy: bool,
    /// The map's CRUSH text that was parsed last.
    parsed: Option<(String, CrushMap)>,
}

impl Planner {
    /// A new leadership: whatever an earlier one planned is decided.
    pub(super) fn begin(&mut self) {
        (self.at, self.is_busy) = (0, false);
    }

    /// Something changed that a plan depends on. The look comes with the next tick, so that one look serves all
    /// changes of one turn of the driver.
    pub(super) fn wake(&mut self) {
        self.at = 0;
    }

    /// The last plan took effect, or cannot.
    pub(super) fn ended(&mut self, now: u64) {
        self.is_busy = false;
        self.at = self.at.min(now + PLAN_INTERVAL_MS);
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        (!self.is_busy).then_some(self.at)
    }
}

impl<D: Disk, T> Turn<'_, D, T> {
    pub(super) fn tick(&mut self) {
        let now = self.now.ms;
        if now >= self.core.tick_at {
            self.core.tick_at = now + TICK_MS;
            // Not leading any more is no failure: the next leader does it.
            let _ = self.form_cluster();
            self.expire();
            self.release();
            self.take_out();
        }
        if self.core.planner.next_deadline().is_some_and(|at| now >= at) {
            self.make_plan();
        }
        if self.core.purger.next_deadline().is_some_and(|at| now >= at) {
            self.begin_purge();
        }
    }

    fn expire(&mut self) {
        for session in self.core.leader.expired(self.now.ms) {
            tracing::info!("session {session} was silent for its timeout and ends");
            if let (_, Err(error)) = self.propose(|prep| prep.end_session(session, true)) {
                tracing::warn!("session {session} cannot be ended now: {error}; trying again");
                self.core.leader.expiry_failed(session);
            }
        }
    }

    /// Goes on with the end of a session that owned more than fits into one transaction.
    fn release(&mut self) {
        let rows = self.core.machine.proposed().scan(&[key::ENDING], &[key::ENDING + 1], 1);
        let Ok(rows) = self.core.stored(rows) else { return };
        if let Some(session) = rows.first().and_then(|(row, _)| key::number_at(row, 1)).map(SessionId)
            && let (_, Err(error)) = self.propose(|prep| prep.go_on_ending(session))
        {
            tracing::debug!("what session {session} owned is released later: {error}");
        }
    }

    fn take_out(&mut self) {
        let core = &mut *self.core;
        let overdue = core.leader.overdue(self.now.ms, core.machine.map(), core.config.down_out_ms);
        for server in overdue {
            tracing::warn!("data server {server} stays away: its groups are copied to others");
            if let (_, Err(error)) = self.propose(|prep| prep.set_in(server, false, true)) {
                tracing::warn!("data server {server} cannot be taken out now: {error}; trying again");
            }
        }
    }

    /// Moves placement groups towards where CRUSH wants them, one safe step after the other.
    fn make_plan(&mut self) {
        self.core.planner.at = self.now.ms + PLAN_INTERVAL_MS;
        let updates = self.core.wanted_groups(self.now.ms);
        if updates.is_empty() {
            return;
        }
        tracing::debug!("{} placement groups get a new configuration", updates.len());
        if updates.len() >= UPDATES_MAX {
            self.core.planner.wake();
        }
        // The next plan has to see this one.
        self.core.planner.is_busy = true;
        let next = self.change(|prep| prep.update_groups(&updates), |_| super::dispatch::done(()));
        self.go_on(Asker::Planner, next);
    }
}

impl<D: Disk, T> Core<D, T> {
    fn wanted_groups(&mut self, now: u64) -> Vec<PgUpdate> {
        let map = self.machine.map();
        if map.crush.is_empty() {
            return Vec::new();
        }
        if self.planner.parsed.as_ref().is_none_or(|(text, _)| *text != map.crush) {
            match CrushMap::parse_text(&map.crush) {
                Ok(parsed) => self.planner.parsed = Some((map.crush.clone(), parsed)),
                Err(error) => {
                    tracing::error!("the CRUSH map does not parse, groups stay where they are: {error}");
                    return Vec::new();
                }
            }
        }
        let Some((_, crush)) = &self.planner.parsed else { return Vec::new() };
        plan(&PlanInput {
            map,
            crush,
            positions: &self.leader.positions,
            start_small: now.saturating_sub(self.leader.since) > START_SMALL_AFTER_MS,
        })
    }
}
