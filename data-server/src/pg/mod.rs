//! The replica of one placement group as a pure state machine: no I/O but the [`PgStore`] it is handed, no
//! clock, no randomness, no tasks.
//!
//! ```text
//! handle_view, handle_request, handle_message, handle_link,          poll_output:
//! handle_progress, handle_room, handle_tick              ─▶ Replica ─▶ send, reply, propose, sync, ...
//! ```
//!
//! | module | what |
//! |---|---|
//! | `copy`, `log`, `table`, `truncation` | what this store holds of the group, and how operations change it |
//! | `primary` | orders and acknowledges operations, takes over, fills members |
//! | `primary/split` | gives half of the objects to another group |
//! | `member` | executes what the primary says |
//! | `verify`, `primary/{scrub,verdict}` | compares and reads copies, and replaces wrong ones |
//!
//! Invariants (DESIGN 7):
//! * An operation is acknowledged only when every certain in-sync member has written it, by a primary whose
//!   session is alive, under an activated configuration with at least `min_size` certain members.
//! * A copy with a fill marker acknowledges nothing beyond the marker's base, and never leads.
//! * A member takes messages only of the newest configuration version that it knows, of one link, in order.

mod copy;
mod group;
mod log;
mod member;
mod primary;
#[cfg(test)]
mod simulation;
mod stats;
mod table;
mod truncation;
mod types;
mod verify;

use std::collections::VecDeque;

use bytes::Bytes;
use protocol::data::{DataError, DataRequest};
use protocol::meta::PgReport;
use protocol::replication::{PeerMessage, Position};
use protocol::{DataServerId, PgId, mutant};

pub use copy::stored_groups;
pub use types::{Context, GroupView, Me, Output, PgStore, RequestToken, Settings, Tick};

use crate::store::{StoreError, Ticket};
use copy::{LocalCopy, Newborn};
use group::Group;
use member::{MemberRole, Taken};
use primary::{Primary, Request};

/// Peer messages that may wait for a busy store; beyond it the link is ended and starts over.
const INBOX_MAX: usize = 4096;

/// A replica.
#[derive(Debug)]
pub struct Replica {
    group: Group,
    role: Role,
    /// What came while the store was busy, in order.
    inbox: VecDeque<(DataServerId, PeerMessage, Bytes)>,
    /// The pool was removed: nobody needs what lies here.
    orphaned: bool,
    removed: bool,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one for each group, and most are members")]
enum Role {
    /// Not in the configuration, or not with this start of the server.
    Outside,
    Member(MemberRole),
    Primary(Box<Primary>),
}

impl Replica {
    /// Takes up what the store holds of the group; nothing at all is fine.
    ///
    /// # Errors
    /// What the store says, or records that do not decode.
    pub fn load(pg: PgId, me: Me, settings: Settings, store: &mut dyn PgStore) -> Result<Self, StoreError> {
        Ok(Self::of_copy(LocalCopy::load(pg, store)?, me, settings))
    }

    /// Takes up a group that began with a split, see [`Output::Born`].
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_newborn(
        (pg, ticket): (PgId, Ticket),
        me: Me,
        settings: Settings,
        store: &mut dyn PgStore,
    ) -> Result<Self, StoreError> {
        Ok(Self::of_copy(LocalCopy::load_newborn(Newborn { pg, ticket }, store)?, me, settings))
    }

    fn of_copy(copy: LocalCopy, me: Me, settings: Settings) -> Self {
        let group = Group {
            me,
            settings,
            view: GroupView::default(),
            copy,
            stats: stats::Stats::default(),
            outputs: VecDeque::new(),
            stalled: false,
        };
        Replica { group, role: Role::Outside, inbox: VecDeque::new(), orphaned: false, removed: false }
    }

