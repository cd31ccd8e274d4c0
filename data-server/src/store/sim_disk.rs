//! A disk in memory that loses what was not synced, for tests and simulations.
//!
//! It keeps, per file, what is on stable storage and the writes since then. [`SimDisk::power_failure`] builds the disk
//! as it would be found afterwards: of each unsynced write a random part, files whose directory entry was not synced
//! perhaps not at all. Everything random comes from the seed.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use super::{
    disk::{Disk, DiskFile},
    extents::locked,
};

/// Unsynced writes tear at this granularity, in bytes.
const SECTOR: usize = 512;

/// Clones share the disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    files: BTreeMap<String, Arc<Mutex<Contents>>>,
    faults: Arc<Mutex<Faults>>,
    random: u64,
    locked: bool,
}

#[derive(Clone, Debug, Default)]
struct Contents {
    stable: Vec<u8>,
    live: Vec<u8>,
    unsynced: Vec<Change>,
    /// The directory entry is on stable storage.
    linked: bool,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// What the disk will refuse.
#[derive(Default)]
struct Faults {
    /// Runs before the next read.
    before_read: Option<Box<dyn FnOnce() + Send>>,
    /// Runs before the next sync of this file.
    before_sync: Option<(String, Box<dyn FnOnce() + Send>)>,
    /// Writes, syncs and allocations so far.
    calls: u64,
    /// From this call on every one fails like this.
    fail_from: Option<(u64, io::ErrorKind)>,
    /// Only this call fails.
    fail_once: Option<(u64, io::ErrorKind)>,
    /// The write of this number (from 0) to files whose name begins like this is said to be done and is not: lost, or so
    /// many bytes further on.
    lie: Option<(String, u64, Option<u64>)>,
    /// No file is extended by an allocation any more: half of what is asked for is taken before that shows.
    out_of_space: bool,
}

impl Faults {
    /// What really happens to a write of this file, if it is not what is said.
    fn lie_about(&mut self, name: &str) -> Option<Option<u64>> {
        let (_, left, by) = self.lie.as_mut().filter(|(prefix, ..)| name.starts_with(prefix.as_str()))?;
        let by = *by;
        match left.checked_sub(1) {
            Some(fewer) => {
                *left = fewer;
                None
            }
            None => {
                self.lie = None;
                Some(by)
            }
        }
    }
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Faults after {} calls", self.calls)
    }
}

#[derive(Debug)]
struct SimFile {
    name: String,
    contents: Arc<Mutex<Contents>>,
    faults: Arc<Mutex<Faults>>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        let inner = Inner { files: BTreeMap::new(), faults: Arc::default(), random: seed, locked: false };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Writes, syncs and allocations so far.
    pub fn calls(&self) -> u64 {
        let inner = locked(&self.0);
        let faults = locked(&inner.faults);
        faults.calls
    }

    /// Makes every modifying call from number `call` on fail, as when the power goes.
    pub fn fail_from(&self, call: u64, kind: io::ErrorKind) {
        locked(&locked(&self.0).faults).fail_from = Some((call, kind));
    }

    /// Makes only the modifying call number `call` fail.
    pub fn fail_once(&self, call: u64, kind: io::ErrorKind) {
        locked(&locked(&self.0).faults).fail_once = Some((call, kind));
    }

    /// The write of number `nth` from now on to files whose name begins with `prefix` gets lost, or hits a place `by`
    /// bytes further on (from the file's beginning again, behind its end).
    pub fn lie(&self, prefix: &str, nth: u64, by: Option<u64>) {
        locked(&locked(&self.0).faults).lie = Some((prefix.to_owned(), nth, by));
    }

    /// The file system has no space for allocations, or has it again.
    pub fn set_out_of_space(&self, out: bool) {
        locked(&locked(&self.0).faults).out_of_space = out;
    }

    /// Runs `action` just before the next read of any file: what a concurrent thread might do at that moment.
    pub fn before_next_read(&self, action: Box<dyn FnOnce() + Send>) {
        locked(&locked(&self.0).faults).before_read = Some(action);
    }

    /// The disk after a `kill -9` of the process: everything written is there.
    pub fn process_killed(&self) -> Self {
        self.rebuilt(|contents, _| Some(contents.clone()))
    }

    /// The disk after a power failure.
    pub fn power_failure(&self, seed: u64) -> Self {
        let mut random = seed ^ 0x9e37_79b9_7f4a_7c15;
        self.rebuilt(move |contents, _| {
            if !contents.linked && next(&mut random).is_multiple_of(2) {
                return None;
            }
            let mut found = contents.stable.clone();
            for change in &contents.unsynced {
                tear(&mut found, change, &mut random);
            }
            Some(Contents { stable: found.clone(), live: found, unsynced: Vec::new(), linked: true })
        })
    }

