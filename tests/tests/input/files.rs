//! Files of metadata servers: the log, the record, the backup; and newer formats of them. (The chunk store's journal is
//! damaged byte by byte in `data-server/src/store/tests/damage.rs`.)

use super::targets::Target;
use bytes::{BufMut, Bytes, BytesMut};
use metadata_server::backup::format::{BackupReader, BackupWriter};
use metadata_server::quorum::files::{Directory, OsDirectory};
use metadata_server::quorum::log_store::{LogStore, OpenedLog};
use metadata_server::quorum::{LogOptions, Storage, StorageOptions};
use metadata_server::state::key;
use metadata_server::state::machine::Machine;
use metadata_server::state::record::{FORMAT_VERSION, Progress, encode};
use protocol::meta::BackupHead;
use protocol::{Revision, Timestamp};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zab::{Entry, Membership, PeerId, Zxid};

const LOG: LogOptions = LogOptions { segment_bytes: 4 << 10 };

pub(crate) fn targets() -> Vec<Target> {
    vec![backup(), log(), record()]
}

/// A place for one file that is written again for every input.
struct Place {
    dir: tempfile::TempDir,
    file: PathBuf,
}

impl Place {
    fn holds(&self, bytes: &[u8]) {
        std::fs::write(&self.file, bytes).expect("a file can be written");
    }

    fn directory(&self) -> Arc<dyn Directory> {
        Arc::new(OsDirectory::new(self.dir.path()))
    }
}

fn head(revision: u64) -> BackupHead {
    BackupHead {
        cluster: [1; 16],
        generation: 0,
        revision: Revision(revision),
        zxid: (1, revision),
        state_format: FORMAT_VERSION,
        taken: Timestamp::default(),
        directories: vec![5],
    }
}

fn backup() -> Target {
    let whole = |rows: u8| {
        let mut writer = BackupWriter::new(Vec::new(), head(u64::from(rows))).expect("memory takes it");
        let progress = Progress { revision: u64::from(rows), ..Progress::default() };
        let mut block = BytesMut::new();
        let mut row = |key: &[u8], value: &[u8]| {
            block.put_u32_le(key.len() as u32);
            block.put_u32_le(value.len() as u32);
            block.put_slice(key);
            block.put_slice(value);
        };
        (0..rows).for_each(|n| row(&[1, n], &vec![n; usize::from(n)]));
        row(&key::system("progress"), &encode(&progress));
        writer.push(&block.freeze()).expect("rows");
        writer.finish().expect("whole").0
    };
    let decode =
        |bytes: &[u8]| BackupReader::new(bytes, Path::new("backup")).and_then(BackupReader::verify).is_ok();
    let seeds = [0, 3, 20].into_iter().map(whole).collect();
    Target { name: "backup", seeds, decode: Box::new(decode), cost: 4, is_checksummed: true }
}

fn entry(counter: u64) -> Entry {
    Entry::txn(Zxid::new(1, counter), Bytes::from(vec![counter as u8; 100]))
}

/// The first segment of a log with some batches, and of one with none.
fn segments(place: &Place) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for batches in [0, 1, 5] {
        let mut log = LogStore::create(place.directory(), 0, Zxid::ZERO, LOG).expect("the disk works");
        for batch in 0..batches {
            log.append(&[entry(2 * batch + 1), entry(2 * batch + 2)]).expect("they follow");
            log.commit().expect("the disk works");
        }
        seeds.push(std::fs::read(&place.file).expect("the segment is there"));
    }
    seeds
}

fn log_place() -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join(format!("log-{:016x}-{:016x}", 0, 0));
    Place { dir, file }
}

