//! The file of a backup. `docs/FORMATS.md` draws it.
//!
//! Everything is checked while it is read, and nothing is believed before its checksum was: lengths are bounded, rows are
//! in the order of their keys, and the trailer says how much there must have been.

use super::BackupError;
use crate::disk_layer::next_row;
use crate::quorum::SNAPSHOT_CHUNK_BYTES_MAX;
use crate::state::key;
use crate::state::record::{FORMAT_VERSION, Progress};
use bytes::Bytes;
use protocol::meta::BackupHead;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Version of the file. The rows have their own, in the head.
pub const BACKUP_FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"zabfsbak";
const BLOCK_MAGIC: [u8; 4] = *b"zblk";
const END_MAGIC: [u8; 4] = *b"zend";
/// Magic, format, length and checksum of the head.
const PREFIX_BYTES: usize = 20;
/// Longest head: the directories of all servers that a membership remembers are a few KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Magic, length, rows, checksum, number.
const BLOCK_HEADER_BYTES: usize = 24;
/// Magic, checksum, blocks, rows, bytes, running checksum, zeros.
const TRAILER_BYTES: usize = 40;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its head.
    pub head: BackupHead,
    /// Rows.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Counts and sums what has passed.
#[derive(Clone, Debug, Default)]
struct Tally {
    blocks: u64,
    rows: u64,
    bytes: u64,
    crc: u32,
    last_key: Vec<u8>,
    /// Revision of the progress record, once it has passed.
    revision: Option<u64>,
}

impl Tally {
    /// Takes in the rows of one block and says how many they are.
    fn add(&mut self, block: &Bytes) -> Result<u32, String> {
        let mut rest = block.clone();
        let mut rows = 0u32;
        while let Some((key, value)) = next_row(&mut rest)? {
            if self.rows > 0 && key[..] <= self.last_key[..] {
                return Err("rows are not in the order of their keys".into());
            }
            if key[..] == key::system("progress")[..] {
                let progress: Progress =
                    postcard::from_bytes(&value).map_err(|e| format!("the progress record: {e}"))?;
                self.revision = Some(progress.revision);
            }
            self.last_key.clear();
            self.last_key.extend_from_slice(&key);
            (self.rows, rows) = (self.rows + 1, rows + 1);
        }
        self.blocks += 1;
        self.bytes += block.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, block);
        Ok(rows)
    }

    fn check_end(&self, head: &BackupHead) -> Result<(), String> {
        match self.revision {
            Some(revision) if revision == head.revision.0 => Ok(()),
            Some(revision) => {
                Err(format!("its rows are of revision {revision}, and its head says {}", head.revision))
            }
            None => Err("it does not say which revision its rows are of".into()),
        }
    }

    fn trailer(&self) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..4].copy_from_slice(&END_MAGIC);
        bytes[8..16].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.rows.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Checksum of a block: of its length, rows and number, and its rows.
fn block_crc(header: &[u8; BLOCK_HEADER_BYTES], body: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&header[4..12]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &header[16..]), body)
}

/// Writes a backup.
pub struct BackupWriter<W> {
    out: W,
    head: BackupHead,
    tally: Tally,
    written: u64,
}

impl<W: Write> BackupWriter<W> {
    /// Begins with the head.
    ///
    /// # Errors
    /// The disk.
    pub fn new(mut out: W, head: BackupHead) -> std::io::Result<Self> {
        let body = postcard::to_stdvec(&head).map_err(std::io::Error::other)?;
        let mut prefix = [0; PREFIX_BYTES];
        prefix[..8].copy_from_slice(MAGIC);
        prefix[8..12].copy_from_slice(&BACKUP_FORMAT.to_le_bytes());
        prefix[12..16].copy_from_slice(&(body.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&prefix[8..16]), &body);
        prefix[16..].copy_from_slice(&crc.to_le_bytes());
        out.write_all(&prefix)?;
        out.write_all(&body)?;
        let written = (PREFIX_BYTES + body.len()) as u64;
        Ok(Self { out, head, tally: Tally::default(), written })
    }

