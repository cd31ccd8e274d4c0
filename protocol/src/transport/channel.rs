//! Channels: frames in both directions on one stream.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::Connection;
use super::{Lost, TransportError};
use crate::frame::{Frame, FrameBuffer, FrameDecoder, FrameError};

/// Chunks taken from a stream at once.
const CHUNKS: usize = 32;

/// Frames in both directions. Channels that [`RpcClient`](super::rpc::RpcClient) opens have a second stream for
/// large frames, which only [`serve_rpc`](super::rpc::serve_rpc) knows how to use.
pub struct Channel {
    pub(super) kind: u8,
    pub(super) sender: FrameSender,
    pub(super) receiver: FrameReceiver,
    pub(super) bulk: Option<(FrameSender, FrameReceiver)>,
}

impl Channel {
    /// What the channel is for; numbers are given by its users.
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// The connection it runs on.
    pub fn connection(&self) -> &Connection {
        &self.sender.connection
    }

    /// Both directions, to be used by different tasks.
    pub fn split(self) -> (FrameSender, FrameReceiver) {
        (self.sender, self.receiver)
    }
}

/// Sends frames. Dropping it ends the channel in this direction; if a frame is half sent then, the peer sees
/// [`TransportError::ChannelReset`] instead of an end.
pub struct FrameSender {
    stream: quinn::SendStream,
    connection: Connection,
    queued: FrameBuffer,
    /// Taken from `queued`, partly written.
    pending: VecDeque<Bytes>,
}

impl FrameSender {
    pub(super) fn new(stream: quinn::SendStream, connection: Connection) -> Self {
        FrameSender { stream, connection, queued: FrameBuffer::default(), pending: VecDeque::new() }
    }

    /// The connection it runs on.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a frame and whatever was queued before it. Returns when the transport has taken it, which may be well
    /// before the peer has it; waits while the peer does not read. If the call is cancelled, the frame stays queued
    /// and leaves with the next one.
    ///
    /// # Errors
    /// The message is too large ([`TransportError::Unsendable`]; nothing was sent), or the channel or its connection
    /// is lost.
    pub async fn send(&mut self, header: &impl Serialize, payload: Bytes) -> Result<(), TransportError> {
        self.queue(header, payload)?;
        self.flush().await
    }

    /// Appends a frame to what the next [`flush`](Self::flush) sends, without waiting. The caller bounds how much
    /// it queues, see [`queued_bytes`](Self::queued_bytes).
    pub fn queue(&mut self, header: &impl Serialize, payload: Bytes) -> Result<(), TransportError> {
        self.queued.push(header, payload).map_err(TransportError::Unsendable)
    }

    /// Bytes queued and not yet taken by a flush.
    pub fn queued_bytes(&self) -> usize {
        self.queued.len()
    }

    /// Sends what is queued. May be cancelled and called again.
    pub async fn flush(&mut self) -> Result<(), TransportError> {
        self.queued.take(&mut self.pending);
        while !self.pending.is_empty() {
            match self.stream.write_chunks(self.pending.make_contiguous()).await {
                Ok(written) => drop(self.pending.drain(..written.chunks)),
                Err(error) => {
                    self.pending.clear();
                    return Err(self.write_error(error));
                }
            }
        }
        Ok(())
    }

    /// Ends the channel in this direction, after everything sent so far.
    pub async fn finish(mut self) -> Result<(), TransportError> {
        self.flush().await
    }

    /// Waits until the peer no longer wants frames: it dropped its receiver, or the connection is lost.
    pub async fn stopped(&self) -> TransportError {
        match self.stream.stopped().await {
            Err(quinn::StoppedError::ConnectionLost(error)) => self.connection.explain(error).into(),
            _ => TransportError::ChannelReset,
        }
    }

    /// Streams with a higher priority are written first.
    pub(super) fn set_priority(&self, priority: i32) {
        // Fails only on a stream that was reset, which the next write reports.
        let _ = self.stream.set_priority(priority);
    }

