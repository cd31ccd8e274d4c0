//! A disk that remembers what was synced, and shows what could be on it after the power failed at any moment.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::files::{Directory, DiskFile};

/// Writes are kept, lost or torn in units of this size.
const SECTOR: usize = 512;

/// A small reproducible source of decisions (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Default)]
pub(crate) struct CrashDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Contents>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending_names: Vec<NameChange>,
    next_file: u64,
    operations: u64,
    /// The operation that fails, and all after it.
    fails_at: Option<u64>,
}

#[derive(Clone, Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone)]
enum NameChange {
    Set(String, u64),
    Unset(String),
}

impl CrashDisk {
    /// From the `operations`th changing operation from now on, everything fails.
    pub(crate) fn fail_after(&self, operations: u64) {
        let mut state = self.state();
        state.fails_at = Some(state.operations + operations);
    }

    /// What the disk may hold if the power fails now.
    pub(crate) fn crash(&self, dice: &mut Dice) -> CrashDisk {
        let state = self.state();
        let kept_percent = [0, 30, 70, 97, 100][dice.below(5) as usize];
        let files = state.files.iter().map(|(id, contents)| {
            let image = contents.crash(dice, kept_percent);
            (*id, Contents { live: image.clone(), durable: image, pending: Vec::new() })
        });
        let files = files.collect();
        // The file system's journal keeps the order of names, not how many changes it wrote.
        let mut names = state.durable_names.clone();
        let kept = dice.below(state.pending_names.len() as u64 + 1) as usize;
        state.pending_names[..kept].iter().for_each(|change| change.apply(&mut names));
        let after = State {
            files,
            names: names.clone(),
            durable_names: names,
            next_file: state.next_file,
            ..State::default()
        };
        CrashDisk(Arc::new(Mutex::new(after)))
    }

    /// Changes durable bytes behind everybody's back.
    pub(crate) fn damage(&self, name: &str, offset: usize, change: impl FnOnce(&mut [u8])) {
        let mut state = self.state();
        let file = state.names[name];
        let contents = state.files.get_mut(&file).expect("names point to files");
        change(&mut contents.live[offset..]);
        contents.durable = contents.live.clone();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds the lock")
    }
}

impl State {
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.fails_at {
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
    fn crash(&self, dice: &mut Dice, kept_percent: u64) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (offset, bytes) in &self.pending {
            let mut at = 0;
            while at < bytes.len() {
                let len = (SECTOR - (offset + at) % SECTOR).min(bytes.len() - at);
                let start = offset + at;
                if image.len() < start + len {
                    image.resize(start + len, 0);
                }
                if dice.percent(kept_percent) {
                    let torn = if dice.percent(3) { dice.below(len as u64) as usize } else { len };
                    image[start..start + torn].copy_from_slice(&bytes[at..at + torn]);
                }
                at += len;
            }
        }
        image
    }
}

impl Directory for CrashDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.state().find(name)?;
        Ok(Box::new(CrashFile { disk: self.clone(), file }))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.operation()?;
        let file = state.next_file;
        state.next_file += 1;
        let zeros = vec![0; len as usize];
        let contents = Contents { live: zeros.clone(), durable: Vec::new(), pending: vec![(0, zeros)] };
        state.files.insert(file, contents);
        state.name(NameChange::Set(name.to_owned(), file));
        Ok(Box::new(CrashFile { disk: self.clone(), file }))
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
        Ok(())
    }
}

struct CrashFile {
    disk: CrashDisk,
    file: u64,
}

impl DiskFile for CrashFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[&self.file].live.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        let offset = offset as usize;
        let bytes = state.files[&self.file].live.get(offset..offset + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let failed = state.operation();
        let offset = offset as usize;
        let contents = state.files.get_mut(&self.file).expect("open files exist");
        assert!(offset + bytes.len() <= contents.live.len(), "writes stay within the preallocated file");
        contents.live[offset..offset + bytes.len()].copy_from_slice(bytes);
        contents.pending.push((offset, bytes.to_vec()));
        failed
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.operation()?;
        let contents = state.files.get_mut(&self.file).expect("open files exist");
        contents.durable = contents.live.clone();
        contents.pending.clear();
        Ok(())
    }
}
