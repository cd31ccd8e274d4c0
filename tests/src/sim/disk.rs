//! A disk in memory that does what disks do: it forgets, tears and reorders what was not synced when the power fails,
//! fills up, refuses, and flips bits.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use metadata_server::quorum::files::{Directory, DiskFile};

use crate::simulation::rng::Rng;

/// Writes are kept, lost or torn in units of this size.
const SECTOR: usize = 512;

/// One server's disk. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Contents>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending_names: Vec<NameChange>,
    next_file: u64,
    /// Changing operations so far.
    operations: u64,
    /// The power fails after that many.
    power_fails_at: Option<u64>,
    /// Files cannot be made.
    is_full: bool,
    /// Every write and sync fails.
    is_broken: bool,
    /// Opened before the power failed: these files are gone for whoever still holds them.
    power_cycles: u64,
}

#[derive(Clone, Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
    /// Where the last synced writes went.
    last_synced: Vec<(usize, usize)>,
}

#[derive(Clone)]
enum NameChange {
    Set(String, u64),
    Unset(String),
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }

    /// The power fails after `operations` more changing operations: everything after them fails.
    pub(crate) fn fail_power_after(&self, operations: u64) {
        let mut state = self.state();
        state.power_fails_at = Some(state.operations + operations);
    }

    /// Whether the power has not failed.
    pub(crate) fn has_power(&self) -> bool {
        let state = self.state();
        state.power_fails_at.is_none_or(|at| state.operations <= at)
    }

    /// A failure of the power that was to come does not.
    pub(crate) fn keep_power(&self) {
        self.state().power_fails_at = None;
    }

    pub(crate) fn set_full(&self, is_full: bool) {
        self.state().is_full = is_full;
    }

    pub(crate) fn set_broken(&self, is_broken: bool) {
        self.state().is_broken = is_broken;
    }

    /// The power fails and comes back: of what was not synced any part may be there.
    pub(crate) fn power_cycle(&self, rng: &mut Rng) {
        let mut state = self.state();
        let kept_permille = rng.pick(&[0, 300, 700, 970, 1000]);
        for contents in state.files.values_mut() {
            contents.crash(rng, kept_permille);
        }
        // The file system's journal keeps the order of names, not how many changes it wrote.
        let kept = rng.below(state.pending_names.len() as u64 + 1) as usize;
        let changes: Vec<NameChange> = state.pending_names.drain(..).take(kept).collect();
        changes.iter().for_each(|change| change.apply(&mut state.durable_names));
        state.names = state.durable_names.clone();
        let named: Vec<u64> = state.names.values().copied().collect();
        state.files.retain(|id, _| named.contains(id));
        state.power_fails_at = None;
        state.is_broken = false;
        state.power_cycles += 1;
    }

    /// Flips one bit that was synced, but not by the last sync of its file (of which nothing else tells). Returns
    /// which file, if there was anything to flip.
    pub(crate) fn flip_bit(&self, rng: &mut Rng, wanted: impl Fn(&str) -> bool) -> Option<(String, usize)> {
        let mut state = self.state();
        let names: Vec<(String, u64)> =
            state.names.iter().filter(|(name, _)| wanted(name)).map(|(n, f)| (n.clone(), *f)).collect();
        if names.is_empty() {
            return None;
        }
        let (name, file) = names[rng.below(names.len() as u64) as usize].clone();
        let contents = state.files.get_mut(&file)?;
        let end = contents.durable.iter().rposition(|byte| *byte != 0)? + 1;
        let at = rng.below(end as u64) as usize;
        let is_last = |(start, len): &(usize, usize)| (*start..start + len).contains(&at);
        if contents.last_synced.iter().any(is_last) || contents.durable.get(at).is_none() {
            return None;
        }
        let bit = 1 << rng.below(8);
        contents.durable[at] ^= bit;
        contents.live[at] ^= bit;
        Some((name, at))
    }
}

impl State {
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        if self.is_broken {
            return Err(io::Error::other("the disk does not answer"));
        }
        match self.power_fails_at {
            Some(at) if self.operations > at => Err(io::Error::other("the power failed")),
            _ => Ok(()),
        }
    }

    fn name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }

    fn find(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Set(name, file) => drop(names.insert(name.clone(), *file)),
            NameChange::Unset(name) => drop(names.remove(name)),
        }
    }
}

impl Contents {
    fn crash(&mut self, rng: &mut Rng, kept_permille: u64) {
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            let mut at = 0;
            while at < bytes.len() {
                let len = (SECTOR - (offset + at) % SECTOR).min(bytes.len() - at);
                let start = offset + at;
                if self.durable.len() < start + len {
                    self.durable.resize(start + len, 0);
                }
                if rng.chance(kept_permille) {
                    let kept = if rng.chance(30) { rng.below(len as u64) as usize } else { len };
                    self.durable[start..start + kept].copy_from_slice(&bytes[at..at + kept]);
                }
                at += len;
            }
        }
        self.live.clone_from(&self.durable);
    }

    fn sync(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.last_synced.clear();
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            if self.durable.len() < offset + bytes.len() {
                self.durable.resize(offset + bytes.len(), 0);
            }
            self.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
            self.last_synced.push((offset, bytes.len()));
        }
    }
}

impl Directory for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state();
        let file = state.find(name)?;
        Ok(Box::new(SimFile { disk: self.clone(), file, power_cycles: state.power_cycles }))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.operation()?;
        if state.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = state.next_file;
        state.next_file += 1;
        let zeros = vec![0; len as usize];
        let contents = Contents { live: zeros.clone(), pending: vec![(0, zeros)], ..Contents::default() };
        state.files.insert(file, contents);
        state.name(NameChange::Set(name.to_owned(), file));
        Ok(Box::new(SimFile { disk: self.clone(), file, power_cycles: state.power_cycles }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        let file = state.find(from)?;
        state.name(NameChange::Unset(from.to_owned()));
        state.name(NameChange::Set(to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.find(name)?;
        state.name(NameChange::Unset(name.to_owned()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.operation()?;
        state.durable_names = state.names.clone();
        state.pending_names.clear();
        let named: Vec<u64> = state.names.values().copied().collect();
        // What has no name is only kept for those who still have it open: the log closes what it removes.
        state.files.retain(|id, _| named.contains(id));
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    file: u64,
    power_cycles: u64,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut Contents) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.state();
        if state.power_cycles != self.power_cycles {
            return Err(io::Error::other("the power failed"));
        }
        act(state.files.get_mut(&self.file).ok_or(io::ErrorKind::NotFound)?)
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        self.with(|contents| Ok(contents.live.len() as u64))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(|contents| {
            let offset = offset as usize;
            let bytes = contents.live.get(offset..offset + buffer.len());
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let outcome = self.disk.state().operation();
        self.with(|contents| {
            let offset = offset as usize;
            let place = contents.live.get_mut(offset..offset + bytes.len());
            place.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
            contents.pending.push((offset, bytes.to_vec()));
            Ok(())
        })?;
        outcome
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.state().operation()?;
        self.with(|contents| {
            contents.sync();
            Ok(())
        })
    }
}
