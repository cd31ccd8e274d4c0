//! What every test is given: a directory, sizes, and clusters that end with it.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use cluster_tests::harness::{Cluster, MountCall, Options};
use cluster_tests::programs;

/// A test's surroundings.
pub(crate) struct Scene {
    dir: PathBuf,
    full: bool,
    seed: u64,
}

impl Scene {
    pub(crate) fn new(dir: &Path, full: bool, seed: u64) -> Scene {
        Scene { dir: dir.to_owned(), full, seed }
    }

    /// The test's own directory, on a local disk.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Seed of every random choice.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// `short` in CI, `long` in a soak.
    pub(crate) fn size<T>(&self, short: T, long: T) -> T {
        if self.full { long } else { short }
    }

    /// A new, empty directory beside the cluster.
    pub(crate) fn scratch(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// A running cluster of three and three.
    pub(crate) fn cluster(&self) -> anyhow::Result<TestCluster> {
        self.cluster_with(&Options::default())
    }

    /// A running cluster.
    pub(crate) fn cluster_with(&self, options: &Options) -> anyhow::Result<TestCluster> {
        let cluster = TestCluster(Cluster::create(&self.dir.join("cluster"), options)?);
        cluster.start_all()?;
        Ok(cluster)
    }

    /// A running cluster of three and three with one mount: what most tests need.
    pub(crate) fn mounted(&self) -> anyhow::Result<(TestCluster, PathBuf)> {
        let cluster = self.cluster()?;
        let mountpoint = self.mount(&cluster, "mnt")?;
        Ok((cluster, mountpoint))
    }

    /// One more ordinary mount, at a new directory `name` beside the cluster.
    pub(crate) fn mount(&self, cluster: &Cluster, name: &str) -> anyhow::Result<PathBuf> {
        let mountpoint = self.scratch(name)?;
        cluster.mount(&MountCall::at(&mountpoint))?;
        Ok(mountpoint)
    }

    /// Runs a bash script in the test's directory.
    pub(crate) fn bash(&self, seconds: u64, script: &str) -> anyhow::Result<String> {
        programs::bash(&self.dir, Duration::from_secs(seconds), script)
    }
}

/// A cluster whose processes end with the test, whatever its outcome.
pub(crate) struct TestCluster(Cluster);

impl Deref for TestCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        // The runner looks after what this misses.
        if let Err(error) = self.0.abandon() {
            eprintln!("the cluster could not be ended: {error:#}");
        }
    }
}
