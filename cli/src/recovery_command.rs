//! `zabfs recovery`: waiting until every placement group is whole again.

use crate::admin::Admin;
use crate::client_arguments::ClientArguments;
use crate::progress::Progress;
use crate::runtime;
use clap::{Args, Subcommand};
use fs_client::status_text::{bytes, duration};
use protocol::meta::ClusterStatus;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Recovery after servers came or went
#[derive(Debug, Subcommand)]
pub(crate) enum RecoveryCommand {
    /// Wait until every placement group is active and clean; exit code 1 if that took longer than --timeout
    Wait(WaitCommand),
}

/// Wait until every placement group is active and clean
#[derive(Debug, Args)]
pub(crate) struct WaitCommand {
    #[command(flatten)]
    client: ClientArguments,
    /// Seconds to wait at most [default: without end]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

impl RecoveryCommand {
    /// Runs it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Self::Wait(wait) = self;
        runtime::block_on_local(async {
            let admin = Admin::new(&wait.client)?;
            let deadline = wait.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
            let mut progress = Progress::new();
            loop {
                let status = admin.status().await?;
                if is_whole(&status) {
                    progress.end("every placement group is active and clean");
                    return Ok(ExitCode::SUCCESS);
                }
                progress.show(status.recovering, &left(&status));
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    progress.end(&format!("not whole within the timeout: {}", left(&status)));
                    return Ok(ExitCode::FAILURE);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        })
    }
}

/// Nothing is to be copied, and every group has all its replicas.
pub(crate) fn is_whole(status: &ClusterStatus) -> bool {
    let clean = |(state, _): &(String, u32)| state == "active+clean";
    status.leader.is_some()
        && status.recovering == 0
        && !status.groups.is_empty()
        && status.groups.iter().all(clean)
}

/// What is left, in one sentence.
pub(crate) fn left(status: &ClusterStatus) -> String {
    let unclean: u32 =
        status.groups.iter().filter(|(state, _)| state != "active+clean").map(|(_, n)| n).sum();
    let total: u32 = status.groups.iter().map(|(_, n)| n).sum();
    let mut text = format!("{unclean} of {total} groups are not clean");
    if status.recovering == 0 {
        return text;
    }
    let size = status.recovery.iter().map(|r| r.bytes).sum();
    let speed = status.recovery.iter().map(|r| r.bytes_per_second).sum();
    text += &format!(", {} objects ({}) to copy at {}/s", status.recovering, bytes(size), bytes(speed));
    // Servers copy at the same time: the slowest one ends last.
    if let Some(seconds) = status.recovery.iter().filter_map(|r| r.seconds_left).max() {
        text += &format!(", about {} left", duration(seconds));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::meta::{RecoveryStatus, Refusals, ScrubSummary, Space};
    use protocol::{DataServerId, MapEpoch, MetadataServerId, Revision};

    fn status(groups: &[(&str, u32)], recovery: Vec<RecoveryStatus>) -> ClusterStatus {
        ClusterStatus {
            cluster: "ab".into(),
            answered_by: MetadataServerId(1),
            metadata: vec![],
            leader: Some(MetadataServerId(1)),
            zab_epoch: 1,
            revision: Revision(1),
            map_epoch: MapEpoch(1),
            data: vec![],
            groups: groups.iter().map(|(state, n)| ((*state).to_owned(), *n)).collect(),
            recovering: recovery.iter().map(|r| r.objects).sum(),
            space: Space::default(),
            sessions: vec![],
            recovery,
            scrub: ScrubSummary::default(),
            pools: vec![],
            refusals: Refusals::default(),
            full_ratios: Default::default(),
            warnings: vec![],
        }
    }

    #[test]
    fn the_slowest_server_says_when_it_ends() {
        let copying = |id, seconds_left| RecoveryStatus {
            server: DataServerId(id),
            groups: 1,
            objects: 10,
            bytes: 1 << 20,
            objects_per_second: 1,
            bytes_per_second: 1 << 10,
            seconds_left,
        };
        let now = status(
            &[("active+clean", 30), ("active+recovering", 2)],
            vec![copying(1, Some(70)), copying(2, Some(5)), copying(3, None)],
        );
        assert!(!is_whole(&now));
        assert_eq!(
            left(&now),
            "2 of 32 groups are not clean, 30 objects (3.0 MiB) to copy at 3.0 KiB/s, about 1 min 10 s left"
        );
        assert!(is_whole(&status(&[("active+clean", 32)], vec![])));
        assert!(!is_whole(&status(&[], vec![])), "nothing was placed yet");
    }
}