    /// Flips bits of one byte, durably.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        if let Some(file) = locked(&self.0).files.get(name) {
            let mut contents = locked(file);
            contents.live[offset] ^= mask;
            if let Some(byte) = contents.stable.get_mut(offset) {
                *byte ^= mask;
            }
        }
    }

    /// The bytes of a file as the process sees them.
    pub fn live(&self, name: &str) -> Vec<u8> {
        locked(&self.0).files.get(name).map(|file| locked(file).live.clone()).unwrap_or_default()
    }

    /// Runs `action` just before the next sync of the file `name`: what a concurrent thread might do while it lasts.
    pub fn before_next_sync(&self, name: &str, action: Box<dyn FnOnce() + Send>) {
        locked(&locked(&self.0).faults).before_sync = Some((name.to_owned(), action));
    }

    fn rebuilt(&self, mut found: impl FnMut(&Contents, &str) -> Option<Contents>) -> Self {
        let inner = locked(&self.0);
        let files = inner
            .files
            .iter()
            .filter_map(|(name, file)| {
                Some((name.clone(), Arc::new(Mutex::new(found(&locked(file), name)?))))
            })
            .collect();
        let rebuilt = Inner { files, faults: Arc::default(), random: inner.random, locked: false };
        Self(Arc::new(Mutex::new(rebuilt)))
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str, create: bool) -> io::Result<Option<Arc<dyn DiskFile>>> {
        let mut inner = locked(&self.0);
        if !inner.files.contains_key(name) {
            if !create {
                return Ok(None);
            }
            check(&inner.faults)?;
            inner.files.insert(name.to_string(), Arc::default());
        }
        let contents = Arc::clone(&inner.files[name]);
        Ok(Some(Arc::new(SimFile { name: name.to_owned(), contents, faults: Arc::clone(&inner.faults) })))
    }

    fn sync_directory(&self) -> io::Result<()> {
        let inner = locked(&self.0);
        check(&inner.faults)?;
        inner.files.values().for_each(|file| locked(file).linked = true);
        Ok(())
    }

    fn lock(&self) -> io::Result<bool> {
        Ok(!std::mem::replace(&mut locked(&self.0).locked, true))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(1 << 30)
    }

    fn random(&self) -> io::Result<[u8; 16]> {
        let mut inner = locked(&self.0);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&next(&mut inner.random).to_le_bytes());
        bytes[8..].copy_from_slice(&next(&mut inner.random).to_le_bytes());
        Ok(bytes)
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.contents).live.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let action = locked(&self.faults).before_read.take();
        if let Some(action) = action {
            action();
        }
        let contents = locked(&self.contents);
        let from = offset as usize;
        let bytes = contents.live.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check(&self.faults)?;
        let told = locked(&self.faults).lie_about(&self.name);
        let mut contents = locked(&self.contents);
        let places = (contents.live.len() + 1).saturating_sub(data.len()).max(1);
        let offset = match told {
            None => offset as usize,
            Some(None) => return Ok(()),
            Some(Some(by)) => (offset + by) as usize % places,
        };
        put(&mut contents.live, offset, data);
        contents.unsynced.push(Change::Write(offset, data.to_vec()));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        check(&self.faults)?;
        let mut contents = locked(&self.contents);
        contents.live.resize(len as usize, 0);
        contents.unsynced.push(Change::Length(len as usize));
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let now = locked(&self.contents).live.len() as u64;
        if now >= len {
            return Ok(());
        }
        if locked(&self.faults).out_of_space {
            self.set_len(now.max(len / 2))?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        let action = locked(&self.faults).before_sync.take_if(|(name, _)| *name == self.name);
        if let Some((_, action)) = action {
            action();
        }
        check(&self.faults)?;
        let mut contents = locked(&self.contents);
        let unsynced = std::mem::take(&mut contents.unsynced);
        for change in unsynced {
            match change {
                Change::Write(offset, data) => put(&mut contents.stable, offset, &data),
                Change::Length(len) => contents.stable.resize(len, 0),
            }
        }
        Ok(())
    }
}

fn check(faults: &Mutex<Faults>) -> io::Result<()> {
    let mut faults = locked(faults);
    let call = faults.calls;
    faults.calls += 1;
    let from = faults.fail_from.filter(|(from, _)| call >= *from);
    let once = faults.fail_once.filter(|(once, _)| call == *once);
    from.or(once).map_or(Ok(()), |(_, kind)| Err(kind.into()))
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

/// Applies all, nothing, or some sectors of an unsynced change.
fn tear(bytes: &mut Vec<u8>, change: &Change, random: &mut u64) {
    let fate = next(random) % 4;
    match change {
        Change::Length(len) if fate > 0 => bytes.resize(*len, 0),
        Change::Write(offset, data) if fate == 3 => put(bytes, *offset, data),
        Change::Write(offset, data) if fate == 2 => {
            // Sectors are aligned on the disk, so the first piece may be shorter.
            let mut at = 0;
            while at < data.len() {
                let len = (SECTOR - (offset + at) % SECTOR).min(data.len() - at);
                if next(random).is_multiple_of(2) {
                    put(bytes, offset + at, &data[at..at + len]);
                }
                at += len;
            }
        }
        _ => {}
    }
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
