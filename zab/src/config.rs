//! Timeouts and bounds of one peer.

use crate::PeerId;

/// A reading of a monotonic clock, in milliseconds. Only differences matter.
pub type Tick = u64;

/// Configuration of one peer. All times are in milliseconds; the timeouts must be the same on all peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This peer.
    pub id: PeerId,
    /// How often a leader sends a heartbeat, a joining follower repeats itself and a looking peer its vote.
    pub heartbeat_ms: u64,
    /// A follower that heard nothing from its leader for this long looks for another; a leader without acks of a
    /// quorum for this long steps down; nobody promises a new epoch earlier than this after it heard a leader.
    pub election_timeout_ms: u64,
    /// A vote that a quorum shares, but not everyone, becomes final after this long without a better one.
    pub election_finalize_ms: u64,
    /// A synchronization without any progress for this long is abandoned.
    pub sync_timeout_ms: u64,
    /// How much earlier than its followers' guard a leader's lease ends: covers the drift of clocks over one
    /// election timeout.
    pub lease_margin_ms: u64,
    /// An idle disk is probed this often.
    pub disk_probe_ms: u64,
    /// A disk that completes nothing of what was asked for this long is stalled; a leader on it steps down when
    /// its followers' disks could do without it.
    pub disk_stall_ms: u64,
    /// Uncommitted proposals, in entries; `propose` answers `Overloaded` beyond.
    pub inflight_entries_max: usize,
    /// Uncommitted proposals, in bytes, and the bytes on their way to one follower.
    pub inflight_bytes_max: u64,
    /// Bytes of entries in one message (at least one entry is sent, whatever its size).
    pub message_bytes_max: u64,
    /// One transaction.
    pub txn_bytes_max: usize,
    /// Log kept behind a checkpoint, so that a follower that was away shortly needs no snapshot.
    pub log_window_bytes: u64,
    /// The whole log (it is in memory too): beyond it `propose` answers `Overloaded` until the driver compacts,
    /// and followers in synchronization no longer hold compaction back.
    pub log_bytes_max: u64,
    /// Unanswered `read_index` requests.
    pub reads_max: usize,
    /// Whether `lease_valid` may ever be true.
    pub lease_reads: bool,
}

impl Config {
    /// The defaults for peer `id`.
    pub fn new(id: PeerId) -> Config {
        Config {
            id,
            heartbeat_ms: 50,
            election_timeout_ms: 400,
            election_finalize_ms: 20,
            sync_timeout_ms: 5_000,
            lease_margin_ms: 50,
            disk_probe_ms: 1_000,
            disk_stall_ms: 2_000,
            inflight_entries_max: 8_192,
            inflight_bytes_max: 32 << 20,
            message_bytes_max: 1 << 20,
            txn_bytes_max: 16 << 20,
            log_window_bytes: 64 << 20,
            log_bytes_max: 512 << 20,
            reads_max: 65_536,
            lease_reads: true,
        }
    }

    /// Refuses combinations that cannot work.
    ///
    /// # Errors
    /// A sentence that names the setting and what it must satisfy.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rules = [
            (self.heartbeat_ms > 0, "heartbeat_ms must be at least 1"),
            (
                self.election_timeout_ms >= self.heartbeat_ms.saturating_mul(3),
                "election_timeout_ms must be at least three times heartbeat_ms, or one lost heartbeat elects a leader",
            ),
            (
                self.election_finalize_ms < self.election_timeout_ms,
                "election_finalize_ms must be below election_timeout_ms, or no election ends",
            ),
            (
                self.sync_timeout_ms >= self.election_timeout_ms,
                "sync_timeout_ms must be at least election_timeout_ms",
            ),
            (
                self.lease_margin_ms < self.election_timeout_ms,
                "lease_margin_ms must be below election_timeout_ms, or no lease is ever valid",
            ),
            (self.disk_probe_ms > 0, "disk_probe_ms must be at least 1"),
            (
                self.disk_stall_ms >= self.disk_probe_ms,
                "disk_stall_ms must be at least disk_probe_ms, or an idle disk counts as stalled",
            ),
            (self.inflight_entries_max > 0, "inflight_entries_max must be at least 1"),
            (self.message_bytes_max > 0, "message_bytes_max must be at least 1"),
            (
                self.inflight_bytes_max >= self.message_bytes_max
                    && self.inflight_bytes_max >= self.txn_bytes_max as u64,
                "inflight_bytes_max must hold at least one message and one transaction",
            ),
            (
                self.log_bytes_max >= self.log_window_bytes.saturating_add(self.inflight_bytes_max),
                "log_bytes_max must be at least log_window_bytes + inflight_bytes_max",
            ),
            (self.reads_max > 0, "reads_max must be at least 1"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, sentence)) => Err(ConfigError(sentence)),
            None => Ok(()),
        }
    }
}

/// A configuration that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the configuration of the quorum is not usable: {0}")]
pub struct ConfigError(pub &'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Config::new(PeerId(1)).validate(), Ok(()));
    }

    #[test]
    fn impossible_combinations_are_named() {
        let config = Config { election_timeout_ms: 100, ..Config::new(PeerId(1)) };
        let error = config.validate().expect_err("two heartbeats per timeout");
        assert!(error.to_string().contains("election_timeout_ms"), "{error}");
        let config = Config { lease_margin_ms: 400, ..Config::new(PeerId(1)) };
        assert!(config.validate().is_err());
    }
}
