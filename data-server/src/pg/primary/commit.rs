//! Acknowledging: what all certain members have written, and what all have made durable.

use bytes::Bytes;
use protocol::data::{DataError, DataReply};
use protocol::replication::Unit;

use super::{Phase, Primary};
use crate::pg::group::Group;
use crate::pg::types::{Context, Output, RequestToken};
use protocol::mutant;

/// An ordered operation that not all members have written yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) sequence: u64,
    pub(super) unit: Unit,
    pub(super) bytes: usize,
    pub(super) reply: DataReply,
    /// The client's request, and its repetitions.
    pub(super) tokens: Vec<RequestToken>,
}

/// A read that saw an operation that may still be lost: it is answered once that is certain.
#[derive(Debug)]
pub(super) struct HeldRead {
    pub(super) until: u64,
    pub(super) token: RequestToken,
    pub(super) reply: DataReply,
    pub(super) payload: Bytes,
}

/// Waits until everything up to here is durable everywhere.
#[derive(Debug)]
pub(super) struct HeldSync {
    pub(super) upto: u64,
    pub(super) token: RequestToken,
}

impl Primary {
    /// Whether this server answers clients at all.
    pub(super) fn serves(&self, g: &Group, cx: &Context<'_>) -> bool {
        self.phase == Phase::Active
            && g.config().activated
            && (cx.leased() || mutant!("primary-outlives-its-session"))
    }

    /// Whether enough members count for something to be acknowledged.
    pub(super) fn has_quorum(&self, g: &Group) -> bool {
        g.config().certain().count() >= g.view.min_size.max(1) || mutant!("writes-below-min-size")
    }

    /// Answers whatever became certain. Nothing is answered without a live session: a deposed primary
    /// acknowledges nothing.
    pub(in crate::pg) fn advance(&mut self, g: &mut Group, cx: &mut Context<'_>) {
        if !self.serves(g, cx) {
            return;
        }
        if self.has_quorum(g) {
            let written = g.copy.reached().written;
            let by_peers = self.peers.values().filter(|peer| peer.needed()).map(|peer| peer.written);
            let by_peers = by_peers.take(if mutant!("ack-before-all-members") { 1 } else { usize::MAX });
            self.committed = self.committed.max(by_peers.fold(written, u64::min));
        }
        self.answer_written(g);
        self.answer_reads(g);
        self.answer_syncs(g);
        self.pump_split(g, cx);
        self.drain_queue(g, cx);
    }

    fn answer_written(&mut self, g: &mut Group) {
        while let Some(pending) = self.pending.front().filter(|p| p.sequence <= self.committed) {
            self.pending_bytes -= pending.bytes;
            for token in &pending.tokens {
                g.outputs.push_back(Output::reply(*token, pending.reply.clone(), Bytes::new()));
            }
            self.pending.pop_front();
        }
    }

    fn answer_reads(&mut self, g: &mut Group) {
        let committed = self.committed;
        for read in self.reads.extract_if(.., |read| read.until <= committed) {
            g.outputs.push_back(Output::reply(read.token, read.reply, read.payload));
        }
    }

    fn answer_syncs(&mut self, g: &mut Group) {
        let Some(upto) = self.syncs.iter().map(|sync| sync.upto).max() else { return };
        // Repeated after a link was restarted or a fill ended; asked for only once otherwise.
        self.peers.values_mut().filter(|peer| peer.needed()).for_each(|peer| peer.sync(g, upto));
        if !self.has_quorum(g) {
            return;
        }
        let durable = g.copy.reached().durable.min(self.committed);
        let by_peers = self.peers.values().filter(|peer| peer.needed()).map(|peer| peer.durable);
        let durable = if mutant!("sync-answered-before-disk") { self.committed } else { durable };
        let by_peers = by_peers.take(if mutant!("sync-forgets-members") { 0 } else { usize::MAX });
        let durable = by_peers.fold(durable, u64::min);
        for sync in self.syncs.extract_if(.., |sync| sync.upto <= durable) {
            g.outputs.push_back(Output::reply(sync.token, DataReply::Synced, Bytes::new()));
        }
    }

    /// Everything up to the present end is to be durable everywhere.
    pub(super) fn begin_sync(&mut self, g: &mut Group, token: RequestToken) {
        let upto = if mutant!("sync-covers-nothing") { 0 } else { g.copy.head().sequence };
        if self.syncs.len() >= g.settings.queue_max {
            let response = Err(DataError::Overloaded);
            g.outputs.push_back(Output::Reply { token, response, payload: Bytes::new() });
            return;
        }
        self.syncs.push(HeldSync { upto, token });
        if g.copy.reached().durable < upto {
            g.request_durable();
        }
    }

    /// Refuses everything that clients wait for. Operations that are ordered stay so.
    pub(super) fn refuse_all(&mut self, g: &mut Group, error: &DataError) {
        let mut tokens: Vec<RequestToken> =
            self.pending.iter_mut().flat_map(|p| p.tokens.drain(..)).collect();
        tokens.extend(self.reads.drain(..).map(|read| read.token));
        tokens.extend(self.syncs.drain(..).map(|sync| sync.token));
        tokens.extend(self.queue.drain(..).map(|request| request.token));
        tokens.extend(self.take_repair_waiters().into_iter().map(|request| request.token));
        tokens.into_iter().for_each(|token| super::order::refuse(g, token, error.clone()));
    }
}
