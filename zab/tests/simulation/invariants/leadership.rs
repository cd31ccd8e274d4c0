//! At most one peer, in one incarnation, is ever established as the leader of an epoch.

use std::collections::BTreeMap;

use zab::PeerId;

use super::Invariant;
use crate::simulation::history::{Event, Histories};

#[derive(Default)]
pub(crate) struct Leadership {
    leaders: BTreeMap<u64, (PeerId, u64)>,
}

impl Invariant for Leadership {
    fn name(&self) -> &'static str {
        "leadership"
    }

    fn check(&mut self, event: &Event, _: &Histories) -> Result<(), String> {
        let Event::Established { node, incarnation, epoch } = event else { return Ok(()) };
        match self.leaders.insert(*epoch, (*node, *incarnation)) {
            Some((other, _)) => Err(format!("{other} and then {node} were established in epoch {epoch}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::invariants::testing::{A, B, Play};

    #[test]
    fn catches_two_leaders_of_one_epoch() {
        let mut play = Play::<Leadership>::new();
        assert_eq!(play.establish(A, 1, 1), Ok(()));
        assert_eq!(play.establish(B, 1, 2), Ok(()));
        assert!(play.establish(A, 1, 2).is_err());
    }

    #[test]
    fn catches_an_epoch_led_again_after_a_restart() {
        let mut play = Play::<Leadership>::new();
        assert_eq!(play.establish(A, 1, 1), Ok(()));
        assert!(play.establish(A, 2, 1).is_err());
    }
}
