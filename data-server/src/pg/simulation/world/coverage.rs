//! What happened: the digest of a world, and which operation met which phase.

use std::collections::BTreeMap;

use protocol::data::DataRequest;
use protocol::replication::{PeerMessage, StreamBody};

use super::*;

/// Operations by phase of the replica that they came to.
#[derive(Clone, Debug, Default)]
pub(in crate::pg::simulation) struct Coverage(BTreeMap<(&'static str, &'static str), u64>);

impl Coverage {
    /// Adds another world's.
    pub(in crate::pg::simulation) fn add(&mut self, other: &Coverage) {
        for (pair, count) in &other.0 {
            *self.0.entry(*pair).or_default() += count;
        }
    }

    /// Pairs that were met.
    pub(in crate::pg::simulation) fn len(&self) -> usize {
        self.0.len()
    }

    /// The pairs with their counts, a line each.
    pub(in crate::pg::simulation) fn lines(&self) -> Vec<String> {
        self.0.iter().map(|((what, phase), count)| format!("{what:<12} {phase:<12} {count}")).collect()
    }

    fn note(&mut self, what: &'static str, phase: &'static str) {
        *self.0.entry((what, phase)).or_default() += 1;
    }
}

impl World {
    pub(super) fn cover(&mut self, server: DataServerId, pg: PgId, what: &'static str) {
        let phase = self.nodes[&server].replicas.get(&pg).map_or("not there", Replica::phase);
        self.coverage.note(what, phase);
    }

    pub(super) fn note_event(&mut self, event: &Event) {
        let (what, server) = match event {
            Event::Tick(server) => (1, server.0),
            Event::Heartbeat(server) => (2, server.0),
            Event::HeartbeatArrives { server, .. } => (3, server.0),
            Event::Lease { server, .. } => (4, server.0),
            Event::Register(server) => (5, server.0),
            Event::Map { server, .. } => (6, server.0),
            Event::Deliver { from, to, pg, payload, .. } => {
                (7, from.0 ^ to.0 << 8 ^ pg.seed << 16 ^ crc32c::crc32c(payload))
            }
            Event::LinkUp { a, b } => (8, a.0 ^ b.0 << 8),
            Event::Written(server, _) => (9, server.0),
            Event::Durable(server, _) => (10, server.0),
            Event::Room(server, _) => (11, server.0),
            Event::Propose { from, pg, .. } => (12, from.0 ^ pg.seed << 16),
            Event::MetaTick => (13, 0),
            Event::Restart(server) => (14, server.0),
            Event::Request { server, pg, payload, .. } => {
                (15, server.0 ^ pg.seed << 16 ^ crc32c::crc32c(payload))
            }
            Event::Answer { client, payload, .. } => (16, *client as u32 ^ crc32c::crc32c(payload)),
            Event::ClientStep(client) => (17, *client as u32),
            Event::Fault => (18, 0),
            Event::Forget(server) => (19, server.0),
            Event::ClientMap { client, .. } => (20, *client as u32),
        };
        self.digest_in(self.now);
        self.digest_in(what << 32 | u64::from(server));
    }

    pub(super) fn note_output(&mut self, server: DataServerId, pg: PgId, output: &Output) {
        let what = match output {
            Output::Send { message, .. } => name_of(message),
            Output::Reply { response: Ok(_), .. } => "reply",
            Output::Reply { response: Err(_), .. } => "refusal",
            Output::Propose { .. } => "propose",
            Output::RequestDurable(_) => "sync",
            Output::WaitRoom => "room",
            Output::FetchMap => "map",
            Output::CorruptBlock => "corrupt",
            Output::Copied { .. } => "copied",
            Output::Born { .. } => "born",
            Output::Removed => "removed",
            Output::Fatal(_) => "fatal",
        };
        self.digest_in(
            u64::from(crc32c::crc32c(what.as_bytes())) << 32 | u64::from(server.0 ^ pg.seed << 16),
        );
    }

    /// FNV-1a, a word at a time.
    fn digest_in(&mut self, word: u64) {
        self.digest = (self.digest ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

/// What a client asks for.
pub(super) fn name_of_request(request: &DataRequest) -> &'static str {
    match request {
        DataRequest::Read { .. } => "read",
        DataRequest::Write { .. } => "write",
        DataRequest::Zero { .. } => "zero",
        DataRequest::Sync { .. } => "fsync",
        DataRequest::Scrub { .. } => "scrub",
        DataRequest::TrimInode { .. } => "trim",
        DataRequest::List { .. } => "list",
    }
}

/// What a data server says to another.
pub(super) fn name_of(message: &PeerMessage) -> &'static str {
    match message {
        PeerMessage::Hello { .. } => "Hello",
        PeerMessage::Refused { .. } => "Refused",
        PeerMessage::Status { .. } => "Status",
        PeerMessage::Ack { .. } => "Ack",
        PeerMessage::Tail { .. } => "Tail answer",
        PeerMessage::Blocks { .. } => "Blocks",
        PeerMessage::NeedObject { .. } => "NeedObject",
        PeerMessage::Scrubbed { .. } => "Scrubbed",
        PeerMessage::Verified { .. } => "Verified",
        PeerMessage::Stream { body, .. } => match body {
            StreamBody::Append { .. } => "Append",
            StreamBody::Tail { .. } => "Tail",
            StreamBody::Sync => "Sync",
            StreamBody::FillStart { .. } => "FillStart",
            StreamBody::Push(_) => "Push",
            StreamBody::FillInode { .. } => "FillInode",
            StreamBody::FillTail(_) => "FillTail",
            StreamBody::FillEnd => "FillEnd",
            StreamBody::FetchTail { .. } => "FetchTail",
            StreamBody::ReadBlocks { .. } => "ReadBlocks",
            StreamBody::Scrub { .. } => "Scrub",
            StreamBody::GiveUp(_) => "GiveUp",
            StreamBody::ScrubNote(_) => "ScrubNote",
        },
    }
}
