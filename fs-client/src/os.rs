//! What the operating system is asked for: clocks, randomness, names of processes.

use std::time::Duration;

/// Time since boot, suspended time included. Sessions go on while a machine sleeps, so their validity is counted
/// on this clock and on no other.
pub(crate) fn boottime() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[allow(unsafe_code, reason = "clock_gettime(2) has no safe wrapper in our dependencies")]
    // SAFETY: the pointer is to a live timespec.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    debug_assert_eq!(status, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Random bits that nobody can guess.
pub(crate) fn random_u128() -> u128 {
    let mut bytes = [0_u8; 16];
    #[allow(unsafe_code, reason = "getrandom(2) has no safe wrapper in our dependencies")]
    // SAFETY: the pointer and length are those of a live array; 16 bytes are never given piecewise.
    let given = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(given, 16, "the kernel gives up to 256 random bytes at once");
    u128::from_le_bytes(bytes)
}

/// This machine's name, for people.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}

/// Command name of a process or thread, for people; empty if it is gone.
pub(crate) fn command_of(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Process id of a thread; the thread's own if it cannot be seen.
pub(crate) fn process_of(thread: u32) -> u32 {
    status_field(thread, "Tgid:").and_then(|value| value.parse().ok()).unwrap_or(thread)
}

/// Whether the thread still runs: neither gone nor a zombie.
pub(crate) fn is_running(thread: u32) -> bool {
    status_field(thread, "State:").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// User and group that this process acts as.
pub(crate) fn own_ids() -> (u32, u32) {
    #[allow(unsafe_code, reason = "geteuid(2) and getegid(2) have no safe wrapper in our dependencies")]
    // SAFETY: neither takes arguments nor can fail.
    unsafe {
        (libc::geteuid(), libc::getegid())
    }
}

fn status_field(thread: u32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    Some(line[field.len()..].trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_and_a_missing_one_is_not() {
        let me = std::process::id();
        assert!(is_running(me));
        assert_eq!(process_of(me), me);
        assert!(!command_of(me).is_empty());
        assert!(!is_running(u32::MAX));
        assert!(boottime() > Duration::ZERO);
        assert_ne!(random_u128(), random_u128());
    }
}
