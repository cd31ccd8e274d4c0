//! The transport's configuration and what it means in quinn's terms.

use std::sync::Arc;
use std::time::Duration;

use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, VarInt};

use super::TransportError;
use crate::identity::Roles;

/// Above this MTU segmentation offload is off: the kernel's ten segments would exceed 64 KiB and be lost.
const SEGMENTATION_MTU_MAX: u16 = 6500;

/// QUIC's smallest datagram, where discovery starts.
const MTU_MIN: u16 = 1200;

/// IPv6 and UDP headers, the larger of the two families.
const HEADERS_BYTES: u16 = 48;

/// Packets that may wait for their acknowledgement to ride on a message; the next one is acknowledged at once.
const ACKNOWLEDGED_AT_ONCE: u32 = 8;

/// How long they may wait.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(2);

/// How an endpoint behaves. The defaults suit servers and clients alike.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// A peer that is silent for this long is lost, and every call to it fails.
    pub idle_timeout: Duration,
    /// How often an idle connection is kept alive; well below `idle_timeout`.
    pub keep_alive: Duration,
    /// How long opening a connection may take, both for the opening and the accepting side.
    pub handshake_timeout: Duration,
    /// Who may connect. Processes whose own role is client or admin accept nobody.
    pub accept_roles: Roles,
    /// How often the process that opened a connection asks the other machine's kernel whether the server's port
    /// is still open, so that a killed server is noticed long before `idle_timeout`. `None`: never.
    pub probe_interval: Option<Duration>,
    /// The largest datagram to try, bounded further by the link's MTU.
    pub mtu_max: u16,
    /// Size of the socket's buffers, each direction.
    pub socket_buffer_bytes: usize,
    /// Bytes in flight on one stream before its reader took them; a connection may have four times as many.
    pub stream_window_bytes: u32,
    /// Bytes that a connection may have sent without an acknowledgement. Half of the socket's buffer: measured on
    /// loopback, more overflows the receiver's buffer and costs half of the throughput. Divided by the round-trip
    /// time it is the ceiling of one connection: 2 GB/s at 1 ms; raise it for distant sites.
    pub send_window_bytes: u32,
    /// Channels that the peer may hold open on one connection.
    pub channels_max: u32,
    /// Handshakes in progress at once; further ones are refused.
    pub handshakes_max: usize,
}

impl Default for TransportConfig {
    fn default() -> Self {
        TransportConfig {
            idle_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_millis(750),
            handshake_timeout: Duration::from_secs(3),
            accept_roles: Roles::ALL,
            probe_interval: Some(Duration::from_millis(100)),
            mtu_max: 65_000,
            socket_buffer_bytes: 4 << 20,
            stream_window_bytes: 16 << 20,
            send_window_bytes: 2 << 20,
            channels_max: 256,
            handshakes_max: 256,
        }
    }
}

impl TransportConfig {
    /// Refuses combinations that cannot work.
    pub fn validate(&self) -> Result<(), TransportError> {
        let refuse = |why: &str| Err(TransportError::Config(why.to_owned()));
        if self.keep_alive.is_zero() || self.keep_alive * 2 > self.idle_timeout {
            return refuse("keep_alive must be positive and at most half of idle_timeout");
        }
        if self.handshake_timeout.is_zero() {
            return refuse("handshake_timeout must be positive");
        }
        if self.probe_interval.is_some_and(|interval| interval < Duration::from_millis(10)) {
            return refuse("probe_interval must be at least 10 ms");
        }
        if self.mtu_max < MTU_MIN {
            return refuse("mtu_max must be at least 1200, the smallest that QUIC allows");
        }
        if self.stream_window_bytes < 64 << 10 || self.send_window_bytes < 64 << 10 {
            return refuse("stream_window_bytes and send_window_bytes must be at least 64 KiB, one datagram");
        }
        if self.channels_max < 2 || self.handshakes_max == 0 {
            return refuse("channels_max must be at least 2 and handshakes_max at least 1");
        }
        Ok(())
    }

    /// quinn's settings for a connection over a link of this MTU (1500 if unknown).
    pub(super) fn for_link(
        &self,
        link_mtu: Option<u16>,
    ) -> Result<Arc<quinn::TransportConfig>, TransportError> {
        let upper = link_mtu.unwrap_or(1500).saturating_sub(HEADERS_BYTES).clamp(MTU_MIN, self.mtu_max);
        let mut discovery = MtuDiscoveryConfig::default();
        // Bursts that overflow a socket buffer look like a shrunken MTU, and cost a search its probes. Both are
        // put right soon; where the upper bound is reached already, a new search sends nothing.
        discovery
            .upper_bound(upper)
            .interval(Duration::from_secs(5))
            .black_hole_cooldown(Duration::from_millis(500));
        let mut cubic = quinn::congestion::CubicConfig::default();
        // A few jumbo datagrams: the default of 14 KiB holds not even one.
        cubic.initial_window(256 << 10);
        // An acknowledgement rides on the next message instead of waking the peer for itself, and still comes often
        // enough and soon enough for a window of few large datagrams.
        let mut acknowledgements = AckFrequencyConfig::default();
        acknowledgements
            .ack_eliciting_threshold(VarInt::from_u32(ACKNOWLEDGED_AT_ONCE))
            .max_ack_delay(Some(ACKNOWLEDGED_WITHIN));
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .map_err(|_| TransportError::Config("idle_timeout is too long for QUIC".to_owned()))?;
        let window = u64::from(self.stream_window_bytes);
        let connection_window = VarInt::from_u64(window * 4)
            .map_err(|_| TransportError::Config("stream_window_bytes is too large".to_owned()))?;
        let mut quic = quinn::TransportConfig::default();
        quic.max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(self.keep_alive))
            .initial_rtt(Duration::from_millis(50))
            .initial_mtu(MTU_MIN)
            .min_mtu(MTU_MIN)
            .mtu_discovery_config(Some(discovery))
            .enable_segmentation_offload(upper <= SEGMENTATION_MTU_MAX)
            .congestion_controller_factory(Arc::new(cubic))
            .ack_frequency_config(Some(acknowledgements))
            .stream_receive_window(VarInt::from_u32(self.stream_window_bytes))
            .receive_window(connection_window)
            .send_window(u64::from(self.send_window_bytes))
            .datagram_receive_buffer_size(None)
            .max_concurrent_bidi_streams(VarInt::from_u32(self.channels_max))
            .max_concurrent_uni_streams(VarInt::from_u32(1));
        Ok(Arc::new(quic))
    }
}