fn log() -> Target {
    let place = log_place();
    let seeds = segments(&place);
    let decode = move |bytes: &[u8]| {
        place.holds(bytes);
        let Ok(mut opened) = OpenedLog::read(place.directory(), 0, Zxid::ZERO, LOG) else { return false };
        let found = opened.recovery();
        let follows = |pair: &[Entry]| pair[1].zxid.follows(pair[0].zxid);
        assert!(found.entries.windows(2).all(follows), "the log has a hole");
        let expected = |(entry, counter): (&Entry, u64)| *entry == super::files::entry(counter);
        assert!(found.entries.iter().zip(1..).all(expected), "it holds what nobody wrote");
        found.damage.is_none() && !found.torn
    };
    Target { name: "log segment", seeds, decode: Box::new(decode), cost: 60, is_checksummed: true }
}

fn storage_options() -> StorageOptions {
    StorageOptions { cluster: [1; 16], server: PeerId(1), log: LOG }
}

fn record_place() -> (Place, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    let made = Storage::open_or_create(dir.path(), &storage_options(), || Membership::unbound([PeerId(1)]));
    drop(made.expect("the disk works"));
    let file = dir.path().join("record");
    let bytes = std::fs::read(&file).expect("the record is there");
    (Place { dir, file }, bytes)
}

/// The intact slots of a record file, each without the zeros behind it: as the only slot it is a whole record.
fn slots(bytes: &[u8]) -> Vec<Vec<u8>> {
    let length = |slot: &[u8]| u32::from_le_bytes(slot[12..16].try_into().expect("four bytes")) as usize;
    let intact = bytes.chunks(16 << 10).filter(|slot| slot.starts_with(b"zabfslot"));
    intact.map(|slot| slot[..24 + length(slot)].to_vec()).collect()
}

fn open_storage(place: &Place) -> Result<Storage, metadata_server::quorum::StorageError> {
    Storage::open_or_create(place.dir.path(), &storage_options(), Membership::default)
}

fn record() -> Target {
    let (place, _) = record_place();
    drop(open_storage(&place).expect("it opens"));
    let seeds = slots(&std::fs::read(&place.file).expect("the record is there"));
    let decode = move |bytes: &[u8]| {
        place.holds(bytes);
        open_storage(&place).is_ok()
    };
    Target { name: "record", seeds, decode: Box::new(decode), cost: 400, is_checksummed: true }
}

/// Replaces a number and the checksum over it.
fn patch(bytes: &mut [u8], at: usize, value: u32, crc_at: usize, covered: std::ops::Range<usize>) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[covered]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_newer_record_log_and_state_are_refused_with_a_sentence() {
    let (place, mut bytes) = record_place();
    for slot in bytes.chunks_mut(16 << 10).filter(|slot| slot.starts_with(b"zabfslot")) {
        let length = u32::from_le_bytes(slot[12..16].try_into().expect("four bytes")) as usize;
        // The contents begin with the format, a varint of one byte.
        slot[24] = 99;
        let crc = crc32c::crc32c(&slot[12..24 + length]);
        slot[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    place.holds(&bytes);
    let said = open_storage(&place).err().expect("it is refused").to_string();
    assert!(said.contains("record") && said.contains("format 99") && said.contains("upgrade"), "{said}");

    let place = log_place();
    let mut bytes = segments(&place).pop().expect("a segment");
    patch(&mut bytes, 12, 99, 8, 12..128);
    place.holds(&bytes);
    let said =
        OpenedLog::read(place.directory(), 0, Zxid::ZERO, LOG).err().expect("it is refused").to_string();
    assert!(said.contains("log segment") && said.contains("format 99") && said.contains("upgrade"), "{said}");

    let newer = encode(&(FORMAT_VERSION + 1));
    let state = BTreeMap::from([(key::system("format_version"), newer)]);
    let said = Machine::open(state).err().expect("it is refused").to_string();
    assert!(said.contains("format") && said.contains("install a newer zabfs"), "{said}");
    let state = BTreeMap::from([(key::system("format_version"), encode(&1_u32))]);
    let said = Machine::open(state).err().expect("it is refused").to_string();
    assert!(said.contains("format 1") && said.contains("into a new cluster"), "{said}");
}