    /// The next thing to be done outside.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(Newborn { pg, ticket }) = self.group.copy.newborn.take() {
            return Some(Output::Born { pg, ticket });
        }
        self.group.outputs.pop_front()
    }

    /// Position up to which this store holds everything.
    pub fn position(&self) -> Position {
        self.group.copy.fill.as_ref().map_or(self.group.copy.head(), |fill| fill.base)
    }

    /// Members that count for acknowledgements in the configuration that this replica knows.
    pub fn certain_members(&self) -> usize {
        self.group.config().certain().count()
    }

    /// Whether this store holds everything that its log says.
    pub fn is_complete(&self) -> bool {
        self.group.copy.fill.is_none()
    }

    /// Configuration version that this replica knows.
    pub fn version(&self) -> u64 {
        self.group.version()
    }

    /// Role and position, for a person who looks for a fault.
    pub fn describe(&self) -> String {
        let (copy, version) = (&self.group.copy, self.group.version());
        let head = copy.head();
        let role = match &self.role {
            Role::Outside => "outside".to_owned(),
            Role::Member(member) => format!("{member:?}"),
            Role::Primary(primary) => format!("{primary:?}"),
        };
        format!(
            "version {version}, head {head:?}, fill {:?}, stalled {}, {role}",
            copy.fill, self.group.stalled
        )
    }

    /// Name of the phase that it is in.
    #[cfg(test)]
    fn phase(&self) -> &'static str {
        match &self.role {
            _ if self.group.stalled => "busy store",
            Role::Outside => "outside",
            Role::Member(_) if self.group.copy.fill.is_some() => "being filled",
            Role::Member(_) => "member",
            Role::Primary(primary) => primary.phase_name(),
        }
    }

    /// Whether it holds the objects that are its own under this number of groups: no split is under way or done since.
    pub fn holds_under(&self, pg_num: u32) -> bool {
        self.group.copy.pg_num == pg_num && self.group.config().pg_num == pg_num
    }

    /// Whether this server is primary and serves.
    pub fn is_active(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.is_active())
    }

    /// State of the group, if this server is its primary.
    pub fn report(&self) -> Option<PgReport> {
        match &self.role {
            Role::Primary(primary) => Some(primary.report(&self.group)),
            Role::Member(_) | Role::Outside => None,
        }
    }

    /// The map changed, or was received for the first time.
    pub fn handle_view(&mut self, cx: &mut Context<'_>, view: GroupView) {
        let config = view.config.clone();
        let known = std::mem::replace(&mut self.group.view, view);
        if known.config.version > config.version {
            // A peer told of a newer configuration before the map did.
            self.group.view.config = known.config;
        } else if known.config.version < config.version || config.version == 0 {
            self.adopt(cx);
        }
        if let Role::Primary(primary) = &mut self.role {
            primary.advance(&mut self.group, cx);
        }
        self.remove_if_stray(cx);
    }

    /// The group's pool was removed: whoever waits is told, and what lies here goes.
    pub fn handle_pool_removed(&mut self, cx: &mut Context<'_>) {
        if let Role::Primary(mut primary) = std::mem::replace(&mut self.role, Role::Outside) {
            primary.resign(&mut self.group);
        }
        self.orphaned = true;
        self.inbox.clear();
        self.remove_if_stray(cx);
    }

    /// A client's request (or part of one) for this group.
    pub fn handle_request(
        &mut self,
        cx: &mut Context<'_>,
        token: RequestToken,
        body: DataRequest,
        payload: Bytes,
    ) {
        match &mut self.role {
            Role::Primary(primary) => {
                primary.handle_request(&mut self.group, cx, Request { token, body, payload });
            }
            Role::Member(_) | Role::Outside => {
                let response = Err(DataError::NotPrimary { version: self.group.version() });
                self.group.outputs.push_back(Output::Reply { token, response, payload: Bytes::new() });
            }
        }
    }

    /// A message of another data server.
    pub fn handle_message(
        &mut self,
        cx: &mut Context<'_>,
        from: DataServerId,
        message: PeerMessage,
        payload: Bytes,
    ) {
        if self.group.stalled || !self.inbox.is_empty() {
            if self.inbox.len() < INBOX_MAX {
                self.inbox.push_back((from, message, payload));
            }
            return;
        }
        self.take_message(cx, from, message, payload);
    }

    /// The connection to a server was lost, or is there again.
    pub fn handle_link(&mut self, cx: &mut Context<'_>, server: DataServerId, up: bool) {
        if let Role::Primary(primary) = &mut self.role {
            primary.handle_link(&mut self.group, cx, server, up);
        }
    }

    /// The store came further: everything up to these tickets is written and durable.
    pub fn handle_progress(&mut self, cx: &mut Context<'_>, written: u64, durable: u64) {
        self.group.copy.advance(written, durable);
        match &mut self.role {
            Role::Primary(primary) => {
                primary.continue_takeover(&mut self.group, cx);
                primary.advance(&mut self.group, cx);
            }
            Role::Member(member) => member.report(&mut self.group, cx),
            Role::Outside => {}
        }
    }

    /// The store has room again.
    pub fn handle_room(&mut self, cx: &mut Context<'_>) {
        self.group.stalled = false;
        while let Some((from, message, payload)) = self.inbox.pop_front() {
            self.take_message(cx, from, message, payload);
            if self.group.stalled {
                return;
            }
        }
        if let Role::Primary(primary) = &mut self.role {
            primary.continue_takeover(&mut self.group, cx);
            primary.advance(&mut self.group, cx);
        }
        self.remove_if_stray(cx);
    }

    /// Time passed; at least every 250 ms.
    pub fn handle_tick(&mut self, cx: &mut Context<'_>) {
        match &mut self.role {
            Role::Primary(primary) => primary.handle_tick(&mut self.group, cx),
            // What other groups delete makes room here too, and nothing else would tell the primary.
            Role::Member(member) => member.report(&mut self.group, cx),
            Role::Outside => {}
        }
    }

    /// May send this many bytes to members that are being filled.
    pub fn handle_credit(&mut self, cx: &mut Context<'_>, bytes: i64) {
        if let Role::Primary(primary) = &mut self.role {
            primary.grant(bytes);
            primary.pump_fills(&mut self.group, cx);
        }
    }

    /// Whether there is something to fill.
    pub fn wants_credit(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.wants_credit())
    }

    /// How many complete copies there are, if there is something to fill and no credit for it: the fewer, the
    /// more urgent.
    pub fn fill_urgency(&self) -> Option<usize> {
        let lacks = matches!(&self.role, Role::Primary(primary) if primary.lacks_credit());
        lacks.then(|| self.certain_members())
    }

    /// Begins a scrub of the group, if this server is its primary. True if it is.
    pub fn handle_scrub_start(&mut self, cx: &mut Context<'_>, deep: bool) -> bool {
        let Role::Primary(primary) = &mut self.role else { return false };
        primary.start_scrub(&mut self.group, deep);
        primary.pump_scrub(&mut self.group, cx);
        true
    }

    /// May compare and read so many bytes more.
    pub fn handle_scrub_credit(&mut self, cx: &mut Context<'_>, bytes: i64) {
        match &mut self.role {
            Role::Primary(primary) => {
                primary.grant_scrub(bytes);
                primary.pump_scrub(&mut self.group, cx);
            }
            Role::Member(member) => member.verify(&mut self.group, cx, bytes),
            Role::Outside => {}
        }
    }

    /// Since when a scrub is due, in seconds since 1970, and whether a deep one; a scrub that is under way is due since
    /// ever. Intervals are in seconds, 0 for never.
    pub fn scrub_due(&self, unix_s: u64, light_s: u64, deep_s: u64) -> Option<(u64, bool)> {
        let Role::Primary(primary) = &self.role else { return None };
        let record = &self.group.copy.scrub;
        if !primary.is_active() {
            return None;
        }
        if let Some(run) = record.run {
            return Some((0, run.deep));
        }
        let due = |last: u64, every: u64| Some(last + every).filter(|at| every > 0 && *at <= unix_s);
        let deep = due(record.last_deep, deep_s).map(|since| (since, true));
        deep.or(due(record.last_light, light_s).map(|since| (since, false)))
    }

    /// Whether a scrub is under way that this server leads.
    pub fn is_scrubbing(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.is_scrubbing(&self.group))
    }

    /// Whether this server, being primary, could go on with a scrub.
    pub fn lacks_scrub_credit(&self) -> bool {
        matches!(&self.role, Role::Primary(primary) if primary.lacks_scrub_credit(&self.group))
    }

    /// Whether this server, not being primary, has blocks to read for a scrub.
    pub fn is_verifying(&self) -> bool {
        matches!(&self.role, Role::Member(member) if member.is_verifying())
    }

    fn take_message(
        &mut self,
        cx: &mut Context<'_>,
        from: DataServerId,
        message: PeerMessage,
        payload: Bytes,
    ) {
        match message {
            PeerMessage::Hello { config, link, floor, head, runs } => {
                if config.version > self.group.version() {
                    self.group.view.config = config;
                    self.adopt(cx);
                } else if config.version < self.group.version() {
                    return self.refuse(from, link);
                }
                let leads = self.group.config().primary == Some(from);
                match &mut self.role {
                    Role::Member(member) if leads => {
                        let outline = member::outline(floor, head, &runs);
                        member.handle_hello(&mut self.group, cx, from, link, &outline);
                    }
                    _ => self.refuse(from, link),
                }
            }
            PeerMessage::Stream { version, link, index, body } => {
                let current = version == self.group.version();
                match &mut self.role {
                    Role::Member(member) if current => {
                        let group = &mut self.group;
                        let taken = member.handle_stream(group, cx, from, (link, index), body, payload);
                        if let Taken::Busy(body, payload) = taken {
                            let message = PeerMessage::Stream { version, link, index, body };
                            self.inbox.push_front((from, message, payload));
                        }
                    }
                    _ => self.refuse(from, link),
                }
            }
            answer => {
                if let Role::Primary(primary) = &mut self.role {
                    primary.handle_message(&mut self.group, cx, from, answer, payload);
                }
            }
        }
    }

    fn refuse(&mut self, to: DataServerId, link: u64) {
        let version = self.group.version();
        self.group.send(to, PeerMessage::Refused { version, link }, Bytes::new());
    }

    /// Takes the role that the newest configuration gives.
    fn adopt(&mut self, cx: &mut Context<'_>) {
        let me = self.group.me;
        if !self.group.copy.exists() || self.group.copy.pg_num == 0 {
            // What holds nothing holds it under any number of groups.
            self.group.copy.pg_num = self.group.config().pg_num;
        }
        let config = self.group.config();
        let member = config.member(me.server).is_some_and(|member| me.is(member));
        let leads = member && config.primary == Some(me.server) && config.in_sync_member(me.server).is_some();
        let old = std::mem::replace(&mut self.role, Role::Outside);
        self.role = match old {
            Role::Primary(mut primary) if leads => {
                if !primary.handle_config(&mut self.group, cx) {
                    if !mutant!("replaced-primary-answers-nobody") {
                        primary.resign(&mut self.group);
                    }
                    let since = primary.since();
                    primary = Box::new(Primary::new(&mut self.group, cx));
                    primary.keep_since(since);
                }
                Role::Primary(primary)
            }
            old => {
                if let Role::Primary(mut primary) = old
                    && !mutant!("replaced-primary-answers-nobody")
                {
                    primary.resign(&mut self.group);
                }
                if leads {
                    Role::Primary(Box::new(Primary::new(&mut self.group, cx)))
                } else if member {
                    Role::Member(MemberRole::default())
                } else {
                    Role::Outside
                }
            }
        };
    }

    /// A complete set of others holds the group, or its pool is gone: what lies here is of no more use.
    fn remove_if_stray(&mut self, cx: &mut Context<'_>) {
        let config = self.group.config();
        let held_elsewhere = config.activated && config.certain().count() >= self.group.view.size;
        let stray = config.member(self.group.me.server).is_none() && held_elsewhere;
        let stray = stray || (!self.is_active() && held_elsewhere && mutant!("members-give-their-copy-up"));
        if self.removed || self.group.stalled || !(stray || self.orphaned) {
            return;
        }
        if self.group.copy.exists()
            && let Err(error) = self.group.copy.remove(cx)
        {
            return self.group.note("removing a group that others hold", error);
        }
        self.removed = true;
        self.group.outputs.push_back(Output::Removed);
    }
}
