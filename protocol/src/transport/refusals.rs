//! Telling about refused peers without letting them fill the log.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One sentence per address in this time.
const QUIET: Duration = Duration::from_secs(60);

/// Addresses remembered; beyond it, refusals are counted and logged at debug level only.
const ADDRESSES_MAX: usize = 1024;

/// Refused peers: counted always, logged once per address and minute.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: AtomicU64,
    misbehaved: AtomicU64,
    told: Mutex<BTreeMap<IpAddr, Instant>>,
}

impl Refusals {
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Connections closed because the peer sent what makes no sense.
    pub(super) fn misbehaved(&self) -> u64 {
        self.misbehaved.load(Ordering::Relaxed)
    }

    pub(super) fn record_misbehaved(&self) {
        self.misbehaved.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn record(&self, peer: SocketAddr, why: &str) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if self.is_news(peer.ip(), Instant::now()) {
            tracing::warn!("Refused the connection from {peer}: {why}.");
        } else {
            tracing::debug!("Refused the connection from {peer}: {why}.");
        }
    }

    fn is_news(&self, address: IpAddr, now: Instant) -> bool {
        let mut told = self.told.lock().expect("nothing panics while the lock is held");
        if told.len() >= ADDRESSES_MAX {
            told.retain(|_, last| now.duration_since(*last) < QUIET);
        }
        if told.get(&address).is_some_and(|last| now.duration_since(*last) < QUIET) {
            return false;
        }
        let is_remembered = told.len() < ADDRESSES_MAX || told.contains_key(&address);
        if is_remembered {
            told.insert(address, now);
        }
        is_remembered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sentence_per_address_and_minute_and_bounded_memory() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let one = IpAddr::from([10, 0, 0, 1]);
        assert!(refusals.is_news(one, start));
        assert!(!refusals.is_news(one, start + QUIET / 2));
        assert!(refusals.is_news(one, start + QUIET));
        for index in 0..2 * ADDRESSES_MAX as u32 {
            refusals.is_news(IpAddr::from(index.to_be_bytes()), start + QUIET);
        }
        assert!(refusals.told.lock().unwrap().len() <= ADDRESSES_MAX);
        assert!(refusals.is_news(IpAddr::from([11, 0, 0, 1]), start + 3 * QUIET), "old ones make room");
    }
}
