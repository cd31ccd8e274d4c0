//! A running load: copies with checksums, small files, and sqlite; every error counts, every stall is measured.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use cluster_tests::harness::wait_until;
use cluster_tests::programs;
use cluster_tests::workload::{below, bytes};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

/// How long a single call may take before the load itself gives up.
const CALL_LIMIT: Duration = Duration::from_secs(180);
/// Largest copied file.
const COPY_BYTES_MAX: u64 = 3 << 20;

/// A file whose fsync and rename returned.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    name: String,
    seed: u64,
    len: usize,
}

impl Written {
    /// Whether it is there with every byte.
    pub(crate) fn verify(&self, mnt: &Path) -> anyhow::Result<()> {
        let path = mnt.join(&self.name);
        let found = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(found.len() == self.len, "{}: {} bytes, not {}", path.display(), found.len(), self.len);
        let wanted = bytes(self.seed, self.len);
        match (0..self.len).find(|at| found[*at] != wanted[*at]) {
            None => Ok(()),
            Some(at) => Err(anyhow!("{}: byte {at} is wrong", path.display())),
        }
    }
}

/// The longest call of a phase.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stall {
    /// How long it took.
    pub(crate) longest: Duration,
    /// What it was.
    pub(crate) what: String,
}

/// The load.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    mnt: PathBuf,
}

struct Shared {
    mnt: PathBuf,
    /// Directory on a local disk.
    outside: PathBuf,
    stop: AtomicBool,
    written: Mutex<Vec<Written>>,
    errors: Mutex<Vec<String>>,
    stall: Mutex<Stall>,
    /// Calls under way: what, since when.
    under_way: Mutex<Vec<(u64, String, Instant)>>,
    calls: AtomicU64,
    /// Rows whose COMMIT returned.
    rows: AtomicU64,
    tag: u64,
}

impl Load {
    /// Starts three threads on the mount. Names depend on `seed`, so that loads one after another do not meet.
    pub(crate) fn start(mnt: &Path, outside: &Path, seed: u64) -> anyhow::Result<Load> {
        let shared = Arc::new(Shared {
            mnt: mnt.to_owned(),
            outside: outside.to_owned(),
            stop: AtomicBool::new(false),
            written: Mutex::default(),
            errors: Mutex::default(),
            stall: Mutex::default(),
            under_way: Mutex::default(),
            calls: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            tag: seed,
        });
        for directory in ["copies", "small"] {
            let path = mnt.join(format!("{directory}-{seed}"));
            fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        }
        shared.sqlite("CREATE TABLE t(n INTEGER PRIMARY KEY, v TEXT)")?;
        let bodies: [fn(&Shared) -> anyhow::Result<()>; 3] =
            [Shared::copy, Shared::small_files, Shared::rows];
        let threads = bodies.into_iter().map(|body| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    if let Err(error) = body(&shared) {
                        guard(&shared.errors).push(format!("{error:#}"));
                        return;
                    }
                }
            })
        });
        let threads = threads.collect();
        Ok(Load { shared, threads, mnt: mnt.to_owned() })
    }

    /// Waits until this many files are written and fsynced.
    pub(crate) fn wait_for_files(&self, count: usize, limit: Duration) -> anyhow::Result<()> {
        wait_until(&format!("{count} files to be written"), limit, || {
            let written = guard(&self.shared.written).len();
            if written >= count { Ok(()) } else { Err(format!("{written} are")) }
        })?;
        self.check()
    }

    /// The first error so far.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match guard(&self.shared.errors).first() {
            Some(error) => Err(anyhow!("a program under load got an error: {error}")),
            None => Ok(()),
        }
    }

    /// The longest call since this was last asked, ended or still under way.
    pub(crate) fn take_stall(&self) -> Stall {
        let mut stall = std::mem::take(&mut *guard(&self.shared.stall));
        for (_, what, since) in guard(&self.shared.under_way).iter() {
            if since.elapsed() > stall.longest {
                stall = Stall { longest: since.elapsed(), what: format!("{what}, still under way") };
            }
        }
        stall
    }

    /// Waits until every thread has completed calls that began after now: nothing is stuck.
    pub(crate) fn wait_for_progress(&self, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        let before = self.shared.calls.load(Ordering::Relaxed);
        wait_until("the load to go on", limit, || {
            self.check().map_err(|error| error.to_string())?;
            let stuck = guard(&self.shared.under_way).iter().find(|call| call.2 <= start).cloned();
            match stuck {
                Some((_, what, since)) => Err(format!("{what} takes {:?} so far", since.elapsed())),
                None if self.shared.calls.load(Ordering::Relaxed) < before + 10 => {
                    Err("too few calls".into())
                }
                None => Ok(()),
            }
        })?;
        Ok(())
    }

    /// Number of calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// What is acknowledged at this moment; the load goes on.
    pub(crate) fn freeze(&self) -> Vec<Written> {
        guard(&self.shared.written).clone()
    }

    /// Ends the load without looking at its errors. The mount must be gone or working, or this waits.
    pub(crate) fn discard(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // A panic of a load thread is of no interest any more.
            let _ = thread.join();
        }
    }

    /// Ends the load; every error is an error.
    pub(crate) fn finish(self) -> anyhow::Result<Finished> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a thread of the load panicked"))?;
        }
        if let Some(error) = guard(&self.shared.errors).first() {
            return Err(anyhow!("a program under load got an error: {error}"));
        }
        let written = guard(&self.shared.written).clone();
        Ok(Finished {
            written,
            rows: self.shared.rows.load(Ordering::Relaxed),
            tag: self.shared.tag,
            mnt: self.mnt,
        })
    }
}