    /// Adds rows, in the order of their keys, as one block.
    ///
    /// # Errors
    /// The disk, or they are no rows.
    pub fn push(&mut self, rows: &Bytes) -> Result<(), BackupError> {
        if rows.is_empty() || rows.len() > SNAPSHOT_CHUNK_BYTES_MAX {
            return Err(BackupError::Rows(format!("{} bytes at once", rows.len())));
        }
        let number = self.tally.blocks;
        let count = self.tally.add(rows).map_err(BackupError::Rows)?;
        let mut header = [0; BLOCK_HEADER_BYTES];
        header[..4].copy_from_slice(&BLOCK_MAGIC);
        header[4..8].copy_from_slice(&(rows.len() as u32).to_le_bytes());
        header[8..12].copy_from_slice(&count.to_le_bytes());
        header[16..].copy_from_slice(&number.to_le_bytes());
        let crc = block_crc(&header, rows);
        header[12..16].copy_from_slice(&crc.to_le_bytes());
        let failed = BackupError::io("write", Path::new("the backup"));
        self.out.write_all(&header).and_then(|()| self.out.write_all(rows)).map_err(failed)?;
        self.written += (BLOCK_HEADER_BYTES + rows.len()) as u64;
        Ok(())
    }

    /// Ends with the trailer. What it is written to is not synced.
    ///
    /// # Errors
    /// The disk, or the rows are not of the revision that the head says.
    pub fn finish(mut self) -> Result<(W, Summary), BackupError> {
        self.tally.check_end(&self.head).map_err(BackupError::Rows)?;
        let failed = BackupError::io("write", Path::new("the backup"));
        self.out.write_all(&self.tally.trailer()).and_then(|()| self.out.flush()).map_err(failed)?;
        let bytes = self.written + TRAILER_BYTES as u64;
        Ok((self.out, Summary { head: self.head, rows: self.tally.rows, bytes }))
    }
}

/// Reads a backup.
#[derive(Debug)]
pub struct BackupReader<R> {
    input: R,
    path: PathBuf,
    head: BackupHead,
    tally: Tally,
    offset: u64,
    is_done: bool,
}

impl BackupReader<BufReader<File>> {
    /// Opens a file and reads its head.
    ///
    /// # Errors
    /// The disk, or it is none that this version reads.
    pub fn open(path: &Path) -> Result<Self, BackupError> {
        let file = File::open(path).map_err(BackupError::io("open", path))?;
        Self::new(BufReader::with_capacity(256 << 10, file), path)
    }
}