    /// Moves everything from `buffer` to what the next flush sends.
    pub(super) fn absorb(&mut self, buffer: &mut FrameBuffer) {
        buffer.take(&mut self.pending);
    }

    fn write_error(&self, error: quinn::WriteError) -> TransportError {
        match error {
            quinn::WriteError::ConnectionLost(error) => self.connection.explain(error).into(),
            quinn::WriteError::Stopped(_) | quinn::WriteError::ClosedStream => TransportError::ChannelReset,
            quinn::WriteError::ZeroRttRejected => {
                Lost::Failed { why: "early data was rejected, and none was sent".to_owned() }.into()
            }
        }
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            // Half a frame followed by a proper end would look like damage and cost the whole connection.
            let _ = self.stream.reset(quinn::VarInt::from_u32(0));
        }
    }
}

/// Receives frames. Dropping it tells the peer to stop sending.
pub struct FrameReceiver {
    raw: RawReceiver,
    connection: Connection,
}

impl FrameReceiver {
    pub(super) fn new(raw: RawReceiver, connection: Connection) -> Self {
        FrameReceiver { raw, connection }
    }

    /// The connection it runs on.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The next frame, or `None` when the peer ended the channel. Cancelling loses nothing.
    ///
    /// A payload larger than 2 KiB may be a slice of a received packet of up to 64 KiB: copy what is kept for long.
    ///
    /// # Errors
    /// The channel or connection is lost. A malformed frame closes the whole connection and is logged here.
    pub async fn recv<H: DeserializeOwned>(&mut self) -> Result<Option<(H, Bytes)>, TransportError> {
        let Some(frame) = self.recv_frame().await? else { return Ok(None) };
        match frame.decode() {
            Ok(header) => Ok(Some((header, frame.payload))),
            Err(error) => Err(self.malformed(error)),
        }
    }

    /// The next frame with its header still encoded.
    pub async fn recv_frame(&mut self) -> Result<Option<Frame>, TransportError> {
        match self.raw.recv().await {
            Ok(frame) => Ok(frame),
            Err(RawError::Frame(error)) => Err(self.malformed(error)),
            Err(RawError::Lost(error)) => Err(self.connection.explain(error).into()),
            Err(RawError::Reset) => Err(TransportError::ChannelReset),
        }
    }

    /// Closes the connection because of a malformed frame.
    pub(super) fn malformed(&self, error: FrameError) -> TransportError {
        self.connection.close_malformed(&error.to_string());
        TransportError::Malformed(error)
    }
}

/// A receiving stream cut into frames, not yet tied to a [`Connection`] (which would keep it open).
pub(super) struct RawReceiver {
    stream: quinn::RecvStream,
    decoder: FrameDecoder,
}

/// Why a [`RawReceiver`] gave no frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum RawError {
    #[error(transparent)]
    Frame(FrameError),
    #[error(transparent)]
    Lost(quinn::ConnectionError),
    #[error("the stream was reset")]
    Reset,
}

impl RawReceiver {
    pub(super) fn new(stream: quinn::RecvStream) -> Self {
        RawReceiver { stream, decoder: FrameDecoder::default() }
    }

    pub(super) async fn recv(&mut self) -> Result<Option<Frame>, RawError> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(RawError::Frame)? {
                return Ok(Some(frame));
            }
            let mut chunks: [Bytes; CHUNKS] = Default::default();
            match self.stream.read_chunks(&mut chunks).await {
                Ok(Some(count)) => chunks.into_iter().take(count).for_each(|chunk| self.decoder.push(chunk)),
                Ok(None) => return self.decoder.finish().map(|()| None).map_err(RawError::Frame),
                Err(quinn::ReadError::ConnectionLost(error)) => return Err(RawError::Lost(error)),
                Err(_) => return Err(RawError::Reset),
            }
        }
    }
}
