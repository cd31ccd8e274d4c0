//! What every part of zabfs shares: identifiers, messages, the errno table, frames, the QUIC transport and
//! the certificates that name its peers.
//!
//! | module | what |
//! |---|---|
//! | [`id`], [`name`], [`attr`], [`errno`] | the vocabulary |
//! | [`meta`] | client and data server → metadata cluster |
//! | [`data`] | client → data server |
//! | [`replication`] | data server ↔ data server |
//! | [`channel_kind`] | what the channels of a connection are for |
//! | [`frame`], [`transport`] | frames, and the QUIC connections that carry them |
//! | [`identity`] | the certificate authority and who the certificates name |
//! | [`map`] | the cluster map: servers, pools, placement-group configurations |
//! | [`split`] | which groups multiply into which |
//!
//! Architecture invariant: nothing here decides anything about the namespace, replication or placement.

pub mod attr;
pub mod data;
pub mod errno;
pub mod frame;
pub mod id;
pub mod identity;
pub mod map;
pub mod meta;
// The same switch as in zab, which sees nothing of this crate: for those who see this one and not zab.
#[path = "../../zab/src/mutant.rs"]
pub mod mutant;
pub mod name;
pub mod replication;
pub mod split;
pub mod transport;

/// Kinds of channels, for [`transport::Connection::open_channel`].
pub mod channel_kind {
    /// Calls to a metadata server: [`MetaRequest`](crate::meta::MetaRequest) →
    /// [`MetaResponse`](crate::meta::MetaResponse).
    pub const META: u8 = 1;
    /// Frames of [`Push`](crate::meta::Push), opened by the leader on a connection that calls it.
    pub const PUSH: u8 = 2;
    /// Calls to a data server: [`DataRequest`](crate::data::DataRequest) →
    /// [`DataResponse`](crate::data::DataResponse).
    pub const DATA: u8 = 3;
    /// Frames of [`PeerFrame`](crate::replication::PeerFrame) between data servers, one direction per channel.
    pub const PEER: u8 = 4;
    /// Frames between metadata servers.
    pub const ZAB: u8 = 5;
}

pub use attr::{Attr, FileKind, FileView, Layout, Timestamp, Truncation};
pub use errno::Errno;
pub use id::{
    DataServerId, InodeId, MapEpoch, MetadataServerId, ObjectId, PgId, PoolId, RequestId, Revision,
    SessionId, StoreUuid,
};
pub use name::EntryName;
