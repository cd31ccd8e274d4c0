//! What is decoded, and valid inputs of it.

use super::files;
use super::mutator::Mutator;
use bytes::Bytes;
use crush::CrushMap;
use metadata_server::state::txn::Txn;
use protocol::data::{DataRequest, DataResponse};
use protocol::frame::{FrameBuffer, FrameDecoder};
use protocol::map::ClusterMap;
use protocol::meta::{BackupHead, MetaRequest, MetaResponse, Push};
use protocol::replication::PeerFrame;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::panic::RefUnwindSafe;

/// Decodes, and checks what comes out; whether anything did.
type Decode = Box<dyn Fn(&[u8]) -> bool + RefUnwindSafe>;

/// One decoder.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) seeds: Vec<Vec<u8>>,
    pub(crate) decode: Decode,
    /// How much dearer than a message.
    pub(crate) cost: u64,
    /// A mutation that decodes is not expected.
    pub(crate) is_checksummed: bool,
}

pub(crate) fn all(mutator: &mut Mutator) -> Vec<Target> {
    let mut targets = vec![
        message::<MetaRequest>("MetaRequest", 20, mutator),
        message::<MetaResponse>("MetaResponse", 2, mutator),
        message::<Push>("Push", 3, mutator),
        message::<ClusterMap>("ClusterMap", 1, mutator),
        message::<DataRequest>("DataRequest", 5, mutator),
        message::<DataResponse>("DataResponse", 2, mutator),
        message::<PeerFrame>("PeerFrame", 1, mutator),
        message::<zab::Message>("zab::Message", 1, mutator),
        message::<zab::Record>("zab::Record", 1, mutator),
        message::<Txn>("Txn", 1, mutator),
        message::<BackupHead>("BackupHead", 1, mutator),
        frames(mutator),
        crush_text(),
        crush_binary(),
    ];
    targets.extend(files::targets());
    targets
}

/// A message in postcard. Valid ones are found by decoding random bytes, so that no kind is forgotten: at least
/// `kinds` different first bytes must come up.
fn message<T>(name: &'static str, kinds: usize, mutator: &mut Mutator) -> Target
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
{
    let (mut seeds, mut found) = (Vec::new(), BTreeSet::new());
    for round in 0..8_000usize {
        let len = 4 + mutator.below(120);
        let mut bytes = mutator.small_bytes(len);
        bytes[0] = (round % 40) as u8;
        if let Ok((value, _)) = postcard::take_from_bytes::<T>(&bytes) {
            let encoded = postcard::to_stdvec(&value).expect("what was decoded encodes");
            let is_new = found.insert(encoded.first().copied());
            if is_new || seeds.len() < 150 {
                seeds.push(encoded);
            }
        }
    }
    assert!(found.len() >= kinds, "{name}: only {} kinds of valid messages came up", found.len());
    Target { name, seeds, decode: Box::new(decode_message::<T>), cost: 1, is_checksummed: false }
}

fn decode_message<T>(bytes: &[u8]) -> bool
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
{
    let Ok((value, [])) = postcard::take_from_bytes::<T>(bytes) else { return false };
    let encoded = postcard::to_stdvec(&value).expect("what was decoded encodes");
    let again: T = postcard::from_bytes(&encoded).expect("what was encoded decodes");
    assert_eq!(again, value, "it changed on the way");
    true
}

/// A stream of frames, handed over in pieces.
fn frames(mutator: &mut Mutator) -> Target {
    let mut seeds = Vec::new();
    for frames in 1..12 {
        let mut buffer = FrameBuffer::default();
        for _ in 0..frames {
            let (header, payload) = (mutator.below(40), mutator.below(5_000));
            let header = mutator.small_bytes(header);
            let payload = Bytes::from(mutator.small_bytes(payload));
            buffer.push(&header, payload).expect("it fits");
        }
        let mut out = Default::default();
        buffer.take(&mut out);
        seeds.push(out.into_iter().flatten().collect());
    }
    Target { name: "frames", seeds, decode: Box::new(decode_frames), cost: 10, is_checksummed: false }
}

fn decode_frames(bytes: &[u8]) -> bool {
    let mut decoder = FrameDecoder::default();
    let mut total = 0;
    for piece in bytes.chunks(1 + bytes.len() / 3) {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    total += frame.header.len() + frame.payload.len();
                    assert!(total <= bytes.len(), "frames are longer than what came");
                    // Its type is the channel's; any will do.
                    let _ = frame.decode::<MetaRequest>();
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_frame(), Err(error), "an error is final");
                    return false;
                }
            }
        }
    }
    decoder.finish().is_ok()
}

/// Maps that Ceph's tools made: small ones, so that a mutation hits something.
fn maps() -> Vec<String> {
    let names = ["small-2host", "mixed-algs-1", "choose-args-1", "rule-odd", "class-straw2-auto"];
    let dir = cluster_tests::programs::workspace().join("crush/tests/vectors");
    let read =
        |name| std::fs::read_to_string(dir.join(format!("{name}.txt"))).expect("it is in the repository");
    names.into_iter().map(read).collect()
}

fn crush_text() -> Target {
    let seeds = maps().into_iter().map(String::into_bytes).collect();
    Target { name: "CRUSH text", seeds, decode: Box::new(decode_text), cost: 20, is_checksummed: false }
}

fn decode_text(bytes: &[u8]) -> bool {
    let Ok(map) = CrushMap::parse_text(&String::from_utf8_lossy(bytes)) else { return false };
    let text = map.to_text();
    let again = CrushMap::parse_text(&text).expect("what was written parses");
    assert_eq!(again.to_text(), text, "it changed on the way");
    true
}

fn crush_binary() -> Target {
    let compile = |text: String| CrushMap::parse_text(&text).ok()?.to_binary().ok();
    let seeds = maps().into_iter().filter_map(compile).collect();
    Target { name: "CRUSH binary", seeds, decode: Box::new(decode_binary), cost: 20, is_checksummed: false }
}

fn decode_binary(bytes: &[u8]) -> bool {
    let Ok(map) = CrushMap::from_binary(bytes) else { return false };
    if let Ok(binary) = map.to_binary() {
        let again = CrushMap::from_binary(&binary).expect("what was written is read");
        assert_eq!(again.to_binary().expect("again"), binary, "it changed on the way");
    }
    true
}
