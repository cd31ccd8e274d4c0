//! The state of the cluster as text: what `zabfs status` prints and `.zabfs/status` shows. Pure.

use protocol::meta::{ClusterStatus, PoolStatus, RecoveryStatus};
use std::fmt::Write;

/// Several lines, the last one ended.
pub fn render(status: &ClusterStatus) -> String {
    let mut text = String::new();
    let _ = render_into(&mut text, status);
    text
}

fn render_into(text: &mut String, status: &ClusterStatus) -> std::fmt::Result {
    writeln!(text, "cluster {}", status.cluster)?;
    writeln!(
        text,
        "revision {}, zab epoch {}, map epoch {}, answered by metadata server {}",
        status.revision, status.zab_epoch, status.map_epoch, status.answered_by
    )?;
    for warning in &status.warnings {
        writeln!(text, "warning: {warning}")?;
    }
    writeln!(text, "\nmetadata servers")?;
    if status.leader.is_none() {
        writeln!(text, "  no leader is known: changes wait until a majority of them is there")?;
    }
    for server in &status.metadata {
        let (epoch, counter) = server.zxid;
        writeln!(
            text,
            "  {:<3} {:<22} {:<11} zxid {epoch}.{counter}",
            server.id,
            server.address.to_string(),
            server.role
        )?;
    }
    writeln!(text, "\ndata servers")?;
    for server in &status.data {
        let state = match (server.up, server.in_cluster) {
            (true, true) => "up, in",
            (true, false) => "up, out",
            (false, true) => "down, in",
            (false, false) => "down, out",
        };
        write!(
            text,
            "  {:<3} {:<22} {state:<9} {} of {} used, {} groups ({} as primary)",
            server.id,
            server.address.to_string(),
            bytes(server.used),
            bytes(server.capacity),
            server.groups,
            server.primaries
        )?;
        match server.corrupt_blocks {
            0 => writeln!(text)?,
            corrupt => writeln!(text, ", {corrupt} corrupt blocks found")?,
        }
        if let Some(why) = &server.failure {
            writeln!(text, "      it stopped by itself: {why}")?;
        }
    }
    writeln!(text, "\npools")?;
    for pool in &status.pools {
        writeln!(text, "  {:<3} {}", pool.id, pool_text(pool))?;
    }
    writeln!(text, "\nplacement groups")?;
    for (state, count) in &status.groups {
        writeln!(text, "  {count:>5} {state}")?;
    }
    if status.recovering > 0 {
        writeln!(text, "  {} objects still to copy", status.recovering)?;
    }
    for copying in &status.recovery {
        writeln!(text, "  {}", copying_text(copying))?;
    }
    let scrub = status.scrub;
    if scrub.found > 0 || scrub.undecided > 0 {
        writeln!(
            text,
            "  scrubs found {} wrong copies and replaced {}; {} objects differ and nothing tells which copy is right",
            scrub.found, scrub.repaired, scrub.undecided
        )?;
    }
    let refused = status.refusals;
    if refused.is_noteworthy() {
        writeln!(
            text,
            "\nrefused by metadata server {} since it started (its log has the first of each peer)\n  {} connections, \
             {} more closed for what they sent, {} requests, {} messages of metadata servers",
            status.answered_by, refused.connections, refused.malformed, refused.requests, refused.foreign
        )?;
    }
    let space = status.space;
    writeln!(
        text,
        "\nspace\n  {} free of {}, {} inodes",
        bytes(space.free),
        bytes(space.total),
        space.inodes
    )?;
    writeln!(text, "\nclients")?;
    for session in &status.sessions {
        writeln!(
            text,
            "  session {} {} on {} pid {} at {}, expires in {:.1} s",
            session.session,
            session.certificate,
            session.info.host,
            session.info.pid,
            session.info.mountpoint,
            session.expires_in_ms as f64 / 1000.0
        )?;
    }
    Ok(())
}

/// A pool without its number, on one line.
pub fn pool_text(pool: &PoolStatus) -> String {
    let class = pool.class.as_ref().map_or(String::new(), |class| format!(" of class {class}"));
    let available = pool.available.map_or(String::new(), |left| format!(", {} available", bytes(left)));
    let groups: Vec<String> = pool.groups.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let split = pool.groups_to_come();
    let split = if split == 0 { String::new() } else { format!(", {split} more are being split off") };
    format!(
        "{:<16} {} replicas ({} to write) on different {}s{class}, {} in {} objects{available}, groups: {}{split}{}",
        pool.name,
        pool.size,
        pool.min_size,
        pool.failure_domain,
        bytes(pool.bytes),
        pool.objects,
        groups.join(", "),
        if pool.default { "; default" } else { "" }
    )
}

