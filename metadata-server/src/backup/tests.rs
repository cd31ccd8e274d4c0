use super::*;
use crate::state::record::encode;
use bytes::{BufMut, BytesMut};
use protocol::{Revision, Timestamp};
use std::io::Cursor;

fn head() -> BackupHead {
    BackupHead {
        cluster: [7; 16],
        generation: 2,
        revision: Revision(41),
        zxid: (3, 9),
        state_format: FORMAT_VERSION,
        taken: Timestamp { seconds: 1_800_000_000, nanoseconds: 5 },
        directories: vec![1, 2, 3],
    }
}

fn row(rows: &mut BytesMut, key: &[u8], value: &[u8]) {
    rows.put_u32_le(key.len() as u32);
    rows.put_u32_le(value.len() as u32);
    rows.put_slice(key);
    rows.put_slice(value);
}

/// Three blocks, the progress record in the second.
fn blocks() -> Vec<Bytes> {
    let progress = Progress { zab_epoch: 3, counter: 9, revision: 41, ..Progress::default() };
    let mut blocks = [BytesMut::new(), BytesMut::new(), BytesMut::new()];
    row(&mut blocks[0], &[1, 1], b"one");
    row(&mut blocks[0], &[1, 2], &[5; 300]);
    row(&mut blocks[1], &key::system("progress"), &encode(&progress));
    row(&mut blocks[2], &[0x0e], b"");
    blocks.into_iter().map(BytesMut::freeze).collect()
}

fn backup() -> Vec<u8> {
    let mut writer = BackupWriter::new(Vec::new(), head()).expect("begins");
    blocks().iter().for_each(|block| writer.push(block).expect("rows"));
    writer.finish().expect("whole").0
}

fn read(bytes: &[u8]) -> Result<(BackupHead, Vec<Bytes>), BackupError> {
    let mut reader = BackupReader::new(Cursor::new(bytes), Path::new("backup"))?;
    let mut blocks = Vec::new();
    while let Some(block) = reader.next_block()? {
        blocks.push(block);
    }
    Ok((reader.head().clone(), blocks))
}

#[test]
fn a_backup_reads_as_it_was_written() {
    assert_eq!(read(&backup()).expect("whole"), (head(), blocks()));
}

#[test]
fn no_cut_and_no_flipped_bit_goes_unnoticed() {
    let whole = backup();
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_err(), "cut at {length}");
    }
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&bytes).is_err(), "bit {bit}");
    }
    let mut longer = whole;
    longer.push(0);
    assert!(read(&longer).is_err());
}

#[test]
fn foreign_and_newer_files_are_refused_with_a_sentence() {
    let foreign = read(b"{\"cluster\": \"this is no backup\"}").expect_err("foreign").to_string();
    assert!(foreign.contains("is no backup of zabfs metadata"), "{foreign}");
    let mut newer = backup();
    newer[8] = 2;
    let newer = read(&newer).expect_err("newer").to_string();
    assert!(newer.contains("has format 2") && newer.contains("upgrade"), "{newer}");
    let rows = BackupHead { state_format: FORMAT_VERSION + 1, ..head() };
    let newer = BackupWriter::new(Vec::new(), rows).expect("begins").out;
    let newer = read(&newer).expect_err("newer rows").to_string();
    assert!(newer.contains("rows of format") && newer.contains("upgrade"), "{newer}");
}

#[test]
fn rows_out_of_order_cut_off_or_of_another_revision_are_not_written() {
    let mut writer = BackupWriter::new(Vec::new(), head()).expect("begins");
    writer.push(&blocks()[1]).expect("rows");
    assert!(writer.push(&blocks()[0]).is_err(), "keys go back");
    assert!(writer.push(&blocks()[2].slice(..5)).is_err(), "half a row");
    let other = BackupHead { revision: Revision(42), ..head() };
    let mut writer = BackupWriter::new(Vec::new(), other).expect("begins");
    blocks().iter().for_each(|block| writer.push(block).expect("rows"));
    assert!(writer.finish().is_err(), "another revision");
}