impl<R: Read> BackupReader<R> {
    /// Reads the head; `path` is for messages.
    ///
    /// # Errors
    /// As for [`BackupReader::open`].
    pub fn new(mut input: R, path: &Path) -> Result<Self, BackupError> {
        let foreign = |why| BackupError::Foreign { path: path.to_owned(), why };
        let newer =
            |what, found, supported| BackupError::Newer { path: path.to_owned(), what, found, supported };
        let damaged = |why: &str| BackupError::Damaged { path: path.to_owned(), offset: 0, why: why.into() };
        let mut prefix = [0; PREFIX_BYTES];
        let found = fill(&mut input, &mut prefix).map_err(BackupError::io("read", path))?;
        if found < PREFIX_BYTES || !prefix.starts_with(MAGIC) {
            return Err(foreign("it does not begin like one"));
        }
        let format = number(&prefix, 8);
        if format > BACKUP_FORMAT {
            return Err(newer("format", format, BACKUP_FORMAT));
        }
        let length = number(&prefix, 12) as usize;
        if length > HEAD_BYTES_MAX {
            return Err(damaged("its head is too long"));
        }
        let mut body = vec![0; length];
        let found = fill(&mut input, &mut body).map_err(BackupError::io("read", path))?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&prefix[8..16]), &body);
        if found < length || crc != number(&prefix, 16) {
            return Err(damaged("its head does not match its checksum"));
        }
        let Ok((head, [])) = postcard::take_from_bytes::<BackupHead>(&body) else {
            return Err(damaged("its head does not decode"));
        };
        if head.state_format > FORMAT_VERSION {
            return Err(newer("rows of format", head.state_format, FORMAT_VERSION));
        }
        let offset = (PREFIX_BYTES + length) as u64;
        Ok(Self { input, path: path.to_owned(), head, tally: Tally::default(), offset, is_done: false })
    }

    /// What it is of.
    pub fn head(&self) -> &BackupHead {
        &self.head
    }

    /// The next block of rows, checked; `None` after the trailer, which was checked too.
    ///
    /// # Errors
    /// The disk, or damage.
    pub fn next_block(&mut self) -> Result<Option<Bytes>, BackupError> {
        if self.is_done {
            return Ok(None);
        }
        let mut header = [0; BLOCK_HEADER_BYTES];
        self.read_exact(&mut header)?;
        if header.starts_with(&END_MAGIC) {
            self.check_trailer(&header)?;
            self.is_done = true;
            return Ok(None);
        }
        let length = number(&header, 4) as usize;
        if !header.starts_with(&BLOCK_MAGIC) || length == 0 || length > SNAPSHOT_CHUNK_BYTES_MAX {
            return Err(self.damaged("a block begins with something else"));
        }
        let mut body = vec![0; length];
        self.read_exact(&mut body)?;
        let expected = self.tally.blocks.to_le_bytes();
        if block_crc(&header, &body) != number(&header, 12) || header[16..] != expected {
            return Err(self.damaged("a block does not match its checksum, or is not the next"));
        }
        let body = Bytes::from(body);
        match self.tally.add(&body) {
            Ok(rows) if rows == number(&header, 8) => {}
            Ok(_) => return Err(self.damaged("a block has another number of rows than it says")),
            Err(why) => return Err(self.damaged(&why)),
        }
        self.offset += (BLOCK_HEADER_BYTES + length) as u64;
        Ok(Some(body))
    }

    fn check_trailer(&mut self, begin: &[u8; BLOCK_HEADER_BYTES]) -> Result<(), BackupError> {
        let mut trailer = [0; TRAILER_BYTES];
        trailer[..BLOCK_HEADER_BYTES].copy_from_slice(begin);
        let mut rest = [0; TRAILER_BYTES - BLOCK_HEADER_BYTES];
        self.read_exact(&mut rest)?;
        trailer[BLOCK_HEADER_BYTES..].copy_from_slice(&rest);
        if trailer != self.tally.trailer() {
            return Err(self.damaged("the trailer does not match what is before it"));
        }
        self.tally.check_end(&self.head).map_err(|why| self.damaged(&why))?;
        self.offset += TRAILER_BYTES as u64;
        let behind = fill(&mut self.input, &mut [0]).map_err(BackupError::io("read", &self.path))?;
        if behind > 0 {
            return Err(self.damaged("something follows its end"));
        }
        Ok(())
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), BackupError> {
        let found = fill(&mut self.input, buffer).map_err(BackupError::io("read", &self.path))?;
        if found < buffer.len() {
            return Err(self.damaged("it ends here, before its end"));
        }
        Ok(())
    }

    fn damaged(&self, why: &str) -> BackupError {
        BackupError::Damaged { path: self.path.clone(), offset: self.offset, why: why.into() }
    }

    /// Reads everything that is left.
    ///
    /// # Errors
    /// As for [`Self::next_block`].
    pub fn verify(mut self) -> Result<Summary, BackupError> {
        while self.next_block()?.is_some() {}
        Ok(Summary { head: self.head, rows: self.tally.rows, bytes: self.offset })
    }
}

/// Reads until the buffer is full or the input ends, and says how much there was.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut found = 0;
    while found < buffer.len() {
        match input.read(&mut buffer[found..]) {
            Ok(0) => break,
            Ok(count) => found += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Reads and checks all of a file.
///
/// # Errors
/// It is none, or damaged, or of a newer version.
pub fn verify(path: &Path) -> Result<Summary, BackupError> {
    BackupReader::open(path)?.verify()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
