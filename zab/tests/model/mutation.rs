//! Ways to get Zab wrong. The explorer must find a counterexample for each.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// An ack is sent (and counted) when the entry is in memory (ZOOKEEPER-4646).
    AckBeforeDurable,
    /// NEWLEADER is acknowledged before the history is on disk (ZOOKEEPER-3911).
    AdoptBeforeDurable,
    /// The current epoch is written when synchronization begins, before the history (ZOOKEEPER-4643).
    EpochBeforeHistory,
    /// The leader is established with its own adoption alone, without a quorum of ACK-LD.
    EstablishAlone,
    /// A leader is established with a quorum, and commits with less.
    CommitAlone,
    /// A candidate counts promises of voters whose history is newer than its own.
    FollowOlder,
    /// A candidate may choose, and voters may promise, an epoch that they promised before.
    EpochReuse,
    /// ACK-E is sent when the promise is in memory; a crash forgets it.
    PromiseNotDurable,
    /// A promise may go backwards.
    PromiseBackwards,
    /// A follower with entries that the leader does not have keeps them.
    SkipTrunc,
    /// A commit is delivered by position although the entry has not come from this leader yet.
    DeliverUnsynchronized,
    /// Proposals go to followers only after they acknowledged NEWLEADER, but later ones do not wait for the earlier
    /// (a gap in the stream: TLA+ issue 1).
    GapInStream,
    /// The leader proposes before it is established.
    ProposeEarly,
}

impl Mutation {
    pub(crate) const ALL: [Mutation; 13] = [
        Mutation::AckBeforeDurable,
        Mutation::AdoptBeforeDurable,
        Mutation::EpochBeforeHistory,
        Mutation::EstablishAlone,
        Mutation::CommitAlone,
        Mutation::FollowOlder,
        Mutation::EpochReuse,
        Mutation::PromiseNotDurable,
        Mutation::PromiseBackwards,
        Mutation::SkipTrunc,
        Mutation::DeliverUnsynchronized,
        Mutation::GapInStream,
        Mutation::ProposeEarly,
    ];
}
