//! Frames: how a header and a payload lie on a stream.
//!
//! ```text
//! offset  size  field
//!      0     4  length   u32 little endian: bytes that follow this field, 4 + H + P
//!      4     4  header   u32 little endian: H, the header's length
//!      8     H  header   postcard of the channel's header type
//!    8+H     P  payload  bytes as they are; its length is what remains
//! ```
//!
//! Both lengths are checked against [`FRAME_BYTES_MAX`] and [`HEADER_BYTES_MAX`] before anything is allocated.
//! Payloads never go through postcard: they leave as the [`Bytes`] they came in, and arrive as a slice of the
//! received packet when one packet holds the whole frame, else copied once into a buffer of the frame's size.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest frame, header and payload together, without the two length fields.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// The longest header: 1 MiB for what a message may carry inline, and its fields.
pub const HEADER_BYTES_MAX: usize = (1 << 20) + (64 << 10);

/// Bytes of the two length fields.
pub const PREFIX_BYTES: usize = 8;

/// Payloads up to this size are copied: cheaper than a list entry when sending, and when receiving it keeps a
/// small value from pinning the 64 KiB packet it came in.
const PAYLOAD_COPIED_BYTES_MAX: usize = 2048;

/// Why bytes are no frame, or a message fits none. The peer that sent such a frame is broken or foreign: its
/// connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {bytes} bytes exceeds the limit of {FRAME_BYTES_MAX} bytes")]
    FrameTooLong { bytes: usize },
    #[error("a frame header of {bytes} bytes exceeds the limit of {HEADER_BYTES_MAX} bytes")]
    HeaderTooLong { bytes: usize },
    #[error("a frame of {frame} bytes claims a header of {header} bytes, which does not fit into it")]
    HeaderOutsideFrame { frame: usize, header: usize },
    #[error("a frame header does not decode: {0}")]
    Header(postcard::Error),
    #[error("a frame header is followed by {bytes} bytes that belong to nothing")]
    TrailingBytes { bytes: usize },
    #[error("a message does not encode: {0}")]
    Encode(postcard::Error),
    #[error("the stream ended inside a frame, after {bytes} of its bytes")]
    Truncated { bytes: usize },
}

/// A frame as it came, its header not decoded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub header: Bytes,
    pub payload: Bytes,
}

impl Frame {
    /// Decodes the header; every byte of it must belong to the message.
    pub fn decode<H: DeserializeOwned>(&self) -> Result<H, FrameError> {
        decode_header(&self.header)
    }
}

/// Decodes a header; every byte must belong to the message.
pub fn decode_header<H: DeserializeOwned>(header: &[u8]) -> Result<H, FrameError> {
    let (value, rest) = postcard::take_from_bytes(header).map_err(FrameError::Header)?;
    if !rest.is_empty() {
        return Err(FrameError::TrailingBytes { bytes: rest.len() });
    }
    Ok(value)
}

/// Frames encoded and waiting to be written: small ones share one buffer, large payloads stay the `Bytes` they
/// are. Not bounded by itself; whoever fills it bounds what is outstanding.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
}

impl FrameBuffer {
    /// Appends one frame. On error nothing was appended.
    pub fn push(&mut self, header: &impl Serialize, payload: Bytes) -> Result<(), FrameError> {
        let start = self.tail.len();
        self.tail.put_bytes(0, PREFIX_BYTES);
        let encoded = postcard::serialize_with_flavor(header, Appender(&mut self.tail));
        let header_len = self.tail.len() - start - PREFIX_BYTES;
        let checked = match encoded {
            Ok(()) => check_lengths(header_len + payload.len(), header_len),
            Err(error) => Err(FrameError::Encode(error)),
        };
        if let Err(error) = checked {
            self.tail.truncate(start);
            return Err(error);
        }
        let frame_len = header_len + payload.len();
        self.tail[start..start + 4].copy_from_slice(&((frame_len + 4) as u32).to_le_bytes());
        self.tail[start + 4..start + 8].copy_from_slice(&(header_len as u32).to_le_bytes());
        self.bytes += PREFIX_BYTES + frame_len;
        if payload.len() <= PAYLOAD_COPIED_BYTES_MAX {
            self.tail.extend_from_slice(&payload);
        } else {
            self.chunks.push_back(self.tail.split().freeze());
            self.chunks.push_back(payload);
        }
        Ok(())
    }

    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Moves everything that waits to the end of `out`.
    pub fn take(&mut self, out: &mut VecDeque<Bytes>) {
        out.append(&mut self.chunks);
        if !self.tail.is_empty() {
            out.push_back(self.tail.split().freeze());
        }
        self.bytes = 0;
    }
}

