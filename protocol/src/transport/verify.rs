//! Checking the other side's certificate during the handshake.
//!
//! The chain must end at the cluster's own authority and the identity in the certificate must be of this cluster
//! and of an expected role. Names are not compared: see [`crate::identity`]. Reasons are sentences; TLS carries them
//! to the refused peer too.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};

use super::TransportError;
use super::endpoint::Expect;
use crate::identity::{ClusterId, Identity, PROVIDER, PeerIdentity};

/// Clocks may differ by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Verifies servers that this process connects to, and clients that connect to it.
#[derive(Debug)]
pub(super) struct Verifier {
    cluster: ClusterId,
    expect: Expect,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Verifier {
    pub(super) fn new(identity: &Identity, expect: Expect) -> Result<Arc<Verifier>, TransportError> {
        let roots = identity.roots().clone();
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), PROVIDER.clone())
            .build()
            .map_err(|error| TransportError::Config(error.to_string()))?;
        Ok(Arc::new(Verifier { cluster: identity.me().cluster, expect, roots, clients }))
    }

    fn check_identity(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let peer = PeerIdentity::from_certificate(certificate).map_err(|error| refusal(error.to_string()))?;
        if peer.cluster != self.cluster {
            return Err(refusal(format!(
                "its certificate is of cluster {} and this cluster is {}",
                peer.cluster, self.cluster
            )));
        }
        if !self.expect.roles.contains(peer.role) {
            return Err(refusal(format!(
                "its certificate has the role {} and the role {} is needed here",
                peer.role, self.expect.roles
            )));
        }
        match self.expect.id {
            Some(id) if id != peer.id => Err(refusal(format!(
                "it is {} {} and {} {id} is expected at this address; check the configured addresses",
                peer.role, peer.id, peer.role
            ))),
            _ => Ok(()),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity).map_err(explain)?;
        with_tolerance(now, |now| {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                intermediates,
                now,
                PROVIDER.signature_verification_algorithms.all,
            )
        })
        .map_err(explain)?;
        self.check_identity(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes(&PROVIDER)
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        with_tolerance(now, |now| {
            self.clients.verify_client_cert(end_entity, intermediates, now).map(|_| ())
        })
        .map_err(explain)?;
        self.check_identity(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes(&PROVIDER)
    }
}

/// The sentence inside a TLS error's text, from either side.
pub(super) fn sentence(tls_error: &str) -> String {
    let text = tls_error.strip_prefix("other error: ").unwrap_or(tls_error);
    match text {
        "peer sent no certificates" => "it presented no certificate".to_owned(),
        "peer doesn't support any known protocol" => format!(
            "it does not speak {}; bring both sides to the same version of zabfs",
            String::from_utf8_lossy(super::ALPN)
        ),
        other => other.to_owned(),
    }
}

fn with_tolerance(now: UnixTime, verify: impl Fn(UnixTime) -> Result<(), Error>) -> Result<(), Error> {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let now = Duration::from_secs(now.as_secs());
    let result = verify(UnixTime::since_unix_epoch(now));
    match &result {
        Err(Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. })) => {
            verify(UnixTime::since_unix_epoch(now + CLOCK_SKEW))
        }
        Err(Error::InvalidCertificate(Expired | ExpiredContext { .. })) => {
            verify(UnixTime::since_unix_epoch(now.saturating_sub(CLOCK_SKEW)))
        }
        _ => result,
    }
}

fn explain(error: Error) -> Error {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    let Error::InvalidCertificate(reason) = &error else { return error };
    let why = match reason {
        UnknownIssuer | BadSignature => {
            "its certificate was not issued by this cluster's authority; issue one with `zabfs cert issue`"
                .to_owned()
        }
        Expired | ExpiredContext { .. } => {
            "its certificate has expired; issue a new one with `zabfs cert issue`".to_owned()
        }
        NotValidYet | NotValidYetContext { .. } => {
            "its certificate is not valid yet; compare the clocks of both machines".to_owned()
        }
        InvalidPurpose | InvalidPurposeContext { .. } => {
            "its certificate does not allow it to be on this side of a connection".to_owned()
        }
        other => format!("its certificate is not valid: {other}"),
    };
    refusal(why)
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
}

fn schemes(provider: &CryptoProvider) -> Vec<SignatureScheme> {
    provider.signature_verification_algorithms.supported_schemes()
}

fn refusal(why: String) -> Error {
    Error::Other(OtherError(Arc::new(Refusal(why))))
}

/// Carries a sentence through TLS.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid_between(from: u64, until: u64) -> impl Fn(UnixTime) -> Result<(), Error> {
        move |now| match now.as_secs() {
            now if now < from => Err(CertificateError::NotValidYet.into()),
            now if now > until => Err(CertificateError::Expired.into()),
            _ => Ok(()),
        }
    }

    #[test]
    fn clocks_may_differ_by_minutes_and_no_more() {
        let verify = valid_between(10_000, 20_000);
        let at = |now| with_tolerance(UnixTime::since_unix_epoch(Duration::from_secs(now)), &verify);
        assert!(at(9_700).is_ok() && at(15_000).is_ok() && at(20_300).is_ok());
        assert!(explain(at(9_699).unwrap_err()).to_string().contains("not valid yet; compare the clocks"));
        assert!(explain(at(20_301).unwrap_err()).to_string().contains("has expired; issue a new one"));
    }

    #[test]
    fn reasons_survive_tls() {
        assert_eq!(sentence(&refusal("it is foreign".to_owned()).to_string()), "it is foreign");
        assert_eq!(sentence(&Error::NoCertificatesPresented.to_string()), "it presented no certificate");
        assert!(sentence(&Error::NoApplicationProtocol.to_string()).contains("it does not speak zabfs/1"));
    }
}
