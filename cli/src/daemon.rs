//! A command that goes on in the background once it is ready.
//!
//! The command starts itself again as a child in a session of its own, and waits. The child says "ready" on its
//! standard output, or ends with a sentence on standard error; either way the parent ends then, with the child's
//! exit code if that ended. A new process rather than a fork: nothing of the parent's threads or locks is inherited.

use anyhow::Context as _;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Set in the environment of the child.
const CHILD: &str = "ZABFS_BACKGROUND_CHILD";
const READY: &[u8] = b"ready\n";

/// Which of the two this process is.
pub(crate) enum Process {
    /// The child is ready or ended: exit with this.
    Parent(ExitCode),
    /// Do the work.
    Child(Child),
}

/// The process in the background.
pub(crate) struct Child(());

/// Splits in two.
pub(crate) fn start() -> anyhow::Result<Process> {
    if std::env::var_os(CHILD).is_some() {
        detach();
        return Ok(Process::Child(Child(())));
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(CHILD, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the process in the background")?;
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        output
            .take(READY.len() as u64)
            .read_to_end(&mut said)
            .context("cannot hear from the process in the background")?;
    }
    if said == READY {
        return Ok(Process::Parent(ExitCode::SUCCESS));
    }
    let status = child.wait().context("cannot wait for the process in the background")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1);
    Ok(Process::Parent(ExitCode::from(code)))
}

impl Child {
    /// Lets the parent go. From now on standard error goes to `log`, or nowhere if that cannot be opened.
    pub(crate) fn ready(self, log: &Path) -> anyhow::Result<()> {
        let null = OpenOptions::new().write(true).open("/dev/null").context("cannot open /dev/null")?;
        let log = match OpenOptions::new().create(true).append(true).open(log) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!("cannot log to {}: {error}; what follows is not logged", log.display());
                null.try_clone().context("cannot duplicate /dev/null")?
            }
        };
        std::env::set_current_dir("/").context("cannot leave the working directory")?;
        redirect(&log, libc::STDERR_FILENO).context("cannot redirect standard error")?;
        let mut output = std::io::stdout();
        output.write_all(READY).and_then(|()| output.flush()).context("the parent is gone")?;
        redirect(&null, libc::STDOUT_FILENO).context("cannot redirect standard output")
    }
}

/// Leaves the terminal: its signals are not for this process.
fn detach() {
    #[allow(unsafe_code, reason = "setsid(2) has no safe wrapper in our dependencies")]
    // SAFETY: takes no arguments; fails harmlessly in a process that leads a group already.
    let _ = unsafe { libc::setsid() };
}

fn redirect(to: &File, descriptor: i32) -> std::io::Result<()> {
    #[allow(unsafe_code, reason = "dup2(2) has no safe wrapper in our dependencies")]
    // SAFETY: the source is open as long as `to` is borrowed; the target is one of the standard descriptors, which
    // no Rust object owns.
    let status = unsafe { libc::dup2(to.as_raw_fd(), descriptor) };
    if status < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
