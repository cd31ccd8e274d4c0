//! Data server ↔ data server: how the primary of a placement group keeps the other members equal to itself.
//!
//! | message | from → to | meaning |
//! |---|---|---|
//! | [`PeerMessage::Hello`] | primary → member | a link begins: this is the configuration, this is my log |
//! | [`PeerMessage::Status`] | member → primary | where the member's log is, seen from the primary's |
//! | [`PeerMessage::Stream`] | primary → member | one numbered message of the link |
//! | [`PeerMessage::Ack`] | member → primary | how far operations are written and durable |
//! | [`PeerMessage::Tail`] | member → primary | operations that a new primary lacks |
//! | [`PeerMessage::Blocks`] | member → primary | bytes to repair the primary's copy with |
//! | [`PeerMessage::NeedObject`] | member → primary | the member's copy is damaged: push it whole |
//! | [`PeerMessage::Scrubbed`] | member → primary | what the member has in a range of objects |
//! | [`PeerMessage::Verified`] | member → primary | it has read them, and which are damaged |
//! | [`PeerMessage::Refused`] | member → primary | not under this configuration or link |
//!
//! Every message names the configuration version it was sent under, and the link: a number that the primary
//! raises whenever it starts over with a member. Whatever belongs to another link is void, so neither lost
//! nor late messages can do harm. Bytes travel as the frame's payload.

use crate::attr::Truncation;
use crate::id::{InodeId, PgId, RequestId, SessionId};
use crate::map::PgConfig;
use serde::{Deserialize, Serialize};

/// Position in a group's order. Field order matters: `Ord` compares the configuration version under which the
/// operation was ordered, then its sequence. Sequences are dense; two logs with an equal position are equal
/// up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Configuration version of the ordering primary.
    pub version: u64,
    /// Number of the operation in the group, from 1.
    pub sequence: u64,
}

/// One object of a group, which names the pool. Field order is the order of a backfill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupObject {
    /// The file.
    pub inode: InodeId,
    /// Index of the chunk.
    pub chunk: u32,
}

/// What must be copied to make a member whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// Every object of an inode.
    Inode(InodeId),
    /// One object.
    Object(GroupObject),
    /// The group's copy as a whole: it is copied from the beginning.
    Group,
}

/// One ordered operation, as every replica executes it: the primary has decided everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Where it stands.
    pub position: Position,
    /// Whose request it was, for exactly-once execution.
    pub request: Option<RequestId>,
    /// What to do.
    pub op: LogOp,
    /// Change of allocated bytes at the primary: what a retry is answered.
    pub allocated: i64,
}

/// An operation without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogOp {
    /// Cuts the object to `cut` first, if given, then writes.
    Write {
        /// Which object.
        object: GroupObject,
        /// Size to cut to.
        cut: Option<u32>,
        /// The object's truncation sequence afterwards.
        truncate_seq: u64,
        /// Byte offset in the object.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// Cuts the object to `cut` first, if given, then makes the range zero.
    Zero {
        /// Which object.
        object: GroupObject,
        /// Size to cut to.
        cut: Option<u32>,
        /// The object's truncation sequence afterwards.
        truncate_seq: u64,
        /// Byte offset in the object.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// Cuts every object of the inode, deletes what is empty, and raises the inode's floor.
    Trim {
        /// The inode.
        inode: InodeId,
        /// Bytes per chunk.
        chunk_size: u32,
        /// Oldest first.
        truncations: Vec<Truncation>,
        /// Operations must know a truncation at least this new from now on.
        floor: u64,
    },
    /// Gives the objects that the group does not hold under this number of groups to its child, with the table of
    /// completed requests and floors. The child's order goes on behind this position.
    Split {
        /// The number of groups.
        pg_num: u32,
    },
}

impl LogOp {
    /// What the operation touches.
    pub fn unit(&self) -> Unit {
        match self {
            Self::Write { object, .. } | Self::Zero { object, .. } => Unit::Object(*object),
            Self::Trim { inode, .. } => Unit::Inode(*inode),
            Self::Split { .. } => Unit::Group,
        }
    }

    /// Bytes that travel with it.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Write { length, .. } => *length as usize,
            Self::Zero { .. } | Self::Trim { .. } | Self::Split { .. } => 0,
        }
    }
}

/// A stretch of a log: entries from `first` on were ordered under `version`, up to the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Configuration version.
    pub version: u64,
    /// First sequence.
    pub first: u64,
}