/// What one data server has to copy, on one line.
pub fn copying_text(copying: &RecoveryStatus) -> String {
    let RecoveryStatus { server, groups, objects, bytes: size, .. } = copying;
    let end = match copying.seconds_left {
        Some(seconds) => format!(
            "{}/s, {} objects/s, about {} left",
            bytes(copying.bytes_per_second),
            copying.objects_per_second,
            duration(seconds)
        ),
        None => "nothing moves".to_owned(),
    };
    format!("data server {server} copies {objects} objects ({}) of {groups} groups: {end}", bytes(*size))
}

/// A duration that a person reads.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// How long ago a time was; both in seconds since 1970, and 0 for never.
pub fn ago(now: u64, time: u64) -> String {
    if time == 0 { "never".to_owned() } else { format!("{} ago", duration(now.saturating_sub(time))) }
}

/// Bytes in a unit that a person reads.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::meta::{DataServerStatus, FullRatios, MetadataServerStatus, Refusals, ScrubSummary, Space};
    use protocol::{DataServerId, MapEpoch, MetadataServerId, PoolId, Revision};

    #[test]
    fn a_status_names_every_server_and_its_troubles() {
        let status = ClusterStatus {
            cluster: "abcd".to_owned(),
            answered_by: MetadataServerId(2),
            metadata: vec![MetadataServerStatus {
                id: MetadataServerId(2),
                address: ([127, 0, 0, 1], 7102).into(),
                role: "follower".to_owned(),
                zxid: (3, 17),
            }],
            leader: None,
            zab_epoch: 3,
            revision: Revision(99),
            map_epoch: MapEpoch(4),
            data: vec![DataServerStatus {
                id: DataServerId(1),
                address: ([127, 0, 0, 1], 7201).into(),
                up: false,
                in_cluster: true,
                class: None,
                capacity: 1 << 30,
                used: 3 << 20,
                groups: 32,
                primaries: 0,
                corrupt_blocks: 2,
                failure: None,
            }],
            groups: vec![("active+clean".to_owned(), 32)],
            recovering: 5,
            space: Space { total: 1 << 30, free: 1 << 29, inodes: 7 },
            sessions: vec![],
            recovery: vec![RecoveryStatus {
                server: DataServerId(1),
                groups: 2,
                objects: 5,
                bytes: 20 << 20,
                objects_per_second: 1,
                bytes_per_second: 5 << 20,
                seconds_left: Some(65),
            }],
            scrub: ScrubSummary { found: 4, repaired: 3, undecided: 1, ..ScrubSummary::default() },
            pools: vec![PoolStatus {
                id: PoolId(2),
                name: "fast".to_owned(),
                size: 2,
                min_size: 1,
                class: Some("ssd".to_owned()),
                groups: vec![("active+clean".to_owned(), 8)],
                objects: 3,
                bytes: 12 << 20,
                available: Some(5 << 20),
                ..PoolStatus::default()
            }],
            refusals: Refusals { connections: 12, requests: 3, stale: 7, ..Refusals::default() },
            full_ratios: FullRatios::default(),
            warnings: vec!["data server 1 is nearly full".to_owned()],
        };
        let text = render(&status);
        for part in [
            "\nwarning: data server 1 is nearly full\n",
            "no leader is known",
            "zxid 3.17",
            "127.0.0.1:7201",
            "down, in  3.0 MiB of 1.0 GiB used, 32 groups (0 as primary), 2 corrupt blocks found",
            "2   fast             2 replicas (1 to write) on different hosts of class ssd, 12.0 MiB in 3 objects, \
             5.0 MiB available, groups: 8 active+clean\n",
            "   32 active+clean",
            "5 objects still to copy",
            "scrubs found 4 wrong copies and replaced 3; 1 objects differ",
            "data server 1 copies 5 objects (20.0 MiB) of 2 groups: 5.0 MiB/s, 1 objects/s, about 1 min 5 s left",
            "512.0 MiB free of 1.0 GiB, 7 inodes",
            "refused by metadata server 2 since it started",
            "12 connections, 0 more closed for what they sent, 3 requests, 0 messages",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
