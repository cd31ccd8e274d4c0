//! The power fails everywhere at once: every server's files are on a disk that forgets what was not flushed.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use cluster_tests::harness::{Cluster, CutDisk, Options};
use cluster_tests::workload;

use crate::Row;
use crate::load::Load;
use crate::scene::Scene;

pub(crate) const TESTS: &[Row] =
    &[("power::what_was_fsynced_survives_a_cut_of_all_servers", (300, 1200), fsynced_survives)];

/// Size of the disk under the six servers. Sparse: it takes what is written.
const DISK_BYTES: u64 = 6 << 30;

fn fsynced_survives(scene: &Scene) -> anyhow::Result<()> {
    let disk = CutDisk::create(scene.dir(), DISK_BYTES)?;
    let mut power = disk.power_on()?;
    let cluster = Cluster::create(&scene.dir().join("cluster"), &Options::default())?;
    for server in cluster.servers()? {
        disk.take_server(&cluster, server)?;
    }
    let mut acknowledged = Vec::new();
    for round in 0..scene.size(3, 12) {
        let started = cluster.start_all();
        started.with_context(|| format!("start the cluster, round {round}"))?;
        let mnt = scene.mount(&cluster, "mnt")?;
        let load = Load::start(&mnt, &scene.scratch("load")?, scene.seed() * 1000 + round)?;
        load.wait_for_files(scene.size(60, 200), Duration::from_secs(60))?;
        let at_cut = load.freeze();
        disk.cut(round)?;
        cluster.abandon()?;
        load.discard();
        acknowledged.extend(at_cut);
        power.off(&disk)?;
        power = disk.power_on()?;
        cluster.start_all().context("start the cluster after the cut")?;
        let mnt = scene.mount(&cluster, "mnt")?;
        for file in &acknowledged {
            file.verify(&mnt).with_context(|| format!("after cut {round}"))?;
        }
        println!("cut {round}: {} fsynced files are there", acknowledged.len());
        // The tree accepts new work, and what is left over can be listed and removed.
        fs::write(mnt.join(format!("after-{round}")), workload::bytes(round, 100_000))?;
        scene.bash(60, &format!("find '{}' -type f -print0 | xargs -0 cat > /dev/null", mnt.display()))?;
        cluster.down()?;
    }
    power.off(&disk)
}