/// Cuts a stream of bytes into frames. Pure: chunks in, frames out.
///
/// After an error the stream has no meaning any more and every further call returns an error again.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    /// What was pushed and not consumed; all but the part of a frame being assembled.
    input: Input,
    /// A frame whose bytes come in several chunks.
    assembling: Option<Assembly>,
    failed: Option<FrameError>,
}

impl FrameDecoder {
    /// Appends received bytes.
    pub fn push(&mut self, chunk: Bytes) {
        self.input.push(chunk);
    }

    /// The next complete frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// The lengths are impossible.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// To be called at the end of the stream: an error if it ended inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.pending() {
            0 => Ok(()),
            bytes => Err(FrameError::Truncated { bytes }),
        }
    }

    /// Bytes pushed that are not part of a returned frame yet.
    pub fn pending(&self) -> usize {
        self.input.bytes + self.assembling.as_ref().map_or(0, |assembly| PREFIX_BYTES + assembly.buffer.len())
    }

    fn advance(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.assembling.is_none() {
            let Some((frame_len, header_len)) = self.take_prefix()? else { return Ok(None) };
            if let Some(whole) = self.input.split_front(frame_len) {
                return Ok(Some(cut(whole, header_len)));
            }
            self.assembling =
                Some(Assembly { buffer: BytesMut::with_capacity(frame_len), frame_len, header_len });
        }
        let Some(assembly) = &mut self.assembling else { return Ok(None) };
        let missing = assembly.frame_len - assembly.buffer.len();
        self.input.copy_into(&mut assembly.buffer, missing);
        if assembly.buffer.len() < assembly.frame_len {
            return Ok(None);
        }
        let done = self.assembling.take().map(|done| cut(done.buffer.freeze(), done.header_len));
        Ok(done)
    }

    fn take_prefix(&mut self) -> Result<Option<(usize, usize)>, FrameError> {
        let Some(prefix) = self.input.peek_prefix() else { return Ok(None) };
        let (length, header) = prefix.split_at(4);
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let header_len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(frame_len) = length.checked_sub(4) else {
            return Err(FrameError::HeaderOutsideFrame { frame: length, header: header_len });
        };
        check_lengths(frame_len, header_len)?;
        self.input.skip(PREFIX_BYTES);
        Ok(Some((frame_len, header_len)))
    }
}

fn check_lengths(frame: usize, header: usize) -> Result<(), FrameError> {
    if frame > FRAME_BYTES_MAX {
        return Err(FrameError::FrameTooLong { bytes: frame });
    }
    if header > HEADER_BYTES_MAX {
        return Err(FrameError::HeaderTooLong { bytes: header });
    }
    if header > frame {
        return Err(FrameError::HeaderOutsideFrame { frame, header });
    }
    Ok(())
}

fn cut(mut whole: Bytes, header_len: usize) -> Frame {
    let header = whole.split_to(header_len);
    let payload =
        if whole.len() <= PAYLOAD_COPIED_BYTES_MAX { Bytes::copy_from_slice(&whole) } else { whole };
    Frame { header, payload }
}

#[derive(Debug)]
struct Assembly {
    buffer: BytesMut,
    frame_len: usize,
    header_len: usize,
}

#[derive(Debug, Default)]
struct Input {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Input {
    fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    fn peek_prefix(&self) -> Option<[u8; PREFIX_BYTES]> {
        if self.bytes < PREFIX_BYTES {
            return None;
        }
        let mut prefix = [0; PREFIX_BYTES];
        let mut filled = 0;
        for chunk in &self.chunks {
            let take = chunk.len().min(PREFIX_BYTES - filled);
            prefix[filled..filled + take].copy_from_slice(&chunk[..take]);
            filled += take;
            if filled == PREFIX_BYTES {
                break;
            }
        }
        Some(prefix)
    }

    fn skip(&mut self, mut count: usize) {
        while count > 0 {
            let Some(front) = self.chunks.front_mut() else { return };
            let take = front.len().min(count);
            front.advance(take);
            self.bytes -= take;
            count -= take;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// `count` bytes without a copy, if the first chunk holds them all.
    fn split_front(&mut self, count: usize) -> Option<Bytes> {
        if count == 0 {
            return Some(Bytes::new());
        }
        let front = self.chunks.front_mut()?;
        if front.len() < count {
            return None;
        }
        let whole = front.split_to(count);
        self.bytes -= count;
        if front.is_empty() {
            self.chunks.pop_front();
        }
        Some(whole)
    }

    fn copy_into(&mut self, buffer: &mut BytesMut, mut count: usize) {
        while count > 0 {
            let Some(front) = self.chunks.front() else { return };
            let take = front.len().min(count);
            buffer.extend_from_slice(&front[..take]);
            self.skip(take);
            count -= take;
        }
    }
}

/// Lets postcard write straight behind the length fields.
struct Appender<'a>(&'a mut BytesMut);

impl postcard::ser_flavors::Flavor for Appender<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.put_u8(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
