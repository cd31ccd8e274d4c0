//! The accepting side's first word.
//!
//! In TLS 1.3 the opening side is done before the other has seen its certificate. Waiting for this frame makes a
//! refusal an error of connecting instead of a surprise later.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::check_version;
use crate::frame::{FrameBuffer, FrameDecoder};
use crate::identity::ClusterId;
use crate::transport::PROTOCOL_VERSION;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Welcome {
    version: u16,
    cluster: ClusterId,
}

/// Why no welcome came.
pub(in crate::transport) enum Failure {
    Lost(quinn::ConnectionError),
    Incompatible(String),
}

pub(in crate::transport) async fn send(
    quic: &quinn::Connection,
    cluster: ClusterId,
) -> Result<(), quinn::ConnectionError> {
    let mut stream = quic.open_uni().await?;
    let mut frame = FrameBuffer::default();
    frame
        .push(&Welcome { version: PROTOCOL_VERSION, cluster }, Bytes::new())
        .expect("a welcome of 18 bytes is below every limit");
    let mut chunks = std::collections::VecDeque::new();
    frame.take(&mut chunks);
    match stream.write_all_chunks(chunks.make_contiguous()).await {
        Err(quinn::WriteError::ConnectionLost(error)) => Err(error),
        // A peer that stops this stream does without the welcome. Dropping it finishes it.
        _ => Ok(()),
    }
}

pub(in crate::transport) async fn receive(quic: &quinn::Connection, own: ClusterId) -> Result<(), Failure> {
    let mut stream = quic.accept_uni().await.map_err(Failure::Lost)?;
    let mut decoder = FrameDecoder::default();
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => {
                let welcome: Welcome =
                    frame.decode().map_err(|error| Failure::Incompatible(error.to_string()))?;
                return check_version(welcome.version, welcome.cluster, own).map_err(Failure::Incompatible);
            }
            Ok(None) => {}
            Err(error) => return Err(Failure::Incompatible(error.to_string())),
        }
        match stream.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => decoder.push(chunk.bytes),
            Err(quinn::ReadError::ConnectionLost(error)) => return Err(Failure::Lost(error)),
            Ok(None) | Err(_) => {
                return Err(Failure::Incompatible("it did not say that it accepted this process".to_owned()));
            }
        }
    }
}
