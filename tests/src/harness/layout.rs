//! Where a cluster on this machine keeps what.

use std::fs;
use std::path::{Path, PathBuf};

/// Paths below a cluster's directory.
///
/// ```text
/// DIR/ca/                       the certificate authority       (zabfs init)
/// DIR/cluster.json              addresses and pool size         (zabfs init)
/// DIR/metadata-1/ DIR/data-1/   state and tls/ of one server
/// DIR/admin/tls/ DIR/client/tls/
/// DIR/log/ROLE-ID.log           output of each process
/// DIR/run/ROLE-ID.pid           "PID STARTED" of a server
/// DIR/run/settings.json         what servers are told at every start
/// DIR/run/mount-N.pid           "PID STARTED MOUNTPOINT" of a mount
/// ```
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout of `dir`, which need not exist.
    pub fn new(dir: &Path) -> Layout {
        Layout { dir: dir.to_owned() }
    }

    /// The cluster's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The list of servers.
    pub fn cluster_file(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    /// Directory of one server's state; `name` as in `metadata-1`.
    pub fn server(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Certificate directory of `name`, a server, `client`, `admin` or another client's name.
    pub fn identity(&self, name: &str) -> PathBuf {
        self.dir.join(name).join("tls")
    }

    /// Directory of the logs.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Log of one process.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Directory of the pid files.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// How the servers are started.
    pub fn settings_file(&self) -> PathBuf {
        self.run().join("settings.json")
    }

    /// Pid file of one process.
    pub fn pid_file(&self, name: &str) -> PathBuf {
        self.run().join(format!("{name}.pid"))
    }
}

/// The last `lines` lines of every log in `dir`, each under its file's name.
pub fn log_tails(dir: &Path, lines: usize) -> String {
    let Ok(entries) = fs::read_dir(dir) else {
        return format!("(no logs: {} cannot be read)\n", dir.display());
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    let mut out = String::new();
    for path in paths {
        let bytes = fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        out.push_str(&format!("--- {} (last of {} lines)\n", path.display(), all.len()));
        for line in &all[all.len().saturating_sub(lines)..] {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}
