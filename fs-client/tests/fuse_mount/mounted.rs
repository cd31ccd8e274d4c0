//! A daemon in a process of its own, and the guard that takes it and its mount away in every outcome.

use crate::memory::Memory;
use fs_client::fuse::mount::{set_io_flusher, unmount};
use fs_client::fuse::mountinfo::top_at;
use fs_client::fuse::{Dispatcher, Ended, Mount, MountOptions, Unmount, Waiting};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

const MOUNTPOINT: &str = "ZABFS_FUSE_TEST_MOUNTPOINT";
const TIMEOUT_MS: &str = "ZABFS_FUSE_TEST_TIMEOUT_MS";

/// What the daemon's process does; the test binary starts itself with the environment that says so.
pub(crate) fn daemon_if_asked() {
    let Some(mountpoint) = std::env::var_os(MOUNTPOINT) else { return };
    let request_timeout =
        std::env::var(TIMEOUT_MS).ok().map(|ms| Duration::from_millis(ms.parse().expect("a number")));
    let source = "memory:/".to_owned();
    let options = MountOptions { source, request_timeout, ..MountOptions::default() };
    let mount = Mount::establish(Path::new(&mountpoint), &options).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(3)
    });
    // Root in a container may lack CAP_SYS_RESOURCE.
    if let Err(error) = set_io_flusher() {
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, async {
        let waiting = Waiting::default();
        let memory = Rc::new(Memory::new(waiting.clone(), mount.notifier().expect("a descriptor")));
        let dispatcher =
            Dispatcher::new(&mount, memory.clone(), waiting, request_timeout).expect("it starts");
        let ended = dispatcher.run().await.expect("the device works");
        assert!(memory.is_destroyed());
        ended
    });
    std::process::exit(if ended == Ended::Unmounted { 0 } else { 4 });
}

/// A mount that a daemon process serves. Dropping it kills the daemon and detaches everything.
pub(crate) struct Mounted {
    daemon: Child,
    directory: tempfile::TempDir,
    mountpoint: PathBuf,
}

impl Mounted {
    pub(crate) fn new() -> Self {
        Self::with(None)
    }

    pub(crate) fn with(timeout: Option<Duration>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mountpoint = directory.path().canonicalize().expect("it exists").join("mnt with blank");
        std::fs::create_dir(&mountpoint).expect("created");
        let daemon = start(&mountpoint, timeout);
        let mut mounted = Self { daemon, directory, mountpoint };
        mounted.wait_ready();
        mounted
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    pub(crate) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Kills the daemon and leaves the dead mount.
    pub(crate) fn kill(&mut self) {
        self.daemon.kill().expect("it is ours");
        self.daemon.wait().expect("it is ours");
    }

    /// A new daemon over what the old one left.
    pub(crate) fn restart(&mut self) {
        self.daemon = start(&self.mountpoint, None);
        self.wait_ready();
    }

    /// Exit code of a second daemon that tries to mount here too.
    pub(crate) fn second(&self) -> Option<i32> {
        let mut daemon = start(&self.mountpoint, None);
        let mut code = None;
        eventually("a second daemon gives up", Duration::from_secs(10), || {
            code = daemon.try_wait().expect("it is ours").and_then(|status| status.code());
            code.is_some()
        });
        code
    }

    /// How the daemon ends once its mount is gone.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let mut code = None;
        eventually("the daemon ends", Duration::from_secs(10), || {
            code = self.daemon.try_wait().expect("it is ours").and_then(|status| status.code());
            code.is_some()
        });
        code
    }

    /// Lines of `.waiting` about `operation`.
    pub(crate) fn waiting(&self, operation: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(".waiting")).expect("the daemon answers");
        text.lines().filter(|line| line.split(' ').next() == Some(operation)).map(str::to_owned).collect()
    }

    pub(crate) fn handles(&self) -> usize {
        let text = std::fs::read_to_string(self.path(".handles")).expect("the daemon answers");
        text.parse::<usize>().expect("a number") - 1
    }

    pub(crate) fn control(&self, command: &str) {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().write(true).open(self.path(".control"));
        file.expect("it exists").write_all(command.as_bytes()).expect("the daemon answers");
    }

    fn wait_ready(&mut self) {
        let mountpoint = self.mountpoint.clone();
        let daemon = &mut self.daemon;
        eventually("the daemon mounts", Duration::from_secs(20), || {
            if let Some(status) = daemon.try_wait().expect("it is ours") {
                panic!("the daemon ended before it served: {status}");
            }
            // A mount that does not answer yet queues this; a dead one below it errs.
            is_mounted(&mountpoint) && std::fs::metadata(mountpoint.join(".waiting")).is_ok()
        });
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Killing closes the device, which fails every request: nothing hangs after this.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for _ in 0..16 {
            if !is_mounted(&self.mountpoint) || unmount(&self.mountpoint, Unmount::Detach).is_err() {
                break;
            }
        }
        let _ = self.directory.path();
    }
}

pub(crate) fn is_mounted(mountpoint: &Path) -> bool {
    top_at(mountpoint).expect("mountinfo is readable").is_some()
}

/// Waits for a condition, never for a time.
#[track_caller]
pub(crate) fn eventually(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child that is killed with its guard.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Starts a program for which every signal does what it does by default: a shell that runs the tests in the
    /// background lets its children ignore SIGINT and SIGQUIT.
    pub(crate) fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("env");
        command.args(["--default-signal", program]).args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap_or_else(|error| panic!("{program} cannot be started: {error}")))
    }

    pub(crate) fn signal(&self, signal: i32) {
        #[allow(unsafe_code, reason = "kill(2) has no safe wrapper in our dependencies")]
        // SAFETY: takes plain integers; the child is not reaped, so the number is its own.
        let status = unsafe { libc::kill(self.0.id() as i32, signal) };
        assert_eq!(status, 0);
    }

    /// How long it takes to end.
    #[track_caller]
    pub(crate) fn ends_within(&mut self, within: Duration) -> Duration {
        let start = Instant::now();
        eventually("the process ends", within, || self.0.try_wait().expect("it is ours").is_some());
        start.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // Not waited for here: it may hang in the mount until the daemon is killed.
    }
}

fn start(mountpoint: &Path, timeout: Option<Duration>) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["daemon", "--exact", "--nocapture", "--test-threads=1"]).env(MOUNTPOINT, mountpoint);
    if let Some(timeout) = timeout {
        command.env(TIMEOUT_MS, timeout.as_millis().to_string());
    }
    // What the harness of the daemon's own "test" prints says nothing; panics go to stderr.
    command.stdout(Stdio::null());
    command.spawn().expect("this binary starts")
}
