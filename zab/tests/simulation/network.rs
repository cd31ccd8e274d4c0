//! Links that keep order and lose ranges, as connections that are reset do.

use std::collections::{BTreeMap, BTreeSet};

use zab::{Message, PeerId};

use super::rng::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weather {
    pub(crate) delay_max_ms: u64,
    /// Permille of messages that a reset takes with it.
    pub(crate) loss: u64,
    /// Permille of messages that a reconnection delivers again.
    pub(crate) repeat: u64,
}

pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// Directed pairs over which nothing arrives.
    blocked: BTreeSet<(PeerId, PeerId)>,
    /// When the last message of a link arrives: later ones arrive no earlier.
    busy_until: BTreeMap<(PeerId, PeerId), u64>,
    /// Incremented by a reset: what is on its way is lost.
    resets: BTreeMap<(PeerId, PeerId), u64>,
    last: BTreeMap<(PeerId, PeerId), Message>,
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: PeerId,
    pub(crate) to: PeerId,
    pub(crate) message: Message,
    reset: u64,
}

impl Network {
    pub(crate) fn new(weather: Weather) -> Network {
        Network {
            weather,
            blocked: BTreeSet::new(),
            busy_until: BTreeMap::new(),
            resets: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    /// Puts a message on its link. Returns what will arrive when.
    pub(crate) fn send(
        &mut self,
        from: PeerId,
        to: PeerId,
        message: Message,
        now: u64,
        rng: &mut Rng,
    ) -> Vec<(u64, Packet)> {
        let link = (from, to);
        if self.blocked.contains(&link) || rng.chance(self.weather.loss) {
            return Vec::new();
        }
        let reset = self.resets.get(&link).copied().unwrap_or(0);
        let mut arrivals = Vec::new();
        if self.weather.repeat > 0 {
            if rng.chance(self.weather.repeat)
                && let Some(message) = self.last.get(&link).cloned()
            {
                arrivals.push(Packet { from, to, message, reset });
            }
            self.last.insert(link, message.clone());
        }
        arrivals.push(Packet { from, to, message, reset });
        let busy_until = self.busy_until.entry(link).or_insert(0);
        *busy_until = (*busy_until).max(now + 1 + rng.below(self.weather.delay_max_ms));
        arrivals.into_iter().map(|packet| (*busy_until, packet)).collect()
    }

    /// Whether a message that was on its way arrives.
    pub(crate) fn arrives(&self, packet: &Packet) -> bool {
        let link = (packet.from, packet.to);
        !self.blocked.contains(&link) && self.resets.get(&link).copied().unwrap_or(0) == packet.reset
    }

    pub(crate) fn is_open(&self, from: PeerId, to: PeerId) -> bool {
        !self.blocked.contains(&(from, to))
    }

    pub(crate) fn reset(&mut self, from: PeerId, to: PeerId) {
        *self.resets.entry((from, to)).or_insert(0) += 1;
    }

    pub(crate) fn block(&mut self, from: PeerId, to: PeerId) {
        self.blocked.insert((from, to));
        self.reset(from, to);
    }

    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
    }
}
