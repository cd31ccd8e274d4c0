//! What special files say. Pure.

use crate::fuse::waiting::InFlight;
use crate::status_text;
use protocol::Timestamp;
use protocol::meta::{ClusterStatus, LockEntry};
use std::fmt::Write;

/// `.zabfs/status`.
pub(super) fn status(reached: bool, status: Option<&ClusterStatus>) -> String {
    match (reached, status) {
        (true, Some(status)) => status_text::render(status),
        (_, Some(status)) => format!(
            "No metadata server answers; this is the last known state. Calls wait until servers return.\n{}",
            status_text::render(status)
        ),
        (_, None) => {
            "No metadata server answers, and no state of the cluster was ever seen by this mount. Calls wait until \
             servers return.\n"
                .to_owned()
        }
    }
}

/// `.zabfs/waiting`.
pub(super) fn waiting(requests: &[InFlight], writes: usize, groups: usize) -> String {
    let mut text = format!(
        "{} requests in flight, {writes} changes unacknowledged, {groups} placement groups not synced\n",
        requests.len()
    );
    for request in requests {
        let InFlight { operation, node, pid, age, abandoned } = request;
        let note = if *abandoned { " (its caller is gone)" } else { "" };
        let _ = writeln!(text, "{operation} inode {node} pid {pid} for {:.1} s{note}", age.as_secs_f64());
    }
    text
}

/// A lock opened for reading.
pub(super) fn lock(holders: &[LockEntry], waiters: &[LockEntry], now: Timestamp) -> String {
    let mut text = String::new();
    if holders.is_empty() {
        text.push_str("free\n");
    }
    for holder in holders {
        let _ = writeln!(text, "holder {} token {} age {}", who(holder), holder.token, age(holder, now));
    }
    for (index, waiter) in waiters.iter().enumerate() {
        let _ = writeln!(text, "waiter {} {} age {}", index + 1, who(waiter), age(waiter, now));
    }
    text
}

fn who(entry: &LockEntry) -> String {
    let name = |text: &str| if text.is_empty() { "?".to_owned() } else { text.to_owned() };
    format!(
        "host {} pid {} command {} session {}",
        name(&entry.holder.host),
        entry.request.pid,
        name(&entry.holder.command),
        entry.session
    )
}

fn age(entry: &LockEntry, now: Timestamp) -> String {
    let millis = |time: Timestamp| i128::from(time.seconds) * 1000 + i128::from(time.nanoseconds / 1_000_000);
    let age = (millis(now) - millis(entry.since)).max(0);
    format!("{}.{} s", age / 1000, age % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::SessionId;
    use protocol::meta::{LockHolderInfo, LockRequest};
    use std::time::Duration;

    fn entry(pid: u32, token: u64) -> LockEntry {
        LockEntry {
            session: SessionId(5),
            request: LockRequest { owner: 1, exclusive: true, start: 0, end: u64::MAX, pid },
            holder: LockHolderInfo { host: "alpha".to_owned(), command: "bash".to_owned() },
            token,
            waiter: 0,
            since: Timestamp { seconds: 100, nanoseconds: 0 },
        }
    }

    #[test]
    fn a_lock_shows_its_holder_and_its_queue_in_order() {
        let now = Timestamp { seconds: 102, nanoseconds: 340_000_000 };
        let text = lock(&[entry(7, 99)], &[entry(8, 1), entry(9, 2)], now);
        assert_eq!(
            text,
            "holder host alpha pid 7 command bash session 5 token 99 age 2.3 s\n\
             waiter 1 host alpha pid 8 command bash session 5 age 2.3 s\n\
             waiter 2 host alpha pid 9 command bash session 5 age 2.3 s\n"
        );
        assert_eq!(lock(&[], &[], now), "free\n");
    }

    #[test]
    fn without_servers_the_status_says_so() {
        assert!(status(false, None).starts_with("No metadata server answers"));
    }

    #[test]
    fn waiting_requests_are_listed() {
        let request = InFlight {
            operation: "READ",
            node: 5,
            pid: 77,
            age: Duration::from_millis(1500),
            abandoned: true,
        };
        let text = waiting(&[request], 2, 3);
        assert!(text.ends_with("READ inode 5 pid 77 for 1.5 s (its caller is gone)\n"), "{text}");
    }
}
