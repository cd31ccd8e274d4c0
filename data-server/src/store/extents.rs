//! The extent files: one space of physical blocks, cut into preallocated files.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use super::{
    disk::{Disk, DiskFile},
    types::{BLOCK_BYTES, StoreError},
};

/// The disk is told to begin writing when this many neighbouring bytes have gathered.
const WRITEBACK_BYTES: u64 = 1 << 20;

/// Takes a lock even if a thread panicked while holding it: every structure behind the store's locks is consistent
/// between statements, and the store is failed by then anyway.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(super) struct ExtentFiles {
    disk: Arc<dyn Disk>,
    file_bytes: u64,
    files: RwLock<Vec<Arc<dyn DiskFile>>>,
    /// Files written to since their last sync.
    unsynced: Mutex<Unsynced>,
    /// Written last, and not handed to the disk yet.
    behind: Mutex<Behind>,
}

/// A range of bytes of the whole space.
#[derive(Clone, Copy, Debug, Default)]
struct Behind {
    at: u64,
    len: u64,
}

#[derive(Debug, Default)]
struct Unsynced {
    files: BTreeSet<usize>,
    directory: bool,
}

impl ExtentFiles {
    /// Opens the files that exist, completing one whose creation was interrupted. One that cannot be completed, as
    /// the file system is full, holds nothing yet: it is made again when it is needed.
    pub(super) fn open(disk: Arc<dyn Disk>, file_bytes: u64) -> Result<Self, StoreError> {
        let this = Self {
            disk,
            file_bytes,
            files: RwLock::default(),
            unsynced: Mutex::default(),
            behind: Mutex::default(),
        };
        let failed = |error: io::Error| StoreError::io("open the extent files", &error);
        while let Some(file) = this.disk.open(&file_name(this.count()), false).map_err(failed)? {
            if file.len().map_err(failed)? != file_bytes
                && let Err(error) = file.allocate(file_bytes)
            {
                tracing::warn!(
                    "the last extent file cannot be preallocated: {error}; free space on its filesystem"
                );
                file.set_len(0).map_err(failed)?;
                break;
            }
            // What the previous process wrote may still be in the page cache only.
            locked(&this.unsynced).files.insert(this.count());
            this.write_files().push(file);
        }
        Ok(this)
    }

    pub(super) fn count(&self) -> usize {
        self.files.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.count() as u64 * self.file_bytes
    }

    /// Preallocates one more file, or takes no space at all. Durable with the next [`sync`](Self::sync), like what is written into it.
    pub(super) fn grow(&self) -> io::Result<()> {
        let number = self.count();
        let file = self.disk.open(&file_name(number), true)?.ok_or(io::ErrorKind::NotFound)?;
        if let Err(error) = file.allocate(self.file_bytes) {
            file.set_len(0)?;
            return Err(error);
        }
        let mut unsynced = locked(&self.unsynced);
        unsynced.files.insert(number);
        unsynced.directory = true;
        drop(unsynced);
        self.write_files().push(file);
        Ok(())
    }

    /// Fills `out` (whole blocks) from the physical block `start` on.
    pub(super) fn read(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        let mut at = start * BLOCK_BYTES as u64;
        let mut rest = out;
        while !rest.is_empty() {
            let (number, offset, len) = self.locate(at, rest.len());
            let (piece, after) = rest.split_at_mut(len);
            self.file(number)?.read_at(offset, piece)?;
            at += len as u64;
            rest = after;
        }
        Ok(())
    }

    /// Writes `data` (whole blocks) from the physical block `start` on; [`sync`](Self::sync) makes it durable.
    pub(super) fn write(&self, start: u64, data: &[u8]) -> io::Result<()> {
        let mut written = BTreeSet::new();
        let result = self.write_noting(start, data, &mut written);
        // Noted after the write: a sync that takes the note then covers the bytes.
        self.note(&written);
        result
    }

    /// The next [`sync`](Self::sync) covers these files.
    pub(super) fn note(&self, written: &BTreeSet<usize>) {
        locked(&self.unsynced).files.extend(written);
    }

    /// The same for a caller that makes it durable by itself, with [`sync_files`](Self::sync_files): two callers of
    /// [`sync`](Self::sync) at once would each miss what the other is still busy with.
    pub(super) fn write_noting(
        &self,
        start: u64,
        data: &[u8],
        written: &mut BTreeSet<usize>,
    ) -> io::Result<()> {
        let mut at = start * BLOCK_BYTES as u64;
        let mut rest = data;
        while !rest.is_empty() {
            let (number, offset, len) = self.locate(at, rest.len());
            let (piece, after) = rest.split_at(len);
            self.file(number)?.write_at(offset, piece)?;
            written.insert(number);
            at += len as u64;
            rest = after;
        }
        Ok(())
    }

    /// To be called after large contents were written: has the disk begin in time, so that a sync at the end of a
    /// long sequence does not find all of it still to be done.
    pub(super) fn write_behind(&self, start: u64, len: usize) {
        let new = Behind { at: start * BLOCK_BYTES as u64, len: len as u64 };
        let mut behind = locked(&self.behind);
        let gathered = if behind.at + behind.len == new.at {
            Behind { at: behind.at, len: behind.len + new.len }
        } else {
            self.start_writeback(*behind);
            new
        };
        if gathered.len >= WRITEBACK_BYTES {
            self.start_writeback(gathered);
            *behind = Behind { at: gathered.at + gathered.len, len: 0 };
        } else {
            *behind = gathered;
        }
    }

    fn start_writeback(&self, Behind { at, len }: Behind) {
        self.hint(at, len, |file, offset, len| file.start_writeback(offset, len));
    }

    /// Has the disk begin to read these blocks.
    pub(super) fn will_need(&self, start: u64, blocks: u32) {
        let (at, len) = (start * BLOCK_BYTES as u64, u64::from(blocks) * BLOCK_BYTES as u64);
        self.hint(at, len, |file, offset, len| file.will_need(offset, len));
    }

    fn hint(&self, mut at: u64, len: u64, give: impl Fn(&dyn DiskFile, u64, u64)) {
        let end = at + len;
        while at < end {
            let (number, offset, len) = self.locate(at, (end - at) as usize);
            let Ok(file) = self.file(number) else { return };
            give(&*file, offset, len as u64);
            at += len as u64;
        }
    }

    /// Makes everything that [`write`](Self::write) wrote before the call durable. One call at a time.
    pub(super) fn sync(&self) -> io::Result<()> {
        let unsynced = std::mem::take(&mut *locked(&self.unsynced));
        self.sync_files(&unsynced.files)?;
        if unsynced.directory {
            self.disk.sync_directory()?;
        }
        Ok(())
    }

    /// Makes everything written to these files before the call durable.
    pub(super) fn sync_files(&self, files: &BTreeSet<usize>) -> io::Result<()> {
        files.iter().try_for_each(|number| self.file(*number)?.sync())
    }

    fn locate(&self, at: u64, len: usize) -> (usize, u64, usize) {
        let offset = at % self.file_bytes;
        let len = (len as u64).min(self.file_bytes - offset) as usize;
        ((at / self.file_bytes) as usize, offset, len)
    }

    fn file(&self, number: usize) -> io::Result<Arc<dyn DiskFile>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(number).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn write_files(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Arc<dyn DiskFile>>> {
        self.files.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Name of an extent file.
fn file_name(number: usize) -> String {
    format!("extents.{number:05}")
}
