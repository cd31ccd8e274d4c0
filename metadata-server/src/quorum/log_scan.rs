//! Reading the log back after a stop: what is intact, what a crash tore, what is damaged.
//!
//! A batch is written only after the one before it is durable, so at most the last one can be torn. Everything
//! else that is not as it was written is damage, and there is proof of it:
//!
//! | what is wrong | proof that it was durable |
//! |---|---|
//! | bytes before the end of a segment | the header of the next segment says where this one ended |
//! | bytes before an intact batch | that batch was written after them; it holds the durable end before itself |
//! | the last batch | the mark file, written when the disk is idle and at a clean stop |
//! | a segment missing | its successor, the mark, or the record, which exists only after the first segment |
//!
//! Nothing is modified here.

use std::collections::{BTreeMap, BTreeSet};

use zab::{Entry, Zxid, mutant};

use super::error::{LogDamaged, StorageError};
use super::files::{Directory, read_all};
use super::log_store::{Mark, segment_name, segment_number};
use super::segment::{
    FORMAT, Operation, Position, SEGMENT_HEADER_BYTES, SegmentHeader, decode_batch, has_evidence_behind,
};

/// What is on disk.
#[derive(Debug)]
pub(super) struct LogImage {
    pub(super) generation: u64,
    /// Position before the first entry.
    pub(super) start: Zxid,
    /// The intact segments, oldest first, without holes; the last one is to be continued.
    pub(super) segments: Vec<SegmentHeader>,
    /// Where the next batch goes, in the last segment.
    pub(super) end: u64,
    /// Where the last batch starts, if the last segment has one.
    pub(super) last_batch: Option<u64>,
    /// The sequence of the next batch.
    pub(super) sequence: u64,
    /// Entries after `start`.
    pub(super) entries: Vec<Entry>,
    /// The log's last zxid, at least `start` unless it is damaged.
    pub(super) last: Zxid,
    /// Something behind `end` is to be cut.
    pub(super) torn: bool,
    pub(super) damage: Option<LogDamaged>,
}

/// Reads generation `generation` of the log in `directory`, of which what is after `start` matters.
///
/// # Errors
/// The disk cannot be read. Wrong contents are no error but [`LogImage::damage`].
pub(super) fn scan(
    directory: &dyn Directory,
    generation: u64,
    start: Zxid,
    mark: Option<Mark>,
) -> Result<LogImage, StorageError> {
    let mut scanner = Scanner::new(directory, generation, start);
    scanner.list()?;
    match scanner.choose_first()? {
        Some(first) => scanner.read_from(first)?,
        None => scanner.damaged(0, 0, "no segment that reaches back to the log's start is there"),
    }
    scanner.check_ends(mark);
    Ok(scanner.finish())
}

struct Scanner<'a> {
    directory: &'a dyn Directory,
    image: LogImage,
    damage: Option<(String, u64, &'static str)>,
    numbers: BTreeSet<u64>,
    headers: BTreeMap<u64, Option<SegmentHeader>>,
}