/// What a member has of an object, for comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectSummary {
    /// Bytes.
    pub size: u64,
    /// Truncation sequence.
    pub truncate_seq: u64,
    /// Sequence of the last change.
    pub version: u64,
    /// Fingerprint of the contents, made of the blocks' checksums.
    pub content: u64,
}

/// Where the scrub of a group is, and what came of earlier ones. Kept by every member. Times are seconds since 1970,
/// 0 for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubRecord {
    /// What is under way.
    pub run: Option<ScrubRun>,
    /// When all copies were compared last.
    pub last_light: u64,
    /// When all blocks of all copies were read last.
    pub last_deep: u64,
    /// Wrong copies and damaged blocks that scrubs found.
    pub found: u64,
    /// How many of them were replaced by right ones.
    pub repaired: u64,
    /// Objects of the last scrub whose copies differ without anything telling which is right.
    pub undecided: u64,
}

/// A scrub under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubRun {
    /// It reads every block.
    pub deep: bool,
    /// Objects up to here are done.
    pub cursor: Cursor,
    /// How many these are.
    pub objects: u64,
    /// As in [`ScrubRecord`].
    pub undecided: u64,
}

/// How far a backfill has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cursor {
    /// Nothing is copied.
    Start,
    /// Objects up to and including this one are as in the log.
    At(GroupObject),
    /// All are.
    End,
}

/// Kept durably by a member that does not hold everything its log says: objects up to `cursor`, except the
/// missing ones, are as the end of its log says; the others may lack anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// What the member had acknowledged before: it acknowledges nothing beyond until it is whole again.
    pub base: Position,
    /// How far the backfill has come.
    pub cursor: Cursor,
    /// Incomplete although before the cursor.
    pub missing: Vec<Unit>,
}

/// Completed requests and truncation floors: what makes retries and stale operations recognisable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableImage {
    /// Everything up to here is in it.
    pub at: Position,
    /// The sessions.
    pub sessions: Vec<SessionImage>,
    /// Inode and floor.
    pub floors: Vec<(u64, u64)>,
}

/// What is remembered of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionImage {
    /// The session.
    pub session: SessionId,
    /// Its low-water mark.
    pub low_water: u64,
    /// Sequence in the group of its last operation.
    pub last: u64,
    /// Completed requests, with the change of allocated bytes of each.
    pub done: Vec<(u64, i64)>,
}

/// A piece of an object on its way to a member that is being filled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Which object.
    pub object: GroupObject,
    /// `None` in the first piece of a backfilled object: everything between this cursor and the object goes.
    pub clear_after: Option<Cursor>,
    /// First piece: the old copy goes.
    pub first: bool,
    /// Where the payload's bytes belong: offset and length of each segment; the rest is zeros.
    pub segments: Vec<(u32, u32)>,
    /// crc32c of the payload.
    pub crc: u32,
    /// Truncation sequence of the object.
    pub truncate_seq: u64,
    /// Sequence of the object's last change.
    pub changed: u64,
    /// Last piece: the object's size, or `None` in it if the object does not exist.
    pub last: Option<Option<u32>>,
    /// The cursor moves to this object with the last piece.
    pub advances_cursor: bool,
}

/// One message of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamBody {
    /// The next operation; the payload are its bytes.
    Append {
        /// The operation.
        entry: LogEntry,
        /// Execute it; otherwise only log it, because its object is copied later.
        apply: bool,
        /// crc32c of the payload.
        crc: u32,
    },
    /// All operations that the member lacks, to take effect together; the payload holds their bytes in order.
    Tail {
        /// Position that the first one follows.
        after: Position,
        /// Operations, each with the crc32c of its bytes.
        entries: Vec<(LogEntry, u32)>,
    },
    /// Report when everything so far is durable.
    Sync,
    /// The member is filled from here on: its log becomes the primary's.
    FillStart {
        /// The log starts after this position.
        floor: Position,
        /// The end of the primary's log, so that the member can serve others with it later.
        log: Vec<LogEntry>,
        /// Completed requests and floors; `at` is the primary's head.
        table: TableImage,
        /// To be kept durably until [`StreamBody::FillEnd`].
        fill: Fill,
        /// The number of groups under which the primary's copy holds its objects.
        pg_num: u32,
    },
    /// A piece of an object.
    Push(Push),
    /// All objects of the inode go; the given chunks are pushed afterwards.
    FillInode {
        /// The inode.
        inode: InodeId,
        /// What exists of it in this group.
        chunks: Vec<u32>,
    },
    /// Objects after the cursor go: the backfill has seen everything.
    FillTail(Cursor),
    /// The member holds everything that its log says.
    FillEnd,
    /// The new primary lacks what the member has after this position → [`PeerMessage::Tail`]
    FetchTail {
        /// Head of the primary's log.
        after: Position,
    },
    /// Bytes of an object, to repair the primary's copy → [`PeerMessage::Blocks`]
    ReadBlocks {
        /// To be repeated in the answer.
        id: u64,
        /// Which object.
        object: GroupObject,
        /// Byte offset.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// What the member has behind `after`, up to `upto` → [`PeerMessage::Scrubbed`] and, if deep,
    /// [`PeerMessage::Verified`] once it has read all of it.
    Scrub {
        /// To be repeated in the answers.
        id: u64,
        /// Excluded.
        after: Cursor,
        /// Included.
        upto: Cursor,
        /// Read every block.
        deep: bool,
    },
    /// The member's copy of the object is wrong: it is incomplete until the object was pushed.
    GiveUp(GroupObject),
    /// Where the group's scrub is.
    ScrubNote(ScrubRecord),
}

