//! A disk that can forget what was not flushed, or stop answering: an ext4 on a loop device whose image `cutdisk`
//! serves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::cluster::{Cluster, Server};
use super::mounts::{detach, mounts_below};
use super::process::{ProcessRef, Signal, spawn_logged};
use super::wait::wait_until;
use crate::programs;

/// What the tools that prepare a disk may take.
const SHORT: Duration = Duration::from_secs(20);

/// The image, and where it is served and mounted.
pub struct CutDisk {
    image: PathBuf,
    serve: PathBuf,
    place: PathBuf,
    log: PathBuf,
}

/// The disk while it is on.
pub struct Power {
    server: ProcessRef,
    device: String,
}

impl CutDisk {
    /// A new, empty file system of `bytes` (sparse: it takes what is written) in files below `dir`.
    pub fn create(dir: &Path, bytes: u64) -> anyhow::Result<CutDisk> {
        let disk = CutDisk {
            image: dir.join("image"),
            serve: dir.join("serve"),
            place: dir.join("disk"),
            log: dir.join("cutdisk.log"),
        };
        for place in [&disk.serve, &disk.place] {
            fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
        }
        let file = fs::File::create(&disk.image).context("create the image")?;
        file.set_len(bytes).context("size the image")?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]).arg(&disk.image);
        programs::run(&mut mkfs, Duration::from_secs(60))?.success()?;
        Ok(disk)
    }

    /// Where it is mounted while it is on.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Puts a server's directory onto the disk, its certificates with it; logs and pid files stay where they are.
    pub fn take_server(&self, cluster: &Cluster, server: Server) -> anyhow::Result<()> {
        let (from, to) = (cluster.layout().server(&server.name()), self.place.join(server.name()));
        programs::run(Command::new("mv").arg(&from).arg(&to), SHORT)?.success()?;
        std::os::unix::fs::symlink(&to, &from).with_context(|| format!("link {}", from.display()))?;
        programs::run(Command::new("sync").arg("-f").arg(&self.place), SHORT)?.success()?;
        Ok(())
    }

    /// The power fails: of every block that was not flushed a coin decides whether it had reached the platter.
    pub fn cut(&self, seed: u64) -> anyhow::Result<()> {
        fs::write(self.serve.join("control"), format!("cut {seed}\n")).context("cut the power")
    }

    /// Serves and mounts it; its file system recovers its journal.
    pub fn power_on(&self) -> anyhow::Result<Power> {
        let own = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(own.with_file_name("cutdisk"));
        command.arg(&self.image).arg(&self.serve);
        let server = spawn_logged(&mut command, &self.log)?;
        let pid_file = self.image.with_file_name("cutdisk.pid");
        fs::write(pid_file, server.to_string()).context("note the pid of cutdisk")?;
        let disk = self.serve.join("disk");
        wait_until("the disk to be served", SHORT, || if disk.exists() { Ok(()) } else { Err("not yet") })?;
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).arg(&disk);
        let device = programs::run(&mut losetup, SHORT)?.success()?.trim().to_owned();
        ensure!(device.starts_with("/dev/loop"), "losetup printed {device:?}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", &device]).arg(&self.place);
        programs::run(&mut mount, Duration::from_secs(60))?.success()?;
        Ok(Power { server, device })
    }
}

impl Power {
    /// The disk stops answering: whoever waits for it waits.
    pub fn stall(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::STOP).context("stop the disk's process")?;
        Ok(())
    }

    /// It answers again.
    pub fn go_on(&self) -> anyhow::Result<()> {
        self.server.signal(Signal::CONT).context("continue the disk's process")?;
        Ok(())
    }

    /// Takes the disk away. What is mounted from it is gone already, cut or cleanly stopped.
    pub fn off(&self, disk: &CutDisk) -> anyhow::Result<()> {
        detach(&disk.place)?;
        programs::run(Command::new("losetup").args(["-d", &self.device]), SHORT)?.success()?;
        wait_until("the loop device to be free", SHORT, || {
            let backing = backing_file(&self.device);
            if backing.is_none() { Ok(()) } else { Err(format!("it has {backing:?}")) }
        })?;
        detach(&disk.serve)?;
        self.server.end()
    }
}

fn backing_file(device: &str) -> Option<PathBuf> {
    let name = device.rsplit('/').next()?;
    let text = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(PathBuf::from(text.trim_end()))
}

/// Frees what a test that failed left behind: the mount, its loop device, the process.
pub fn clean_up_cut_disk(dir: &Path) -> anyhow::Result<()> {
    if let Ok(text) = fs::read_to_string(dir.join("cutdisk.pid")) {
        // A disk without power first: nothing that is stuck on it can then hold the rest up.
        let control = dir.join("serve/control");
        if mounts_below(&dir.join("serve")).is_empty() {
            return Ok(());
        }
        let _ = fs::write(control, "cut 0\n");
        detach(&dir.join("disk"))?;
        for number in 0..64 {
            let device = format!("/dev/loop{number}");
            if backing_file(&device).is_some_and(|file| file.starts_with(dir)) {
                let _ = programs::run(Command::new("losetup").args(["-d", &device]), SHORT)?;
            }
        }
        text.parse::<ProcessRef>()?.end()?;
    }
    Ok(())
}
