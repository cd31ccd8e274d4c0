//! The transaction log: segments on disk, group commit, truncation, purging.
//!
//! ```text
//! log-0000000000000000-0000000000000004   full: ends where the header of 5 says
//! log-0000000000000000-0000000000000005   current: batches, then zeros
//! spare                                   zeroed and synced, becomes the next segment by a rename
//! mark                                    a place that the log is known to have reached durably
//! ```
//!
//! Invariants: a batch is written only when everything before it is durable; durable bytes are never rewritten
//! with other bytes; a segment gets its name only when its header is durable, and batches only when its name is.
//! After any failure the store refuses everything ([`StorageError::Poisoned`]).
//!
//! The log is in memory too (in [`zab::Peer`]), so nothing is read back but at the start.

use std::collections::VecDeque;
use std::sync::Arc;

use zab::{Entry, Zxid, mutant};

use super::error::{LogDamaged, StorageError};
use super::files::{Directory, DiskFile};
use super::log_scan::{LogImage, scan};
use super::segment::{BatchBuilder, BatchHeader, Position, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::slots::SlotFile;

/// A zeroed file that becomes the next segment.
const SPARE: &str = "spare";
/// A spare being made.
const SPARE_UNFINISHED: &str = "spare.new";
/// A segment made while the log waits has a name of its own, because a spare may be in the making meanwhile.
const SPARE_SYNCHRONOUS: &str = "segment.new";
const SPARES: [&str; 3] = [SPARE, SPARE_UNFINISHED, SPARE_SYNCHRONOUS];
const MARK: &str = "mark";
const MARK_SLOT_BYTES: usize = 512;
/// Writes that cut a torn tail are at most this long.
const ZEROS_BYTES: usize = 1 << 20;

/// How the log uses the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Length of a segment file in bytes; a group that is longer gets a segment of its own length. Purging frees
    /// whole segments, and making one writes as many zeros.
    pub segment_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { segment_bytes: 16 << 20 }
    }
}

/// What was found when the log was opened.
#[derive(Debug)]
pub struct LogRecovery {
    /// The entries after the record's `log_start`; with damage, those before it.
    pub entries: Vec<Entry>,
    /// The log is not all that was durable. The caller makes this known in the record *before*
    /// [`OpenedLog::resume`] cuts the log there.
    pub damage: Option<LogDamaged>,
    /// A crash tore the last batch, of which nothing had been reported durable.
    pub torn: bool,
}

/// A log that was read and not yet changed.
pub struct OpenedLog {
    directory: Arc<dyn Directory>,
    options: LogOptions,
    mark: SlotFile,
    image: LogImage,
}

impl OpenedLog {
    /// Reads generation `generation`, of which entries after `start` matter. Changes nothing.
    ///
    /// # Errors
    /// The disk cannot be read or written.
    pub fn read(
        directory: Arc<dyn Directory>,
        generation: u64,
        start: Zxid,
        options: LogOptions,
    ) -> Result<OpenedLog, StorageError> {
        let mark = SlotFile::open_or_create(&*directory, MARK, MARK_SLOT_BYTES)?;
        let known = mark.newest().and_then(Mark::decode);
        let image = scan(&*directory, generation, start, known)?;
        Ok(OpenedLog { directory, options, mark, image })
    }

    /// What was found. Takes the entries out.
    pub fn recovery(&mut self) -> LogRecovery {
        LogRecovery {
            entries: std::mem::take(&mut self.image.entries),
            damage: self.image.damage.clone(),
            torn: self.image.torn,
        }
    }

    /// Cuts what is behind the intact part, makes sure that what was read is durable, and opens the log for
    /// appending. Crashes in between repeat it.
    ///
    /// # Errors
    /// The disk failed.
    pub fn resume(self) -> Result<LogStore, StorageError> {
        let OpenedLog { directory, options, mark, image } = self;
        remove_garbage(&*directory, &image)?;
        let Some(last_segment) = image.segments.last().filter(|_| image.last >= image.start) else {
            // Nothing that reaches the start is left: continue with an empty log behind everything.
            let number = image.segments.last().map_or(0, |header| header.number) + 1;
            let header = SegmentHeader {
                generation: image.generation,
                number,
                prev: image.start,
                previous_end: 0,
                sequence: image.sequence,
            };
            let mut store = LogStore::begin(directory, options, mark, header)?;
            store.remove_segments_before(number)?;
            store.write_mark()?;
            return Ok(store);
        };
        let name = segment_name(image.generation, last_segment.number);
        let mut file = directory.open(&name).map_err(StorageError::io("open", &name))?;
        let len = file.length().map_err(StorageError::io("read", &name))?;
        settle_tail(&mut *file, &image, len).map_err(StorageError::io("cut the tail of", &name))?;
        directory.sync().map_err(StorageError::io("sync", "the data directory"))?;
        let mut store = LogStore {
            directory,
            options,
            mark,
            segments: image.segments.into(),
            file,
            file_len: len,
            offset: image.end,
            sequence: image.sequence,
            durable_last: image.last,
            staged_last: image.last,
            staged: BatchBuilder::default(),
            has_wished_spare: false,
            is_poisoned: false,
        };
        store.write_mark()?;
        Ok(store)
    }
}

