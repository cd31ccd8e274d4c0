//! QUIC with mutual TLS: endpoints, connections, channels of frames, and calls ([`rpc`]).
//!
//! | | |
//! |---|---|
//! | [`Endpoint`] | one UDP socket per process: opens and accepts connections |
//! | [`Connection`] | to one verified peer; lost as a whole when the peer is silent, gone or misbehaves |
//! | [`Channel`] | one long-lived stream of [frames](crate::frame) of one kind; either side opens them |
//! | [`rpc::RpcClient`], [`rpc::serve_rpc`] | many calls in flight on one channel, large payloads on a second stream |
//!
//! Everything runs on the runtime that called [`Endpoint::bind`]; on a `current_thread` runtime no message changes
//! threads. All futures are `Send` except those of [`rpc::serve_rpc`], whose handlers need not be.
//!
//! Order of a connection: TLS 1.3 handshake in which both sides check the other's certificate and role; the
//! accepting side sends one [`Welcome`](connection) frame on a unidirectional stream, so that the opening side
//! knows it was accepted; then each channel starts with one frame that repeats protocol version, cluster and kind.
//!
//! Why it is tuned as it is: a datagram costs about the same whatever its size, so the MTU climbs to what the link
//! carries (65000 on loopback); segmentation offload breaks above about 6550 bytes, because ten segments exceed
//! 64 KiB; default socket buffers lose thousands of packets per second.

mod channel;
mod connection;
mod endpoint;
mod link;
mod probe;
mod refusals;
pub mod rpc;
mod settings;
mod socket;
mod verify;

use std::net::SocketAddr;
use std::time::Duration;

pub use channel::{Channel, FrameReceiver, FrameSender};
pub use connection::Connection;
pub use endpoint::{Endpoint, EndpointStats, Expect};
pub use settings::TransportConfig;

use crate::frame::FrameError;
use crate::identity::IdentityError;

/// The version of everything above TLS. Peers of another version are refused. Raised by every change after which one
/// side would misread what the other says; `docs/FORMATS.md` has the rule and the history.
pub const PROTOCOL_VERSION: u16 = 2;

/// The name that TLS negotiates: of the frames, the welcome and a channel's first frame, which all versions share, so that
/// a peer of another [`PROTOCOL_VERSION`] is told so in a sentence.
pub const ALPN: &[u8] = b"zabfs/1";

/// Why something on the network did not work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot bind the UDP address {address}: {why}")]
    Bind { address: SocketAddr, why: String },
    #[error("cannot use this transport configuration: {0}")]
    Config(String),
    #[error("cannot connect to {address}: {why}")]
    Connect { address: SocketAddr, why: String },
    #[error("{address} did not answer within {waited:?}; check that the server runs and that UDP reaches it")]
    Unanswered { address: SocketAddr, waited: Duration },
    #[error("this side refused {address}: {why}")]
    Refused { address: SocketAddr, why: String },
    #[error("{address} refused this process: {why}")]
    RefusedByPeer { address: SocketAddr, why: String },
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("the peer gave up this channel before its end")]
    ChannelReset,
    #[error("the peer sent what is no frame of this channel: {0}")]
    Malformed(FrameError),
    #[error("the message cannot be sent: {0}")]
    Unsendable(FrameError),
}

impl From<IdentityError> for TransportError {
    fn from(error: IdentityError) -> Self {
        TransportError::Config(error.to_string())
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("the connection was closed here: {why}")]
    ClosedHere { why: String },
    #[error("the peer closed the connection: {why}")]
    ClosedByPeer { why: String },
    #[error("the peer was silent for longer than the idle timeout")]
    Silent,
    #[error("the peer restarted and does not know this connection any more")]
    Restarted,
    #[error("the connection failed: {why}")]
    Failed { why: String },
}

/// The codes that close a connection, for whoever reads a packet trace.
mod close_code {
    /// Nobody needs the connection any more.
    pub(super) const DONE: u32 = 0;
    /// The peer sent something that is no frame, or no message of its channel.
    pub(super) const MALFORMED: u32 = 1;
    /// The peer is of another version or cluster.
    pub(super) const INCOMPATIBLE: u32 = 2;
    /// The peer's process is gone.
    pub(super) const GONE: u32 = 3;
}
