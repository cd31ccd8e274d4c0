//! Processes by pid, told apart from later ones that got the same pid.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};

use super::wait::wait_until;

/// One process: its pid and when it started. Pids come round again; the pair does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessRef {
    pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    started: u64,
}

/// A signal by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(pub i32);

impl Signal {
    /// `SIGKILL`
    pub const KILL: Signal = Signal(libc::SIGKILL);
    /// `SIGTERM`: a clean stop.
    pub const TERM: Signal = Signal(libc::SIGTERM);
    /// `SIGSTOP`
    pub const STOP: Signal = Signal(libc::SIGSTOP);
    /// `SIGCONT`
    pub const CONT: Signal = Signal(libc::SIGCONT);
}

impl FromStr for Signal {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Signal> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        let number = match name {
            "KILL" => libc::SIGKILL,
            "TERM" => libc::SIGTERM,
            "STOP" => libc::SIGSTOP,
            "CONT" => libc::SIGCONT,
            "INT" => libc::SIGINT,
            "HUP" => libc::SIGHUP,
            "QUIT" => libc::SIGQUIT,
            "ABRT" => libc::SIGABRT,
            "USR1" => libc::SIGUSR1,
            "USR2" => libc::SIGUSR2,
            _ => match name.parse() {
                Ok(number) if (1..=64).contains(&number) => number,
                _ => bail!("'{text}' is no signal; write one as KILL, STOP, CONT, TERM or a number"),
            },
        };
        Ok(Signal(number))
    }
}

impl ProcessRef {
    /// The process that has this pid now, unless it has ended.
    pub fn of(pid: i32) -> Option<ProcessRef> {
        let (state, threads, started) = stat(pid)?;
        // A first thread that ended is a zombie until the others have: they still hold ports and files.
        let ended = state == 'X' || state == 'Z' && threads <= 1;
        (!ended).then_some(ProcessRef { pid, started })
    }

    /// Its pid.
    pub fn pid(self) -> i32 {
        self.pid
    }

    /// Whether it still runs (a stopped process does; a zombie does not).
    pub fn is_alive(self) -> bool {
        ProcessRef::of(self.pid) == Some(self)
    }

    /// Sends a signal. `false` if the process has ended.
    pub fn signal(self, signal: Signal) -> io::Result<bool> {
        if !self.is_alive() {
            return Ok(false);
        }
        match kill(self.pid, signal.0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until it has ended.
    pub fn wait_gone(self, limit: Duration) -> anyhow::Result<()> {
        wait_until(&format!("process {} to end", self.pid), limit, || {
            reap(self.pid);
            if self.is_alive() { Err("it runs still") } else { Ok(()) }
        })?;
        Ok(())
    }

    /// `SIGKILL`, and waits until it is gone.
    pub fn end(self) -> anyhow::Result<()> {
        self.signal(Signal::KILL).with_context(|| format!("kill process {}", self.pid))?;
        self.wait_gone(Duration::from_secs(10))
    }

    /// A clean stop: `SIGTERM`, and `SIGKILL` if that has not ended it within `grace`.
    pub fn stop(self, grace: Duration) -> anyhow::Result<()> {
        // A stopped process would never see the TERM.
        self.signal(Signal::CONT).with_context(|| format!("continue process {}", self.pid))?;
        self.signal(Signal::TERM).with_context(|| format!("terminate process {}", self.pid))?;
        if self.wait_gone(grace).is_err() {
            self.end()?;
        }
        Ok(())
    }
}

impl fmt::Display for ProcessRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for ProcessRef {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<ProcessRef> {
        let mut words = text.split_whitespace();
        let mut word = || words.next().context("a line PID STARTED is cut short");
        Ok(ProcessRef { pid: word()?.parse()?, started: word()?.parse()? })
    }
}

/// Starts a process in a group of its own, with its output appended to `log` and nothing on its stdin.
pub fn spawn_logged(command: &mut Command, log: &Path) -> anyhow::Result<ProcessRef> {
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open the log {}", log.display()))?;
    let errors = output.try_clone().context("duplicate the log's descriptor")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    let pid = i32::try_from(child.id()).context("a pid fits into 31 bits")?;
    match stat(pid) {
        Some((_, _, started)) => Ok(ProcessRef { pid, started }),
        None => bail!("the process that was just started is gone already; see {}", log.display()),
    }
}

/// State letter and start time of a process.
/// State of the first thread, number of threads, start time: fields 3, 20 and 22 of `/proc/PID/stat`.
fn stat(pid: i32) -> Option<(char, u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in brackets, may contain anything; what counts comes after the last bracket.
    let rest = text.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    Some((state, threads, started))
}

#[allow(unsafe_code, reason = "kill(2) has no safe wrapper in std for a process that is not our child")]
fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes two numbers, touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes the exit status of a child that ended, so that it does not stay a zombie; others are left alone.
#[allow(unsafe_code, reason = "waitpid(2) by pid has no safe wrapper once the Child was dropped")]
fn reap(pid: i32) {
    let mut status = 0;
    // SAFETY: `status` outlives the call; WNOHANG returns at once, also for a pid that is not our child.
    unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_and_ends_by_signal() {
        let dir = tempfile::tempdir().unwrap();
        let process = spawn_logged(Command::new("sleep").arg("60"), &dir.path().join("log")).unwrap();
        assert!(process.is_alive());
        let again: ProcessRef = process.to_string().parse().unwrap();
        assert_eq!(again, process);
        let impostor = ProcessRef { started: process.started + 1, ..process };
        assert!(!impostor.is_alive() && !impostor.signal(Signal::KILL).unwrap());
        process.stop(Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn signals_parse_as_the_shell_writes_them() {
        assert_eq!("KILL".parse::<Signal>().unwrap(), Signal::KILL);
        assert_eq!("SIGSTOP".parse::<Signal>().unwrap(), Signal::STOP);
        assert_eq!("9".parse::<Signal>().unwrap(), Signal::KILL);
        assert!("KIL".parse::<Signal>().is_err());
    }
}
