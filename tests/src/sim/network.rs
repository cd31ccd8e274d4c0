//! Links: between servers each message for itself, between an actor and a server one connection in both directions.

use std::collections::{BTreeMap, BTreeSet};

use zab::{Message, PeerId};

use crate::simulation::rng::Rng;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) delay_max_ms: u64,
    /// Permille of messages that are lost.
    pub(crate) loss: u64,
    /// Permille of messages that arrive again later.
    pub(crate) repeat: u64,
    /// Permille of messages that overtake earlier ones.
    pub(crate) reorder: u64,
}

/// A message on its way between servers.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: PeerId,
    pub(crate) to: PeerId,
    pub(crate) message: Message,
    reset: u64,
}

/// An actor's connection.
pub(crate) struct Connection {
    pub(crate) actor: u32,
    pub(crate) server: PeerId,
    /// Of the server, when it accepted it.
    pub(crate) incarnation: Option<u64>,
    pub(crate) is_lost: bool,
    /// When the last message of each direction arrives: later ones arrive no earlier.
    pub(crate) busy_until: [u64; 2],
}

pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// Directed pairs of servers over which nothing arrives.
    blocked: BTreeSet<(PeerId, PeerId)>,
    /// Actors that do not reach a server.
    cut_off: BTreeSet<(u32, PeerId)>,
    busy_until: BTreeMap<(PeerId, PeerId), u64>,
    /// Incremented by a reset: what is on its way is lost.
    resets: BTreeMap<(PeerId, PeerId), u64>,
    pub(crate) connections: BTreeMap<u64, Connection>,
    next_connection: u64,
}

impl Network {
    pub(crate) fn new(weather: Weather) -> Network {
        Network {
            weather,
            blocked: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            busy_until: BTreeMap::new(),
            resets: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
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
        let weather = self.weather;
        if self.blocked.contains(&link) || rng.chance(weather.loss) {
            return Vec::new();
        }
        let reset = self.resets.get(&link).copied().unwrap_or(0);
        let packet = Packet { from, to, message, reset };
        let mut at = now + 1 + rng.below(weather.delay_max_ms);
        let mut arrivals = Vec::new();
        if rng.chance(weather.repeat) {
            arrivals.push((at + rng.below(500), packet.clone()));
        }
        if !rng.chance(weather.reorder) {
            let busy_until = self.busy_until.entry(link).or_insert(0);
            at = at.max(*busy_until);
            *busy_until = at;
        }
        arrivals.push((at, packet));
        arrivals
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

    pub(crate) fn cut_off(&mut self, actor: u32, server: PeerId) {
        self.cut_off.insert((actor, server));
    }

    pub(crate) fn reaches(&self, actor: u32, server: PeerId) -> bool {
        !self.cut_off.contains(&(actor, server))
    }

    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
        self.cut_off.clear();
    }

    pub(crate) fn connect(&mut self, actor: u32, server: PeerId) -> u64 {
        self.next_connection += 1;
        let connection = Connection { actor, server, incarnation: None, is_lost: false, busy_until: [0, 0] };
        self.connections.insert(self.next_connection, connection);
        self.next_connection
    }

    /// When a message of a connection that is sent now arrives; `None` if the connection breaks over it.
    pub(crate) fn arrival(
        &mut self,
        connection: u64,
        direction: usize,
        now: u64,
        rng: &mut Rng,
    ) -> Option<u64> {
        let (delay, loss) = (1 + rng.below(self.weather.delay_max_ms), self.weather.loss / 4);
        let link = self.connections.get_mut(&connection).filter(|link| !link.is_lost)?;
        if self.cut_off.contains(&(link.actor, link.server)) || rng.chance(loss) {
            link.is_lost = true;
            return None;
        }
        link.busy_until[direction] = link.busy_until[direction].max(now + delay);
        Some(link.busy_until[direction])
    }
}
