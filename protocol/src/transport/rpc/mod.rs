//! Calls: a request with a payload, one reply with a payload, many at once.
//!
//! A call's header on the wire is `postcard(id: u64)` followed by `postcard(request or reply)`; the reply carries the
//! request's id. Each client has one channel of two streams: frames above [`SMALL_FRAME_BYTES_MAX`] travel on the
//! second, in either direction, so that a stat never waits behind a megabyte of data.
//!
//! Bounds: a client has at most [`CALLS_MAX`] calls in flight and [`QUEUED_BYTES_MAX`] bytes of large requests waiting;
//! a server serves at most [`ServeLimits`] per channel, and as many as a [`Gate`] lets through of several channels
//! together, and stops reading beyond. In each case the next one waits.

mod client;
mod lane;
mod server;

pub use client::{RpcClient, RpcError};
pub use server::{Gate, Responder, ServeLimits, serve_calls, serve_rpc};

/// Frames up to this size use the stream for small ones.
pub const SMALL_FRAME_BYTES_MAX: usize = 64 << 10;

/// Calls in flight of one client; further calls wait.
pub const CALLS_MAX: usize = 4096;

/// Payload bytes of one client that wait to be written; further calls wait.
pub const QUEUED_BYTES_MAX: usize = 64 << 20;