/// Removes what the intact part does not need: segments behind damage, of other generations, spares.
fn remove_garbage(directory: &dyn Directory, image: &LogImage) -> Result<(), StorageError> {
    let names = directory.list().map_err(StorageError::io("list", "the data directory"))?;
    let is_kept = |name: &str| match segment_number(name, image.generation) {
        Some(number) => image.segments.iter().any(|header| header.number == number),
        None => !is_segment(name) && !SPARES.contains(&name),
    };
    for name in names.iter().filter(|name| !is_kept(name)) {
        directory.remove(name).map_err(StorageError::io("remove", name))?;
    }
    Ok(())
}

/// Zeros everything behind the end, and makes the part before it durable: a process that was killed leaves a
/// batch in the page cache that no fsync has covered. It is written again, because after a *failed* fsync the
/// kernel considers its pages clean, and another fsync would report success without having written them.
fn settle_tail(file: &mut dyn DiskFile, image: &LogImage, len: u64) -> std::io::Result<()> {
    if image.torn {
        let mut offset = image.end;
        while offset < len {
            let piece = (len - offset).min(ZEROS_BYTES as u64);
            file.write_at(offset, &vec![0; piece as usize])?;
            offset += piece;
        }
    }
    if let Some(start) = image.last_batch {
        let mut batch = vec![0; (image.end - start) as usize];
        file.read_at(start, &mut batch)?;
        file.write_at(start, &batch)?;
    }
    file.sync()
}

/// The log, open for appending. Operations are staged in memory and become durable together.
pub struct LogStore {
    directory: Arc<dyn Directory>,
    options: LogOptions,
    mark: SlotFile,
    /// Oldest first; the last one is the current one.
    segments: VecDeque<SegmentHeader>,
    file: Box<dyn DiskFile>,
    file_len: u64,
    /// Where the next batch goes.
    offset: u64,
    sequence: u64,
    durable_last: Zxid,
    staged_last: Zxid,
    staged: BatchBuilder,
    has_wished_spare: bool,
    is_poisoned: bool,
}

impl LogStore {
    /// Makes the first, empty segment of a log that starts after `start`.
    ///
    /// # Errors
    /// The disk failed.
    pub fn create(
        directory: Arc<dyn Directory>,
        generation: u64,
        start: Zxid,
        options: LogOptions,
    ) -> Result<LogStore, StorageError> {
        let mark = SlotFile::open_or_create(&*directory, MARK, MARK_SLOT_BYTES)?;
        LogStore::begin(directory, options, mark, first_segment(generation, start))
    }

    fn begin(
        directory: Arc<dyn Directory>,
        options: LogOptions,
        mark: SlotFile,
        header: SegmentHeader,
    ) -> Result<LogStore, StorageError> {
        let (file, file_len) = make_segment(&*directory, &header, options.segment_bytes)?;
        Ok(LogStore {
            directory,
            options,
            mark,
            segments: VecDeque::from([header]),
            file,
            file_len,
            offset: SEGMENT_HEADER_BYTES as u64,
            sequence: header.sequence,
            durable_last: header.prev,
            staged_last: header.prev,
            staged: BatchBuilder::default(),
            has_wished_spare: false,
            is_poisoned: false,
        })
    }

    /// The last zxid, staged operations included.
    pub fn last(&self) -> Zxid {
        self.staged_last
    }

    /// The last zxid that a crash would leave.
    pub fn durable_last(&self) -> Zxid {
        self.durable_last
    }

    /// Which log this is.
    pub fn generation(&self) -> u64 {
        self.current().generation
    }

    /// Whether [`make_spare`] should be called now: once per segment, early, because the spare is written slowly.
    pub fn wants_spare(&mut self) -> bool {
        let is_due = !self.has_wished_spare && self.offset > self.file_len / 8;
        self.has_wished_spare |= is_due;
        is_due
    }

    /// Segment files in use.
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Bytes staged for the next [`commit`](Self::commit).
    pub fn staged_bytes(&self) -> usize {
        if self.staged.is_empty() { 0 } else { self.staged.len() }
    }