/// A load that ended well.
pub(crate) struct Finished {
    /// Every file that was written.
    pub(crate) written: Vec<Written>,
    /// Every row that was committed.
    pub(crate) rows: u64,
    tag: u64,
    mnt: PathBuf,
}

impl Finished {
    /// Every file and every row is there.
    pub(crate) fn verify(&self) -> anyhow::Result<()> {
        self.written.iter().try_for_each(|file| file.verify(&self.mnt))?;
        let database = self.mnt.join(format!("load-{}.db", self.tag));
        let query = "PRAGMA integrity_check; SELECT count(*) FROM t";
        let answer = run_sqlite(&database, query)?;
        let (integrity, count) = answer.trim().split_once('\n').context("two answers")?;
        ensure!(integrity == "ok", "sqlite: {integrity}");
        let count: u64 = count.trim().parse().context("a number of rows")?;
        ensure!(count >= self.rows, "{count} rows are there, {} were committed", self.rows);
        Ok(())
    }
}

impl Shared {
    /// One copy: write, fsync, rename, then read some earlier one again.
    fn copy(&self) -> anyhow::Result<()> {
        let number = guard(&self.written).len() as u64;
        let seed = self.tag << 32 | number;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let range = [20_000, 100_000, COPY_BYTES_MAX][below(&mut rng, 3) as usize];
        let len = below(&mut rng, range) as usize;
        let contents = bytes(seed, len);
        let name = format!("copies-{}/file-{number}", self.tag);
        let (path, temporary) = (self.mnt.join(&name), self.mnt.join(format!("{name}.new")));
        let mut file = self.timed("create a copy", || File::create(&temporary))?;
        for piece in contents.chunks(256 << 10) {
            self.timed("write 256 KiB", || file.write_all(piece))?;
        }
        self.timed("fsync a copy", || file.sync_all())?;
        drop(file);
        self.timed("rename a copy", || fs::rename(&temporary, &path))?;
        self.timed("fsync the directory", || File::open(path.parent().unwrap_or(&self.mnt))?.sync_all())?;
        guard(&self.written).push(Written { name, seed, len });
        let earlier = below(&mut rng, number + 1) as usize;
        let earlier = guard(&self.written)[earlier].clone();
        self.timed("read a copy", || earlier.verify(&self.mnt).map_err(std::io::Error::other))
    }

