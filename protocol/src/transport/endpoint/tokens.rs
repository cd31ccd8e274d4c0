//! Stateless resets that survive a restart.
//!
//! A server that restarted does not know the connections of its predecessor. It tells their peers so with a reset
//! token (RFC 9000, section 10.3), which must be the one that the predecessor announced: hence it is derived from the
//! process's private key instead of a random number. Peers then notice the restart with their next packet instead
//! of by silence.

use std::sync::Arc;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::crypto::tls13::OkmBlock;

use crate::identity::{Identity, PROVIDER};
use crate::transport::TransportError;

/// Bytes of a connection id: enough that no two connections of any process share one.
const ID_BYTES: usize = 8;

pub(super) fn endpoint_config(identity: &Identity) -> Result<EndpointConfig, TransportError> {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(*identity.reset_secret())));
    config
        .cid_generator(|| Box::new(RandomIds))
        .max_udp_payload_size(65_527)
        .map_err(|error| TransportError::Config(error.to_string()))?;
    Ok(config)
}

/// HMAC-SHA-256 under a secret derived from the private key.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("the suite is of TLS 1.3, as its name says");
        let tag = suite.hkdf_provider.hmac_sign(&OkmBlock::new(&self.0), data);
        signature_out.copy_from_slice(tag.as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut expected = [0; 32];
        self.sign(data, &mut expected);
        // Only a peer's own token is ever compared, and it is public: no need for constant time.
        if expected == signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Ids without structure. Any id is taken for valid, so that those of a predecessor are answered with a reset.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        PROVIDER.secure_random.fill(&mut id).expect("the kernel's random source does not fail once it works");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
