//! Times of overwrites, which a mount commits later: whoever looks sees them, whatever dies in between.

use std::fs::{File, FileTimes, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use cluster_tests::harness::{Cluster, Signal, Target};
use cluster_tests::workload::bytes;

use crate::Row;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] =
    &[("times::of_overwrites_are_seen_by_who_looks_next", (180, 300), seen_by_who_looks_next)];

/// So many overwrites make a mount ask for the right to defer.
const MANY: u64 = 8;

/// A large file that one mount overwrites and another one looks at.
struct Shared {
    mine: File,
    theirs: PathBuf,
    seen: SystemTime,
}

impl Shared {
    fn new(here: &Path, there: &Path, name: &str) -> anyhow::Result<Shared> {
        std::fs::write(here.join(name), bytes(1, 200_000))?;
        let mine = OpenOptions::new().read(true).write(true).open(here.join(name))?;
        let theirs = there.join(name);
        let seen = theirs.metadata()?.modified()?;
        Ok(Shared { mine, theirs, seen })
    }

    fn overwrite(&self) -> anyhow::Result<()> {
        for number in 0..MANY {
            self.mine.write_all_at(&[number as u8; 4096], 8192 * number)?;
        }
        Ok(())
    }

    /// Looks from the other mount: newer than the last time.
    fn is_newer(&mut self, when: &str) -> anyhow::Result<()> {
        let found = self.theirs.metadata()?.modified()?;
        ensure!(found > self.seen, "{when}: overwritten here, and there the mtime is still {found:?}");
        self.seen = found;
        Ok(())
    }

    /// The same from both mounts, and the same again when nothing is written.
    fn is_stable(&mut self) -> anyhow::Result<()> {
        for _ in 0..2 {
            let (here, there) = (self.mine.metadata()?.modified()?, self.theirs.metadata()?.modified()?);
            ensure!(
                (here, there) == (self.seen, self.seen),
                "{here:?} here, {there:?} there, {:?}",
                self.seen
            );
        }
        Ok(())
    }
}

fn seen_by_who_looks_next(scene: &Scene) -> anyhow::Result<()> {
    let (cluster, here) = scene.mounted()?;
    let there = scene.mount(&cluster, "other")?;
    let mut shared = Shared::new(&here, &there, "shared")?;
    for round in 0..scene.size(20, 200) {
        shared.overwrite()?;
        shared.is_newer(&format!("round {round}"))?;
        shared.is_stable()?;
        explicit(&shared, round).with_context(|| format!("round {round}"))?;
        shared.seen = shared.theirs.metadata()?.modified()?;
        if round % 4 == 0 {
            // Longer than the pause after which a mount asks for the right again.
            std::thread::sleep(Duration::from_millis(1_100));
        }
    }
    leader_dies(&cluster, &mut shared)?;
    owners_die(scene, &cluster, &there)
}

/// Times that a program sets stay, on whichever mount it does so.
fn explicit(shared: &Shared, round: u64) -> anyhow::Result<()> {
    let set = |seconds| FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    for (seconds, by_other) in [(1000 + round, false), (2000 + round, true)] {
        shared.overwrite()?;
        let times = set(seconds);
        match by_other {
            false => shared.mine.set_times(times)?,
            true => OpenOptions::new().write(true).open(&shared.theirs)?.set_times(times)?,
        }
        for file in [shared.mine.metadata()?, shared.theirs.metadata()?] {
            let found = file.modified()?.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
            ensure!(found == seconds, "set to {seconds} s (by the other mount: {by_other}), found {found} s");
        }
    }
    // What comes next is newer than what was seen by any clock.
    shared.overwrite()?;
    let _ = shared.mine.metadata()?;
    Ok(())
}

fn leader_dies(cluster: &Cluster, shared: &mut Shared) -> anyhow::Result<()> {
    std::thread::sleep(Duration::from_millis(1_100));
    shared.overwrite()?;
    shared.seen = shared.theirs.metadata()?.modified()?;
    std::thread::sleep(Duration::from_millis(1_100));
    shared.overwrite()?;
    let leader = cluster.leader(Duration::from_secs(30))?;
    cluster.kill(&Target::Server(leader), Signal::KILL)?;
    shared.is_newer("after the leader died")?;
    shared.is_stable()?;
    cluster.start(leader)
}

/// Mounts that overwrote something and cannot be asked any more: one is dead, one does not answer.
fn owners_die(scene: &Scene, cluster: &Cluster, there: &Path) -> anyhow::Result<()> {
    let (dead, frozen) = (scene.mount(cluster, "dead")?, scene.mount(cluster, "frozen")?);
    let mut files = [Shared::new(&dead, there, "of-dead")?, Shared::new(&frozen, there, "of-frozen")?];
    for file in &mut files {
        file.overwrite()?;
        file.seen = file.theirs.metadata()?.modified()?;
    }
    std::thread::sleep(Duration::from_millis(1_100));
    files.iter().try_for_each(Shared::overwrite)?;
    cluster.kill(&Target::Mount(dead), Signal::KILL)?;
    cluster.kill(&Target::Mount(frozen.clone()), Signal::STOP)?;
    for (file, owner) in files.iter_mut().zip(["dead", "frozen"]) {
        file.is_newer(&format!("the owner is {owner}"))?;
        let mut found = [0; 4096];
        File::open(&file.theirs)?.read_exact_at(&mut found, 8192 * (MANY - 1))?;
        ensure!(found == [(MANY - 1) as u8; 4096], "what returned is there, although the owner is {owner}");
    }
    cluster.kill(&Target::Mount(frozen), Signal::CONT)?;
    Ok(())
}
