//! Which groups are filled now: those with the fewest complete copies first, a few at a time.

use super::{Driver, RECOVERY_BUSY_BYTES, RECOVERY_IDLE_BYTES, TICK};
use protocol::PgId;
use std::rc::Rc;

/// Groups that this server fills at once: more would only share the same credit, and end later.
const FILLED_AT_ONCE: usize = 4;

impl Driver {
    /// Recovery gets what foreground work leaves.
    pub(super) fn share_credit(self: &Rc<Self>) {
        let busy = self.foreground.replace(0) > 0;
        let per_second = if busy { RECOVERY_BUSY_BYTES } else { RECOVERY_IDLE_BYTES };
        let wishes =
            self.groups.borrow().iter().filter_map(|(pg, r)| Some((r.fill_urgency()?, *pg))).collect();
        let filled = most_endangered(wishes);
        self.scrub_on(busy || !filled.is_empty());
        let share = per_second / (1000 / TICK.as_millis() as i64) / (filled.len().max(1) as i64);
        for pg in filled {
            self.step(pg, |replica, cx| replica.handle_credit(cx, share));
        }
    }
}

/// The groups to fill next, of (complete copies, group).
fn most_endangered(mut wishes: Vec<(usize, PgId)>) -> Vec<PgId> {
    wishes.sort_unstable();
    wishes.into_iter().take(FILLED_AT_ONCE).map(|(_, pg)| pg).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::PoolId;

    #[test]
    fn groups_with_the_fewest_complete_copies_come_first() {
        let pg = |seed| PgId { pool: PoolId(1), seed };
        let wishes = vec![(3, pg(0)), (2, pg(1)), (1, pg(9)), (2, pg(4)), (2, pg(3)), (1, pg(5))];
        assert_eq!(most_endangered(wishes), [pg(5), pg(9), pg(1), pg(3)]);
    }
}
