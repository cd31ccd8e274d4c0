//! How long writes stand still when the metadata leader ends, froze, or lost its disk: `scripts/failover-times`.
//!
//! Threads overwrite small files on a mount, each write being one replicated transaction, and note when each was
//! acknowledged. After every fault the stall is the longest time without any acknowledgement, counted from the fault.
//! Nothing here fails for being slow: the distribution is printed. A write that fails does fail the run.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use cluster_tests::harness::{
    Cluster, CutDisk, MountCall, Options, Power, Server, Signal, Target, clean_up_cut_disk, detach,
    mounts_below, wait_until,
};
use cluster_tests::workload::bytes;

/// Ends, freezes, or takes the disk from the metadata leader again and again, and prints how long writes stood still.
#[derive(Debug, Parser)]
#[command(name = "scripts/failover-times")]
struct Cli {
    /// What happens to the leader
    #[arg(long, value_enum, default_value_t = Fault::Kill)]
    fault: Fault,
    /// How often
    #[arg(long, default_value_t = 200)]
    times: usize,
    /// Threads that write
    #[arg(long, default_value_t = 4)]
    writers: usize,
    /// Milliseconds between the recovery from one fault and the next fault
    #[arg(long, default_value_t = 500)]
    pause: u64,
    /// An absent or empty directory for the cluster
    #[arg(long, default_value = "/var/tmp/zabfs-failover")]
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// kill -9
    Kill,
    /// SIGSTOP; SIGCONT three seconds later
    Stop,
    /// Its disk stops answering for five seconds
    Disk,
}

/// Length of each write in bytes.
const WRITE_BYTES: usize = 100;
/// A stopped process, and a process that was killed, comes back after this long.
const AWAY: Duration = Duration::from_secs(3);
/// A disk that answers nothing does so for this long.
const DISK_AWAY: Duration = Duration::from_secs(5);
/// Nothing is waited for longer.
const LIMIT: Duration = Duration::from_secs(60);
/// Size of the disk of each metadata server. Sparse.
const DISK_BYTES: u64 = 1 << 30;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = run(&cli);
    if let Err(error) = clean_up(&cli.dir) {
        eprintln!("{} is not cleaned up: {error:#}", cli.dir.display());
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failover-times: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let empty = fs::read_dir(&cli.dir).map_or(true, |mut entries| entries.next().is_none());
    ensure!(empty, "{} is not empty; name another directory with --dir", cli.dir.display());
    fs::create_dir_all(&cli.dir).with_context(|| format!("create {}", cli.dir.display()))?;
    let cluster = Cluster::create(&cli.dir.join("cluster"), &Options::default())?;
    let disks = if cli.fault == Fault::Disk { Disks::under(&cluster, &cli.dir)? } else { Disks(Vec::new()) };
    cluster.start_all()?;
    let mnt = cli.dir.join("mnt");
    fs::create_dir_all(&mnt).context("create the mountpoint")?;
    cluster.mount(&MountCall::at(&mnt))?;
    let writers = Writers::start(&mnt, cli.writers)?;
    let mut stalls = Vec::new();
    for round in 1..=cli.times {
        stalls.push(fault(cli, &cluster, &disks, &writers)?);
        if round % 20 == 0 {
            println!("{round} of {}: {}", cli.times, distribution(&stalls));
        }
    }
    let written = writers.stop()?;
    println!(
        "{:?} of the metadata leader, {} times, {} writers, {written} writes, none failed\nstall: {}",
        cli.fault,
        cli.times,
        cli.writers,
        distribution(&stalls)
    );
    Ok(())
}

/// One fault, its stall, and everything well again.
fn fault(cli: &Cli, cluster: &Cluster, disks: &Disks, writers: &Writers) -> anyhow::Result<Duration> {
    let leader = cluster.leader(LIMIT)?;
    writers.forget();
    let start = Instant::now();
    match cli.fault {
        Fault::Kill => cluster.kill(&Target::Server(leader), Signal::KILL).map(drop)?,
        Fault::Stop => cluster.kill(&Target::Server(leader), Signal::STOP).map(drop)?,
        Fault::Disk => disks.of(leader)?.stall()?,
    }
    let away = if cli.fault == Fault::Disk { DISK_AWAY } else { AWAY };
    thread::sleep(away);
    match cli.fault {
        Fault::Kill => cluster.start(leader)?,
        Fault::Stop => cluster.kill(&Target::Server(leader), Signal::CONT).map(drop)?,
        Fault::Disk => disks.of(leader)?.go_on()?,
    }
    let stall = wait_until("a write to be acknowledged", LIMIT, || {
        writers.check().map_err(|error| error.to_string())?;
        writers.longest_gap(start).ok_or_else(|| "none was".to_owned())
    })?;
    cluster.wait_ready(LIMIT)?;
    thread::sleep(Duration::from_millis(cli.pause));
    Ok(stall)
}

