//! Is a fatal signal on its way to a task?
//!
//! The kernel tells us of a signal but not of which, and tells it once. A task that was hit by a fatal signal
//! waits for our answer all the same, uninterruptibly, so we look. Read from `/proc/TID/status`:
//!
//! - SIGKILL pending for the thread: fatal. A terminating signal without a handler (SIGTERM, SIGINT, SIGALRM …) is
//!   turned into a pending SIGKILL of every thread by the kernel when it is sent.
//! - A signal whose default is a core dump (SIGQUIT, SIGSEGV …) stays itself: fatal if pending for thread or
//!   process and neither blocked, ignored nor caught.
//! - No such task: nobody reads the answer.

use std::io;

/// What is known about a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It lives, and nothing pending will end it.
    Alive,
    /// It will end as soon as it is answered.
    Fatal,
    /// There is no such task any more.
    Gone,
    /// It cannot be seen from here (another pid namespace, `/proc` not mounted).
    Unknown,
}

impl Verdict {
    /// Whether nobody will use an answer.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Fatal | Self::Gone)
    }
}

/// What one look at a task gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// What is known of it.
    pub verdict: Verdict,
    /// The process (thread group) it belongs to.
    pub process: Option<u32>,
}

impl Look {
    /// Of a task that cannot be seen.
    pub fn unseen() -> Self {
        Self { verdict: Verdict::Unknown, process: None }
    }
}

/// Looks at task `tid`.
pub fn look(tid: u32) -> Look {
    if tid == 0 {
        return Look::unseen();
    }
    match std::fs::read(format!("/proc/{tid}/status")) {
        Ok(status) => Look { verdict: judge(&status), process: process_of(&status) },
        Err(error) if is_gone(&error) => Look { verdict: Verdict::Gone, process: None },
        Err(_) => Look::unseen(),
    }
}

/// Whether task `tid` is past its last signal: its exit waits for I/O that it started before.
pub fn is_exiting(tid: u32) -> bool {
    if tid == 0 {
        return false;
    }
    match std::fs::read(format!("/proc/{tid}/stat")) {
        Ok(stat) => exiting(&stat),
        Err(error) => is_gone(&error),
    }
}

/// Whether `/proc` shows the pid namespace that the kernel's requests use, which is ours.
pub fn proc_is_ours() -> bool {
    std::fs::read_link("/proc/self").is_ok_and(|link| link.to_str() == Some(&std::process::id().to_string()))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Judges the text of `/proc/TID/status`.
fn judge(status: &[u8]) -> Verdict {
    let mask = |field: &[u8]| mask_of(status, field);
    let (Some(thread), Some(process)) = (mask(b"SigPnd:"), mask(b"ShdPnd:")) else {
        return Verdict::Unknown;
    };
    let kill = bit(libc::SIGKILL);
    if (thread | process) & kill != 0 {
        return Verdict::Fatal;
    }
    let (Some(blocked), Some(ignored), Some(caught)) = (mask(b"SigBlk:"), mask(b"SigIgn:"), mask(b"SigCgt:"))
    else {
        return Verdict::Unknown;
    };
    let dumped = (thread | process) & core_dumping() & !(blocked | ignored | caught);
    if dumped != 0 { Verdict::Fatal } else { Verdict::Alive }
}

fn mask_of(status: &[u8], field: &[u8]) -> Option<u64> {
    u64::from_str_radix(value_of(status, field)?, 16).ok()
}

fn process_of(status: &[u8]) -> Option<u32> {
    value_of(status, b"Tgid:")?.parse().ok()
}

fn value_of<'a>(status: &'a [u8], field: &[u8]) -> Option<&'a str> {
    let line = status.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(field))?;
    std::str::from_utf8(line).ok().map(str::trim)
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals whose default action is a core dump (signal(7)).
fn core_dumping() -> u64 {
    [
        libc::SIGQUIT,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGFPE,
        libc::SIGBUS,
        libc::SIGSEGV,
        libc::SIGSYS,
        libc::SIGXCPU,
        libc::SIGXFSZ,
    ]
    .into_iter()
    .fold(0, |set, signal| set | bit(signal))
}

/// Bit of `PF_EXITING` in field 9 (`flags`) of `/proc/TID/stat`; the name in field 2 may hold anything.
fn exiting(stat: &[u8]) -> bool {
    const PF_EXITING: u64 = 4;
    let Some(name_end) = stat.iter().rposition(|b| *b == b')') else { return false };
    let after = std::str::from_utf8(&stat[name_end + 1..]).unwrap_or_default();
    after.split_whitespace().nth(6).and_then(|flags| flags.parse::<u64>().ok()).unwrap_or(0) & PF_EXITING != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(thread: u64, process: u64, blocked: u64, ignored: u64, caught: u64) -> Vec<u8> {
        format!(
            "Name:\tx SigPnd:\nState:\tD (disk sleep)\nSigQ:\t1/2\nSigPnd:\t{thread:016x}\nShdPnd:\t{process:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        )
        .into_bytes()
    }

    #[test]
    fn sigkill_pending_is_fatal_whatever_the_masks_say() {
        let kill = bit(libc::SIGKILL);
        assert_eq!(kill, 0x100);
        assert_eq!(judge(&status(kill, 0, !0, !0, !0)), Verdict::Fatal);
        assert_eq!(judge(&status(0, kill, 0, 0, 0)), Verdict::Fatal);
    }

    #[test]
    fn a_core_dumping_signal_is_fatal_unless_it_is_blocked_ignored_or_caught() {
        let quit = bit(libc::SIGQUIT);
        assert_eq!(judge(&status(0, quit, 0, 0, 0)), Verdict::Fatal);
        assert_eq!(judge(&status(0, quit, quit, 0, 0)), Verdict::Alive);
        assert_eq!(judge(&status(quit, 0, 0, quit, 0)), Verdict::Alive);
        assert_eq!(judge(&status(quit, 0, 0, 0, quit)), Verdict::Alive);
    }

    #[test]
    fn a_caught_alarm_and_no_signal_are_not_fatal() {
        let alarm = bit(libc::SIGALRM);
        assert_eq!(judge(&status(0, alarm, 0, 0, alarm)), Verdict::Alive);
        assert_eq!(judge(&status(0, 0, 0, 0, 0)), Verdict::Alive);
    }

    #[test]
    fn malformed_status_is_unknown() {
        assert_eq!(judge(b""), Verdict::Unknown);
        assert_eq!(judge(b"SigPnd:\tzz\nShdPnd:\t0\n"), Verdict::Unknown);
        assert_eq!(judge(b"\xff\xfe\n"), Verdict::Unknown);
    }

    #[test]
    fn this_task_lives_and_a_task_that_cannot_exist_is_gone() {
        assert!(proc_is_ours());
        let own = std::process::id();
        assert_eq!(look(own), Look { verdict: Verdict::Alive, process: Some(own) });
        assert!(!is_exiting(own));
        assert_eq!(look(u32::MAX - 1).verdict, Verdict::Gone);
        assert_eq!(look(0), Look::unseen());
    }

    #[test]
    fn exiting_is_read_behind_any_name() {
        assert!(exiting(b"1 (a ) b) D 1 1 1 0 -1 4194308 0"));
        assert!(!exiting(b"1 (4) D 1 1 1 0 -1 4194304 0"));
        assert!(!exiting(b"nonsense"));
    }
}