    /// Stages entries directly behind what is there.
    ///
    /// # Errors
    /// An entry does not follow; poisons the log.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), StorageError> {
        self.guarded(|log| {
            for entry in entries {
                if !entry.zxid.follows(log.staged_last) && !mutant!("log-with-holes") {
                    return Err(StorageError::NotContiguous { last: log.staged_last, zxid: entry.zxid });
                }
                log.staged.append(entry);
                log.staged_last = entry.zxid;
            }
            Ok(())
        })
    }

    /// Stages a cut: entries after `after` go.
    ///
    /// # Errors
    /// The log does not reach that far; poisons the log.
    pub fn truncate(&mut self, after: Zxid) -> Result<(), StorageError> {
        self.guarded(|log| {
            if after > log.staged_last {
                return Err(StorageError::TruncateAhead { last: log.staged_last, after });
            }
            log.staged.truncate(after);
            log.staged_last = after;
            Ok(())
        })
    }

    /// Makes everything staged durable: one write and one fdatasync. Returns whether there was anything.
    ///
    /// # Errors
    /// The disk failed; poisons the log.
    pub fn commit(&mut self) -> Result<bool, StorageError> {
        if self.staged.is_empty() {
            return self.guarded(|_| Ok(false));
        }
        self.guarded(|log| {
            let bytes = log.staged.len();
            if bytes > u32::MAX as usize {
                return Err(StorageError::BatchTooLong { bytes });
            }
            if log.offset + bytes as u64 > log.file_len {
                log.roll(bytes as u64)?;
            }
            log.write_batch()
        })
        .map(|()| true)
    }

    /// Removes whole segments that hold nothing after `upto`.
    ///
    /// # Errors
    /// The disk failed; poisons the log.
    pub fn purge(&mut self, upto: Zxid) -> Result<(), StorageError> {
        self.guarded(|log| {
            // Everything alive in a segment was in the log when the next segment began.
            while log.segments.get(1).is_some_and(|next| next.prev <= upto) {
                let Some(oldest) = log.segments.pop_front() else { break };
                let name = segment_name(oldest.generation, oldest.number);
                log.directory.remove(&name).map_err(StorageError::io("remove", &name))?;
            }
            Ok(())
        })
    }

    /// Starts a new, empty log beside the old one. Which of the two counts is decided by the record, which is to
    /// be written between this and [`remove_other_generations`](Self::remove_other_generations).
    ///
    /// # Errors
    /// The disk failed; poisons the log.
    pub fn start_generation(&mut self, generation: u64, start: Zxid) -> Result<(), StorageError> {
        self.commit()?;
        self.guarded(|log| {
            let header = first_segment(generation, start);
            (log.file, log.file_len) = make_segment(&*log.directory, &header, log.options.segment_bytes)?;
            log.segments = VecDeque::from([header]);
            log.offset = SEGMENT_HEADER_BYTES as u64;
            log.sequence = header.sequence;
            log.durable_last = start;
            log.staged_last = start;
            Ok(())
        })
    }

    /// Removes the segments of all generations but the current one.
    ///
    /// # Errors
    /// The disk failed; poisons the log.
    pub fn remove_other_generations(&mut self) -> Result<(), StorageError> {
        self.guarded(|log| {
            let generation = log.current().generation;
            let names = log.directory.list().map_err(StorageError::io("list", "the data directory"))?;
            let is_other = |name: &&String| is_segment(name) && segment_number(name, generation).is_none();
            for name in names.iter().filter(is_other) {
                log.directory.remove(name).map_err(StorageError::io("remove", name))?;
            }
            Ok(())
        })
    }

    /// Notes durably how far the log is durable. Costs one small synced write: done when the disk is idle, as the
    /// proof that it is alive, and at a clean stop.
    ///
    /// # Errors
    /// The disk failed; poisons the log.
    pub fn write_mark(&mut self) -> Result<(), StorageError> {
        self.guarded(|log| {
            let current = log.current();
            let position = Position { segment: current.number, offset: log.offset };
            let mark = Mark { generation: current.generation, position };
            log.mark.write(&mark.encode())
        })
    }

    fn current(&self) -> SegmentHeader {
        *self.segments.back().expect("a log always has a current segment")
    }

    fn write_batch(&mut self) -> Result<(), StorageError> {
        let current = self.current();
        let header = BatchHeader {
            generation: current.generation,
            sequence: self.sequence,
            durable: Position { segment: current.number, offset: self.offset },
            prev: self.durable_last,
            first: Zxid::ZERO,
            last: self.staged_last,
        };
        let name = segment_name(current.generation, current.number);
        let bytes = self.staged.seal(header);
        self.file.write_at(self.offset, bytes).map_err(StorageError::io("write to", &name))?;
        let synced = if mutant!("no-fsync") { Ok(()) } else { self.file.sync() };
        let synced = if mutant!("failed-fsync-ignored") { Ok(()) } else { synced };
        synced.map_err(StorageError::io("sync", &name))?;
        self.offset += bytes.len() as u64;
        self.sequence += 1;
        self.durable_last = self.staged_last;
        self.staged.clear();
        Ok(())
    }

    /// Goes on to a new segment with room for `bytes`.
    fn roll(&mut self, bytes: u64) -> Result<(), StorageError> {
        let current = self.current();
        let header = SegmentHeader {
            generation: current.generation,
            number: current.number + 1,
            prev: self.durable_last,
            previous_end: self.offset,
            sequence: self.sequence,
        };
        let len = self.options.segment_bytes.max(bytes + SEGMENT_HEADER_BYTES as u64);
        (self.file, self.file_len) = make_segment(&*self.directory, &header, len)?;
        self.segments.push_back(header);
        self.has_wished_spare = false;
        self.offset = SEGMENT_HEADER_BYTES as u64;
        Ok(())
    }

    fn remove_segments_before(&mut self, number: u64) -> Result<(), StorageError> {
        let generation = self.current().generation;
        let names = self.directory.list().map_err(StorageError::io("list", "the data directory"))?;
        let is_older = |name: &&String| segment_number(name, generation).is_some_and(|other| other < number);
        for name in names.iter().filter(is_older) {
            self.directory.remove(name).map_err(StorageError::io("remove", name))?;
        }
        Ok(())
    }

    fn guarded<T>(
        &mut self,
        operation: impl FnOnce(&mut LogStore) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        if self.is_poisoned {
            return Err(StorageError::Poisoned);
        }
        let result = operation(self);
        self.is_poisoned = result.is_err();
        result
    }
}

