use std::path::Path;
use std::sync::Mutex;

use protocol::identity::Role;
use protocol::transport::{Expect, FrameSender};

use super::*;
use crate::quorum::files::OsDirectory;
use crate::quorum::tests::loopback::{DEADLINE, Loopback};

const ZXID: Zxid = Zxid::new(3, 8);

struct Source(Vec<Bytes>);

impl SnapshotSource for Source {
    fn zxid(&self) -> Zxid {
        ZXID
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StateError> {
        match self.0.pop() {
            Some(chunk) if chunk == "broken" => Err("the disk is broken".into()),
            chunk => Ok(chunk),
        }
    }
}

/// What arrived, and whether it was finished.
type Arrived = Arc<Mutex<(Vec<Bytes>, bool)>>;

struct Sink(Arrived);

impl SnapshotSink for Sink {
    fn write(&mut self, chunk: Bytes) -> Result<(), StateError> {
        if chunk == "full" {
            return Err("the disk is full".into());
        }
        self.0.lock().expect("no panics").0.push(chunk);
        Ok(())
    }

    fn finish(self: Box<Self>, zxid: Zxid) -> Result<(), StateError> {
        assert_eq!(zxid, ZXID);
        self.0.lock().expect("no panics").1 = true;
        Ok(())
    }
}

/// Runs `send` on one end of a connection, receives on the other, and returns both results.
async fn transfer<T, F: Future<Output = T>>(
    send: impl FnOnce(Connection) -> F,
) -> (T, Result<SnapshotDescriptor, SnapshotError>, Arrived, bool) {
    let loopback = Loopback::new();
    let (one, two) = (loopback.endpoint(Role::Metadata, 1), loopback.endpoint(Role::Metadata, 2));
    let (opened, accepted) =
        tokio::join!(one.connect(two.local_addr(), Expect::server(Role::Metadata, 2)), two.accept());
    let (opened, accepted) = (opened.expect("it connects"), accepted.expect("it accepts"));
    let directory = tempfile::tempdir().expect("temporary directories work");
    let path = directory.path().join("state");
    std::fs::write(&path, b"being written").expect("the disk works");
    let arrived = Arrived::default();
    let receive = receive(accepted, &path, directory.path(), arrived.clone());
    let both = async { tokio::join!(send(opened), receive) };
    let (sent, received) = tokio::time::timeout(DEADLINE, both).await.expect("the transfer ends");
    (sent, received, arrived, path.exists())
}

async fn receive(
    connection: Connection,
    path: &Path,
    directory: &Path,
    arrived: Arrived,
) -> Result<SnapshotDescriptor, SnapshotError> {
    let (_, channel) = connection.accept_channel().await?;
    let (_answers, mut receiver) = channel.split();
    let hello = receiver.recv::<Hello>().await?.expect("a first frame").0;
    let Hello::Snapshot { id, zxid } = hello else { panic!("{hello:?}") };
    let directory = Arc::new(OsDirectory::new(directory));
    let reception = Reception { id, zxid, receiver, path: path.to_owned(), directory };
    reception.run(Box::new(Sink(arrived)), || {}).await
}

#[tokio::test]
async fn chunks_arrive_as_they_were_sent() {
    let chunks: Vec<Bytes> =
        (1..60_u8).map(|byte| Bytes::from(vec![byte; usize::from(byte) * 5_000])).collect();
    let source = Source(chunks.iter().rev().cloned().collect());
    let (sent, received, arrived, exists) = transfer(|connection| async move {
        let sent = send(connection.clone(), 41, Box::new(source)).await;
        (sent, connection)
    })
    .await;
    let descriptor = received.expect("everything arrives");
    assert_eq!(sent.0.expect("everything is sent"), descriptor);
    assert_eq!((descriptor.id, descriptor.zxid), (41, ZXID));
    assert_eq!(descriptor.length, chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>());
    let (found, is_finished) = &*arrived.lock().expect("no panics");
    assert_eq!((found, *is_finished, exists), (&chunks, true, true));
}

/// Sends `frames` by hand.
async fn by_hand(connection: Connection, frames: Vec<(SnapshotFrame, Bytes)>) -> (Connection, FrameSender) {
    let channel = connection.open_channel(channel_kind::ZAB).await.expect("it opens");
    let (mut sender, _answers) = channel.split();
    sender.send(&Hello::Snapshot { id: 1, zxid: ZXID }, Bytes::new()).await.expect("it is sent");
    for (header, payload) in frames {
        if sender.send(&header, payload).await.is_err() {
            break;
        }
    }
    (connection, sender)
}

/// What the receiver makes of frames sent by hand; nothing may be left of it.
async fn refusal(frames: Vec<(SnapshotFrame, Bytes)>) -> SnapshotError {
    let (_, received, arrived, exists) = transfer(|connection| by_hand(connection, frames)).await;
    assert!(!exists, "the file is removed");
    assert!(!arrived.lock().expect("no panics").1, "it was not finished");
    received.expect_err("it is refused")
}

#[tokio::test]
async fn damaged_and_malformed_snapshots_are_refused_and_removed() {
    let chunk = (SnapshotFrame::Chunk, Bytes::from_static(b"chunk"));
    let end = |length, crc| (SnapshotFrame::End { length, crc }, Bytes::new());
    let wrong_crc = refusal(vec![chunk.clone(), end(5, 1)]).await;
    assert!(matches!(wrong_crc, SnapshotError::Checksum { length: 5, .. }), "{wrong_crc}");
    let crc = crc32c::crc32c(b"chunk");
    let wrong_length = refusal(vec![chunk.clone(), end(6, crc)]).await;
    assert!(matches!(wrong_length, SnapshotError::Checksum { .. }), "{wrong_length}");
    let empty = refusal(vec![(SnapshotFrame::Chunk, Bytes::new()), end(0, 0)]).await;
    assert!(matches!(empty, SnapshotError::ChunkLength { bytes: 0 }), "{empty}");
    let full = (SnapshotFrame::Chunk, Bytes::from_static(b"full"));
    let full_disk = refusal(vec![full, end(4, crc32c::crc32c(b"full"))]).await;
    assert!(matches!(full_disk, SnapshotError::State(_)), "{full_disk}");
}

#[tokio::test]
async fn a_snapshot_that_breaks_off_is_refused_and_removed() {
    let source = Source(vec![Bytes::from_static(b"broken"), Bytes::from_static(b"chunk")]);
    let (sent, received, _, exists) = transfer(|connection| async move {
        let sent = send(connection.clone(), 41, Box::new(source)).await;
        (sent, connection)
    })
    .await;
    assert!(matches!(sent.0, Err(SnapshotError::State(_))));
    assert!(matches!(received, Err(SnapshotError::Truncated | SnapshotError::Transport(_))), "{received:?}");
    assert!(!exists, "the file is removed");
}
