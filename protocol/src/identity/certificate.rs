//! Reading a certificate, and the cryptography that identities and the transport share.

use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::uri::{Claim, SCHEME};
use super::{Fingerprint, IdentityError, PeerIdentity};

/// TLS 1.3 with the cheapest strong suite first: on machines of this class AES-128-GCM runs faster than the
/// memory copies around it.
pub(crate) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
});

impl PeerIdentity {
    /// Reads what a certificate (DER) says. Says nothing about who issued it: verify the chain first.
    ///
    /// # Errors
    /// It is no certificate, or holds no identity, several, or one that this version does not understand.
    pub fn from_certificate(der: &[u8]) -> Result<PeerIdentity, IdentityError> {
        let malformed =
            |why: String| IdentityError::Malformed { what: "the peer's certificate".to_owned(), why };
        let (rest, certificate) = X509Certificate::from_der(der)
            .map_err(|error| malformed(format!("it does not parse: {error}")))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes follow it", rest.len())));
        }
        let mut claims = certificate
            .extensions()
            .iter()
            .filter_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
                _ => None,
            })
            .flatten()
            .filter_map(|name| match name {
                GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
                _ => None,
            });
        let uri = claims.next().ok_or(IdentityError::NoIdentity)?;
        if claims.next().is_some() {
            return Err(malformed("it holds several identities".to_owned()));
        }
        let Claim { cluster, role, id, name, limits } = Claim::parse(uri)?;
        Ok(PeerIdentity { cluster, role, id, name, limits, fingerprint: Fingerprint(sha256(der)) })
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let suite =
        cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("the suite is of TLS 1.3, as its name says");
    let mut digest = [0; 32];
    digest.copy_from_slice(suite.common.hash_provider.hash(bytes).as_ref());
    digest
}

pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    PROVIDER.secure_random.fill(&mut bytes).map_err(|_| IdentityError::Malformed {
        what: "the system's random source".to_owned(),
        why: "it gave no bytes".to_owned(),
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sha256_is_sha256() {
        let digest = Fingerprint(sha256(b"abc")).to_string();
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    proptest! {
        #[test]
        fn damaged_certificates_never_panic(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
            garbage in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(super::super::authority::sample_certificate);
            let mut der = SAMPLE.clone();
            for (index, byte) in damage {
                let at = index.index(der.len());
                der[at] = byte;
            }
            let _ = PeerIdentity::from_certificate(&der);
            let _ = PeerIdentity::from_certificate(&der[..cut.index(der.len())]);
            let _ = PeerIdentity::from_certificate(&garbage);
        }
    }
}