    /// One small file's life.
    fn small_files(&self) -> anyhow::Result<()> {
        let number = self.calls.load(Ordering::Relaxed);
        let directory = self.mnt.join(format!("small-{}", self.tag));
        let path = directory.join(format!("f{number}"));
        let contents = bytes(number, 3000);
        self.timed("write a small file", || fs::write(&path, &contents))?;
        let mut found = Vec::new();
        self.timed("read a small file", || File::open(&path)?.read_to_end(&mut found))?;
        ensure!(found == contents, "{} holds something else", path.display());
        let moved = directory.join(format!("g{number}"));
        self.timed("rename a small file", || fs::rename(&path, &moved))?;
        self.timed("append to a small file", || {
            OpenOptions::new().append(true).open(&moved)?.write_all(b"x")
        })?;
        let size = self.timed("stat a small file", || Ok(fs::metadata(&moved)?.len()))?;
        ensure!(size == 3001, "{} has {size} bytes", moved.display());
        let listed = self.timed("list a directory", || Ok(fs::read_dir(&directory)?.count()))?;
        ensure!(listed == 1, "{} lists {listed} files", directory.display());
        self.timed("unlink a small file", || fs::remove_file(&moved))
    }

    /// One committed row.
    fn rows(&self) -> anyhow::Result<()> {
        let row = self.rows.load(Ordering::Relaxed);
        let text = format!("INSERT INTO t VALUES({row}, hex(randomblob(200)))");
        self.timed("commit a row", || self.sqlite(&text).map_err(std::io::Error::other))?;
        self.rows.store(row + 1, Ordering::Relaxed);
        Ok(())
    }

    fn sqlite(&self, text: &str) -> anyhow::Result<()> {
        // Kept outside too, for whoever wants to know what was asked.
        let mut log = OpenOptions::new().create(true).append(true).open(self.outside.join("rows.sql"))?;
        writeln!(log, "{text};").context("note a statement")?;
        run_sqlite(&self.mnt.join(format!("load-{}.db", self.tag)), text).map(drop)
    }

    fn timed<T>(&self, what: &str, call: impl FnOnce() -> std::io::Result<T>) -> anyhow::Result<T> {
        static TICKET: AtomicU64 = AtomicU64::new(0);
        let ticket = TICKET.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        guard(&self.under_way).push((ticket, what.to_owned(), start));
        let result = call();
        guard(&self.under_way).retain(|call| call.0 != ticket);
        let took = start.elapsed();
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut stall = guard(&self.stall);
        if took > stall.longest {
            *stall = Stall { longest: took, what: what.to_owned() };
        }
        result.with_context(|| format!("{what} (after {took:?})"))
    }
}

fn run_sqlite(database: &Path, text: &str) -> anyhow::Result<String> {
    let mut command = Command::new("sqlite3");
    command.arg("-bail").args(["-cmd", ".timeout 60000"]).arg(database).arg(text);
    programs::run(&mut command, CALL_LIMIT)?.success()
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_runs_measures_and_verifies_on_a_local_disk() {
        let (mnt, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let load = Load::start(mnt.path(), outside.path(), 3).unwrap();
        load.wait_for_files(5, Duration::from_secs(60)).unwrap();
        load.wait_for_progress(Duration::from_secs(30)).unwrap();
        assert!(load.take_stall().longest > Duration::ZERO);
        let finished = load.finish().unwrap();
        finished.verify().unwrap();
        let victim = mnt.path().join(&finished.written[2].name);
        fs::write(&victim, bytes(9, finished.written[2].len)).unwrap();
        assert!(finished.verify().is_err());
    }
}
