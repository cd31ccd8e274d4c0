//! Running programs with a deadline.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Names the `zabfs` binary that tests and scripts run, instead of the release build of this tree.
const BINARY_VARIABLE: &str = "ZABFS_BIN";

/// How often a running program is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// The binary under test.
pub fn zabfs_binary() -> anyhow::Result<PathBuf> {
    let path = match std::env::var_os(BINARY_VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => target_directory().join("release").join("zabfs"),
    };
    if !path.is_file() {
        bail!(
            "{} is not there; build it with `cargo build --release --locked`, or name another in {BINARY_VARIABLE}",
            path.display()
        );
    }
    Ok(path)
}

/// The directory of this tree's build results; tests keep what they download and make there.
pub fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => PathBuf::from(path),
        None => workspace().join("target"),
    }
}

/// The root of this tree.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map_or_else(|| tests.to_owned(), Path::to_owned)
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
}

impl Output {
    /// Its standard output if it succeeded; else an error with the end of what it printed.
    pub fn success(self) -> anyhow::Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let how = match self.status.signal() {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("exited with {}", self.status.code().unwrap_or(-1)),
        };
        bail!("`{}` {how}: {}{}", self.command, tail(&self.stdout), tail(&self.stderr))
    }
}

/// A program in a process group of its own; the group is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdout: File,
    stderr: File,
    start: Instant,
    over: bool,
}

/// Starts a program with nothing on its stdin.
pub fn spawn(command: &mut Command) -> anyhow::Result<Running> {
    let text = describe(command);
    let stdout = tempfile::tempfile().context("make a file for a program's output")?;
    let stderr = tempfile::tempfile().context("make a file for a program's errors")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().context("duplicate a descriptor")?)
        .stderr(stderr.try_clone().context("duplicate a descriptor")?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start `{text}`"))?;
    Ok(Running { command: text, child, stdout, stderr, start: Instant::now(), over: false })
}

/// Runs a program to its end; past `limit` its whole process group is killed and that is the error.
pub fn run(command: &mut Command, limit: Duration) -> anyhow::Result<Output> {
    spawn(command)?.wait(limit)
}

/// Runs a bash script (with `set -euo pipefail`) in `dir`, and returns its standard output.
pub fn bash(dir: &Path, limit: Duration, script: &str) -> anyhow::Result<String> {
    run(&mut bash_command(dir, script), limit)?.success()
}

/// The command that [`bash`] runs. The shell itself enters `dir`: the process that starts it must not wait for a mount
/// that does not answer.
pub fn bash_command(dir: &Path, script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("set -euo pipefail\ncd -- \"$0\"\n{script}")]).arg(dir);
    command
}

impl Running {
    /// Its pid, which is also the number of its process group.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait().with_context(|| format!("look after `{}`", self.command))?.is_none())
    }

    /// Waits for its end; past `limit` the group is killed and that is the error.
    pub fn wait(mut self, limit: Duration) -> anyhow::Result<Output> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.child.try_wait().with_context(|| format!("look after `{}`", self.command))?;
            if let Some(status) = status {
                self.over = true;
                return Ok(Output {
                    command: self.command.clone(),
                    status,
                    stdout: contents(&self.stdout)?,
                    stderr: contents(&self.stderr)?,
                    elapsed: self.start.elapsed(),
                });
            }
            if Instant::now() >= deadline {
                let (stdout, stderr) = (contents(&self.stdout)?, contents(&self.stderr)?);
                bail!(
                    "`{}` did not end within {limit:?}; so far it printed {}{}",
                    self.command,
                    tail(&stdout),
                    tail(&stderr)
                );
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            kill_group(self.pid());
            // A task in an uninterruptible wait does not end: do not wait for it here.
            let _ = self.child.try_wait();
        }
    }
}

/// `SIGKILL` for a whole process group.
#[allow(unsafe_code, reason = "killpg(2) is not in std")]
pub fn kill_group(group: i32) {
    if group > 1 {
        // SAFETY: takes two numbers, touches no memory of ours.
        unsafe { libc::killpg(group, libc::SIGKILL) };
    }
}

fn contents(file: &File) -> anyhow::Result<String> {
    // Positioned reads: the program shares the descriptor's offset and may still be writing.
    let len = file.metadata().context("look at a program's output")?.len();
    let mut bytes = vec![0; usize::try_from(len).context("a program printed more than fits into memory")?];
    file.read_exact_at(&mut bytes, 0).context("read a program's output")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// The end of an output that may be long.
fn tail(text: &str) -> String {
    const KEEP: usize = 3000;
    if text.trim().is_empty() {
        return String::new();
    }
    let start = (text.len().saturating_sub(KEEP)..text.len()).find(|at| text.is_char_boundary(*at));
    format!("\n{}", text[start.unwrap_or(0)..].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_status_and_deadline_are_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(bash(dir.path(), Duration::from_secs(5), "echo hello").unwrap(), "hello\n");
        let error =
            bash(dir.path(), Duration::from_secs(5), "echo oops >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("exited with 3") && error.contains("oops"), "{error}");
        let error =
            bash(dir.path(), Duration::from_millis(50), "echo so far; sleep 60").unwrap_err().to_string();
        assert!(error.contains("did not end") && error.contains("so far"), "{error}");
    }
}