impl<'a> Scanner<'a> {
    fn new(directory: &'a dyn Directory, generation: u64, start: Zxid) -> Scanner<'a> {
        let image = LogImage {
            generation,
            start,
            segments: Vec::new(),
            end: 0,
            last_batch: None,
            sequence: 0,
            entries: Vec::new(),
            last: Zxid::ZERO,
            torn: false,
            damage: None,
        };
        Scanner { directory, image, damage: None, numbers: BTreeSet::new(), headers: BTreeMap::new() }
    }

    fn damaged(&mut self, segment: u64, offset: u64, why: &'static str) {
        if mutant!("damage-is-a-torn-tail") {
            return;
        }
        if self.damage.is_none() {
            self.damage = Some((segment_name(self.image.generation, segment), offset, why));
        }
    }

    fn list(&mut self) -> Result<(), StorageError> {
        let names = self.directory.list().map_err(StorageError::io("list", "the data directory"))?;
        let generation = self.image.generation;
        self.numbers = names.iter().filter_map(|name| segment_number(name, generation)).collect();
        Ok(())
    }

    /// The segment to start from: the newest that was begun at or before the start. What is older was purged, and a
    /// crash may have undone some of the removals.
    fn choose_first(&mut self) -> Result<Option<u64>, StorageError> {
        for number in self.numbers.clone().into_iter().rev() {
            if self.reaches_start(number)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn reaches_start(&mut self, number: u64) -> Result<bool, StorageError> {
        Ok(self.header(number)?.is_some_and(|header| header.prev <= self.image.start))
    }

    fn header(&mut self, number: u64) -> Result<Option<SegmentHeader>, StorageError> {
        if let Some(known) = self.headers.get(&number) {
            return Ok(*known);
        }
        let name = segment_name(self.image.generation, number);
        let file = self.directory.open(&name).map_err(StorageError::io("open", &name))?;
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let is_long_enough = file.length().map_err(StorageError::io("read", &name))? >= bytes.len() as u64;
        let header = if is_long_enough {
            file.read_at(0, &mut bytes).map_err(StorageError::io("read", &name))?;
            if let Some(found) = SegmentHeader::format(&bytes).filter(|found| *found > FORMAT) {
                return Err(StorageError::LogFormat { file: name, found, supported: FORMAT });
            }
            SegmentHeader::decode(&bytes)
        } else {
            None
        };
        let expected = (self.image.generation, number);
        let header = header.filter(|header| (header.generation, header.number) == expected);
        self.headers.insert(number, header);
        Ok(header)
    }

    fn read_from(&mut self, first: u64) -> Result<(), StorageError> {
        let mut number = first;
        while self.damage.is_none() {
            let Some(header) = self.header(number)? else {
                self.damaged(number, 0, "the segment's header is not what was written");
                return Ok(());
            };
            if number == first {
                self.image.last = header.prev;
                self.image.sequence = header.sequence;
            } else if (header.prev, header.sequence) != (self.image.last, self.image.sequence) {
                self.damaged(number, 0, "the segment does not continue the one before it");
                return Ok(());
            }
            self.image.segments.push(header);
            if self.numbers.last() == Some(&number) {
                return self.read_segment(number, None);
            }
            let next = self.next_header(number)?;
            self.read_segment(number, next.map(|next| next.previous_end))?;
            if next.is_none() {
                self.damaged(number + 1, 0, "the segment is missing or its header is not what was written");
            }
            number += 1;
        }
        Ok(())
    }

    fn next_header(&mut self, number: u64) -> Result<Option<SegmentHeader>, StorageError> {
        if self.numbers.contains(&(number + 1)) { self.header(number + 1) } else { Ok(None) }
    }

    /// Reads the batches of one segment, up to `end` if that is known.
    fn read_segment(&mut self, number: u64, end: Option<u64>) -> Result<(), StorageError> {
        let name = segment_name(self.image.generation, number);
        let file = self.directory.open(&name).map_err(StorageError::io("open", &name))?;
        let bytes = read_all(&*file).map_err(StorageError::io("read", &name))?;
        let mut offset = SEGMENT_HEADER_BYTES;
        self.image.last_batch = None;
        self.image.end = offset as u64;
        while end != Some(offset as u64) {
            let position = Position { segment: number, offset: offset as u64 };
            let Some(len) = self.read_batch(&bytes[offset.min(bytes.len())..], position) else { break };
            self.image.last_batch = Some(offset as u64);
            offset += len;
            self.image.end = offset as u64;
        }
        if end == Some(offset as u64) {
            return Ok(());
        }
        if end.is_some() {
            self.damaged(
                number,
                offset as u64,
                "a batch before the segment's known end is not what was written",
            );
        } else if has_evidence_behind(&bytes, number, self.image.generation, offset) {
            self.damaged(number, offset as u64, "a batch is not what was written, and later ones are intact");
        }
        self.image.torn = bytes[offset.min(bytes.len())..].iter().any(|byte| *byte != 0);
        if self.image.torn && mutant!("torn-tail-is-damage") {
            self.damaged(number, offset as u64, "the tail is torn");
        }
        Ok(())
    }

    /// Takes the batch at the start of `bytes` if it is the intact continuation, and returns its length.
    fn read_batch(&mut self, bytes: &[u8], position: Position) -> Option<usize> {
        let batch = decode_batch(bytes)?;
        let header = batch.header;
        let expected = (self.image.generation, self.image.sequence, position, self.image.last);
        if (header.generation, header.sequence, header.durable, header.prev) != expected {
            return None;
        }
        for operation in batch.operations {
            match operation {
                Operation::Append(entry) => {
                    self.image.last = entry.zxid;
                    if entry.zxid > self.image.start {
                        self.image.entries.push(entry);
                    }
                }
                Operation::Truncate(after) => {
                    let kept = self.image.entries.partition_point(|entry| entry.zxid <= after);
                    self.image.entries.truncate(kept);
                    self.image.last = after;
                }
            }
        }
        self.image.sequence += 1;
        Some(batch.len)
    }

    /// Whether the log reaches as far as is known from outside of it.
    fn check_ends(&mut self, mark: Option<Mark>) {
        let end = Position {
            segment: self.image.segments.last().map_or(0, |header| header.number),
            offset: self.image.end,
        };
        let known = mark.filter(|mark| mark.generation == self.image.generation);
        if known.is_some_and(|mark| mark.position > end) {
            self.damaged(end.segment, end.offset, "the log ends before the end that was known to be durable");
        }
        if self.image.last < self.image.start {
            self.damaged(
                end.segment,
                end.offset,
                "the log ends before the position at which the record starts it",
            );
        }
    }

    fn finish(mut self) -> LogImage {
        let last = self.image.last;
        let kept = self.image.entries.len();
        self.image.damage =
            self.damage.map(|(file, offset, why)| LogDamaged { file, offset, why, kept, last });
        self.image
    }
}
