//! Settings of a data server.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::driver::ScrubIntervals;
use crate::store::StoreConfig;
use protocol::DataServerId;

/// Everything that a data server is told at its start.
#[derive(Clone, Debug)]
pub struct DataServerConfig {
    /// Its number, as in its certificate; also its CRUSH device id.
    pub id: DataServerId,
    /// Directory of the chunk store; exists.
    pub dir: PathBuf,
    /// Directory with its certificate, key and CA.
    pub identity: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Addresses of the metadata servers.
    pub metadata: Vec<SocketAddr>,
    /// Failure domain: replicas of a group go to different ones.
    pub host: String,
    /// Bytes that it may hold; `None` takes what the file system has free.
    pub capacity_bytes: Option<u64>,
    /// Silence in milliseconds after which the cluster takes this server for dead.
    pub session_timeout_ms: u32,
    /// File whose contents change when the machine starts anew. Unchanged contents mean that an unclean stop
    /// was the death of the process only, so that nothing written is lost.
    pub boot_id: PathBuf,
    /// Memory of the chunk store in bytes, see [`StoreConfig::with_memory`].
    pub store_memory_bytes: usize,
    /// How often the groups that it leads are scrubbed.
    pub scrub_every: ScrubIntervals,
}

impl DataServerConfig {
    /// Default of [`Self::session_timeout_ms`].
    pub const SESSION_TIMEOUT_MS_DEFAULT: u32 = 10_000;
    /// Default of [`Self::store_memory_bytes`].
    pub const STORE_MEMORY_BYTES_DEFAULT: usize = StoreConfig::MEMORY_BYTES_DEFAULT;
    /// Least [`Self::store_memory_bytes`]: below it a few large writes would wait for a checkpoint each.
    pub const STORE_MEMORY_BYTES_MIN: usize = 32 << 20;
    /// Default of [`Self::boot_id`].
    pub const BOOT_ID_DEFAULT: &'static str = "/proc/sys/kernel/random/boot_id";

    /// Refuses impossible combinations with a sentence.
    ///
    /// # Errors
    /// The sentence.
    pub fn validate(&self) -> Result<(), String> {
        if self.metadata.is_empty() {
            return Err("a data server needs the address of at least one metadata server".to_owned());
        }
        if !(1000..=60_000).contains(&self.session_timeout_ms) {
            return Err(format!(
                "a session timeout of {} ms is impossible: choose 1000 to 60000",
                self.session_timeout_ms
            ));
        }
        if self.store_memory_bytes < Self::STORE_MEMORY_BYTES_MIN {
            return Err(format!(
                "{} bytes of memory are too few for a store: give it at least {}",
                self.store_memory_bytes,
                Self::STORE_MEMORY_BYTES_MIN
            ));
        }
        if self.host.is_empty() || self.host.contains(char::is_whitespace) {
            return Err(format!("'{}' is no name of a failure domain: use a word", self.host));
        }
        if self.listen.ip().is_unspecified() {
            return Err(format!(
                "{} is no address that others can reach: listen on one of this machine's addresses",
                self.listen
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> DataServerConfig {
        DataServerConfig {
            id: DataServerId(1),
            dir: PathBuf::from("store"),
            identity: PathBuf::from("tls"),
            listen: ([127, 0, 0, 1], 7001).into(),
            metadata: vec![([127, 0, 0, 1], 7101).into()],
            host: "data-1".to_owned(),
            capacity_bytes: None,
            session_timeout_ms: DataServerConfig::SESSION_TIMEOUT_MS_DEFAULT,
            boot_id: DataServerConfig::BOOT_ID_DEFAULT.into(),
            store_memory_bytes: DataServerConfig::STORE_MEMORY_BYTES_DEFAULT,
            scrub_every: ScrubIntervals::default(),
        }
    }

    #[test]
    fn impossible_settings_are_refused_with_a_sentence() {
        assert_eq!(config().validate(), Ok(()));
        let refused = |change: fn(&mut DataServerConfig)| {
            let mut config = config();
            change(&mut config);
            config.validate().unwrap_err()
        };
        assert!(refused(|c| c.metadata.clear()).contains("at least one metadata server"));
        assert!(refused(|c| c.session_timeout_ms = 10).contains("1000 to 60000"));
        assert!(refused(|c| c.store_memory_bytes = 1000).contains("too few"));
        assert!(refused(|c| c.host = "a b".into()).contains("failure domain"));
        assert!(refused(|c| c.listen = ([0, 0, 0, 0], 1).into()).contains("can reach"));
    }
}