fn first_segment(generation: u64, start: Zxid) -> SegmentHeader {
    SegmentHeader { generation, number: 0, prev: start, previous_end: 0, sequence: 0 }
}

/// Makes a durable segment, from the spare if it is there and long enough.
fn make_segment(
    directory: &dyn Directory,
    header: &SegmentHeader,
    len: u64,
) -> Result<(Box<dyn DiskFile>, u64), StorageError> {
    let name = segment_name(header.generation, header.number);
    let spare = directory.open(SPARE).ok().filter(|spare| spare.length().is_ok_and(|found| found >= len));
    let (from, mut file) = match spare {
        Some(file) => (SPARE, file),
        None => {
            let made = directory.create(SPARE_SYNCHRONOUS, len);
            (SPARE_SYNCHRONOUS, made.map_err(StorageError::io("create", SPARE_SYNCHRONOUS))?)
        }
    };
    file.write_at(0, &header.encode()).map_err(StorageError::io("write to", from))?;
    file.sync().map_err(StorageError::io("sync", from))?;
    let len = file.length().map_err(StorageError::io("read", from))?;
    directory.rename(from, &name).map_err(StorageError::io("rename to", &name))?;
    directory.sync().map_err(StorageError::io("sync", "the data directory"))?;
    Ok((file, len))
}

/// Makes the spare, if there is none, away from the thread that commits.
///
/// # Errors
/// The disk failed. The log does not depend on it: it makes its segments itself then, and sees for itself.
pub fn make_spare(directory: &dyn Directory, len: u64) -> std::io::Result<()> {
    if directory.list()?.iter().any(|name| name == SPARE) {
        return Ok(());
    }
    directory.create(SPARE_UNFINISHED, len)?.sync()?;
    directory.rename(SPARE_UNFINISHED, SPARE)
}

/// A place that the log is known to have reached durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) generation: u64,
    pub(super) position: Position,
}

impl Mark {
    fn encode(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.segment.to_le_bytes());
        bytes[16..].copy_from_slice(&self.position.offset.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Mark> {
        let number = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        let position = Position { segment: number(8)?, offset: number(16)? };
        Some(Mark { generation: number(0)?, position })
    }
}

const SEGMENT_PREFIX: &str = "log-";

/// The name of a segment's file.
pub(super) fn segment_name(generation: u64, number: u64) -> String {
    format!("{SEGMENT_PREFIX}{generation:016x}-{number:016x}")
}

/// The number in a segment's name, if it is one of this generation.
pub(super) fn segment_number(name: &str, generation: u64) -> Option<u64> {
    let number = u64::from_str_radix(name.rsplit('-').next()?, 16).ok()?;
    (segment_name(generation, number) == name).then_some(number)
}

fn is_segment(name: &str) -> bool {
    name.starts_with(SEGMENT_PREFIX)
}