/// What data servers say to each other about one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// A link begins.
    Hello {
        /// The group's configuration, adopted by a receiver that knows an older one.
        config: PgConfig,
        /// Number of the link, rising per primary and configuration.
        link: u64,
        /// The primary's log starts after this position.
        floor: Position,
        /// Its end.
        head: Position,
        /// What lies between.
        runs: Vec<Run>,
    },
    /// Answer to `Hello`.
    Status {
        /// Configuration version of the link.
        version: u64,
        /// The link.
        link: u64,
        /// Last position that both logs contain; `None` if they share none that is still known.
        common: Option<Position>,
        /// End of the member's log.
        head: Position,
        /// What the member changed after `common`.
        stray: Vec<Unit>,
        /// What the member lacks of its own log.
        fill: Option<Fill>,
        /// How far its log is written.
        written: u64,
        /// How far its log is durable.
        durable: u64,
        /// The member has no space for new data.
        full: bool,
        /// The last split that the member executed itself, so that it has the child; the beginning for none.
        split_at: Position,
    },
    /// One message of a link.
    Stream {
        /// Configuration version of the link.
        version: u64,
        /// The link.
        link: u64,
        /// Number of the message in the link, from 1 without gaps.
        index: u64,
        /// The message.
        body: StreamBody,
    },
    /// How far the member has come.
    Ack {
        /// Configuration version of the link.
        version: u64,
        /// The link.
        link: u64,
        /// Sequence up to which it has executed and written everything.
        written: u64,
        /// Sequence up to which that is durable.
        durable: u64,
        /// Index of the last message of the link that is written.
        processed: u64,
        /// The member has no space for new data.
        full: bool,
    },
    /// Answer to [`StreamBody::FetchTail`]; the payload holds the bytes in order.
    Tail {
        /// Configuration version of the link.
        version: u64,
        /// The link.
        link: u64,
        /// As asked for.
        after: Position,
        /// Operations, each with the crc32c of its bytes.
        entries: Vec<(LogEntry, u32)>,
    },
    /// Answer to [`StreamBody::ReadBlocks`]; the payload are the bytes, fewer where the object ends.
    Blocks {
        /// Configuration version of the link.
        version: u64,
        /// The link.
        link: u64,
        /// As asked for.
        id: u64,
        /// Sequence of the object's last change and crc32c of the payload, or `None` if the member has no
        /// valid bytes either.
        found: Option<(u64, u32)>,
    },
    /// The member's copy of an object is damaged; operations on it wait until it was pushed.
    NeedObject {
        /// Configuration version of the link.
        version: u64,
        /// The link.
        link: u64,
        /// Which object.
        object: GroupObject,
    },
    /// Answer to [`StreamBody::Scrub`].
    Scrubbed {
        /// Configuration version of the link.
        version: u64,
        /// The link.
        link: u64,
        /// As asked for.
        id: u64,
        /// How far the list goes; less than asked for if there is too much.
        upto: Cursor,
        /// What there is.
        objects: Vec<(GroupObject, ObjectSummary)>,
    },
    /// The member has read every block that a deep [`StreamBody::Scrub`] asked for.
    Verified {
        /// Configuration version of the link.
        version: u64,
        /// The link.
        link: u64,
        /// As asked for.
        id: u64,
        /// Objects with blocks that do not match their checksum.
        damaged: Vec<GroupObject>,
    },
    /// The message was not taken.
    Refused {
        /// Configuration version that the member knows.
        version: u64,
        /// The link that the message belonged to.
        link: u64,
    },
}

/// A frame's header between data servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerFrame {
    /// The group.
    pub pg: PgId,
    /// About what.
    pub message: PeerMessage,
}