/// One disk for each metadata server.
struct Disks(Vec<(Server, Power)>);

impl Disks {
    fn under(cluster: &Cluster, dir: &Path) -> anyhow::Result<Disks> {
        let mut disks = Vec::new();
        for server in cluster.servers()?.into_iter().filter(|server| server.name().starts_with("metadata")) {
            let own = dir.join(format!("disk-of-{}", server.name()));
            fs::create_dir_all(&own).with_context(|| format!("create {}", own.display()))?;
            let disk = CutDisk::create(&own, DISK_BYTES)?;
            disks.push((server, disk.power_on()?));
            disk.take_server(cluster, server)?;
        }
        Ok(Disks(disks))
    }

    fn of(&self, server: Server) -> anyhow::Result<&Power> {
        let found = self.0.iter().find(|(owner, _)| *owner == server);
        Ok(&found.with_context(|| format!("{server} has no disk of its own"))?.1)
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for (server, power) in &self.0 {
            if let Err(error) = power.go_on() {
                eprintln!("the disk of {server} stays stopped: {error:#}");
            }
        }
    }
}

/// Threads that write, and when their writes were acknowledged.
struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<u64>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    failed: AtomicBool,
    acknowledged: Mutex<Vec<Instant>>,
}

impl Writers {
    fn start(mnt: &Path, count: usize) -> anyhow::Result<Writers> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for number in 0..count {
            let path = mnt.join(format!("writer-{number}"));
            let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || {
                let result = write_on(&file, &shared);
                if result.is_err() {
                    shared.failed.store(true, Ordering::Release);
                }
                result
            }));
        }
        Ok(Writers { shared, threads })
    }

    /// What was acknowledged before a fault does not count.
    fn forget(&self) {
        self.shared.times().clear();
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.shared.failed.load(Ordering::Acquire), "a write failed");
        Ok(())
    }

    /// The longest time without an acknowledgement after `start`; `None` before there was one.
    fn longest_gap(&self, start: Instant) -> Option<Duration> {
        let mut times: Vec<Instant> =
            self.shared.times().iter().copied().filter(|time| *time > start).collect();
        times.sort_unstable();
        let before = std::iter::once(start).chain(times.iter().copied());
        before.zip(&times).map(|(before, after)| *after - before).max()
    }

    fn stop(self) -> anyhow::Result<u64> {
        self.shared.stop.store(true, Ordering::Release);
        let mut written = 0;
        for thread in self.threads {
            written += thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
        }
        Ok(written)
    }
}

impl Shared {
    fn times(&self) -> std::sync::MutexGuard<'_, Vec<Instant>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_on(file: &File, shared: &Shared) -> anyhow::Result<u64> {
    let mut written = 0;
    while !shared.stop.load(Ordering::Acquire) {
        file.write_all_at(&bytes(written, WRITE_BYTES), 0).context("write to the mount")?;
        shared.times().push(Instant::now());
        written += 1;
    }
    Ok(written)
}

fn distribution(stalls: &[Duration]) -> String {
    let mut sorted = stalls.to_vec();
    sorted.sort_unstable();
    let at = |part: usize| sorted[(sorted.len() * part).div_ceil(100).clamp(1, sorted.len()) - 1].as_millis();
    format!(
        "p50 {} ms, p90 {} ms, p99 {} ms, worst {} ms ({} faults)",
        at(50),
        at(90),
        at(99),
        at(100),
        sorted.len()
    )
}

/// Ends what the run left, whatever its outcome.
fn clean_up(dir: &Path) -> anyhow::Result<()> {
    if let Ok(cluster) = Cluster::open(&dir.join("cluster")) {
        cluster.abandon()?;
    }
    for entry in fs::read_dir(dir)?.flatten() {
        clean_up_cut_disk(&entry.path())?;
    }
    for mountpoint in mounts_below(dir) {
        detach(&mountpoint)?;
    }
    fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))
}
