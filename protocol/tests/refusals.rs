//! Who may connect to whom, and what a refused peer and the log are told.

#![allow(clippy::unwrap_used, reason = "what a test asserts it may unwrap")]

mod common;

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use common::{Cluster, Log, connect, run};
use protocol::identity::{Authority, ClusterId, Identity, Limits, Role, Roles};
use protocol::transport::{Endpoint, Expect, TransportConfig, TransportError};

fn text(result: Result<protocol::transport::Connection, TransportError>) -> String {
    result.expect_err("the connection must be refused").to_string()
}

#[test]
fn both_sides_know_who_the_other_is() {
    run(async {
        let pair = Cluster::new(1).pair(TransportConfig::default()).await;
        assert_eq!(pair.at_client.peer().to_string(), "data-1 (data 1)");
        assert_eq!(pair.at_server.peer().to_string(), "client-7 (client 7)");
        assert_eq!(pair.at_server.peer().cluster, ClusterId([1; 16]));
        assert_eq!(pair.at_client.remote_address(), pair.server.local_addr());
        assert_eq!(pair.server.stats().refused, 0);
    });
}

#[test]
fn a_foreign_clusters_certificate_is_refused_by_both_sides() {
    run(async {
        let log = Log::default();
        let _guard = log.capture();
        let (ours, theirs) = (Cluster::new(1), Cluster::new(2));
        let server = ours.endpoint(Role::Metadata, 1);
        // The foreign client refuses the server's certificate first.
        let foreign = theirs.endpoint(Role::Client, 1);
        let error = foreign.connect(server.local_addr(), Expect::role(Role::Metadata)).await;
        assert!(matches!(error, Err(TransportError::Refused { .. })), "{error:?}");
        assert!(text(error).contains("was not issued by this cluster's authority"));
        // A client that trusts our authority but has a foreign certificate gets past that.
        let mixed = mixed_identity(&ours, &Cluster::new(1));
        let mixed =
            Endpoint::bind("127.0.0.1:0".parse().unwrap(), mixed, TransportConfig::default()).unwrap();
        let error = mixed.connect(server.local_addr(), Expect::role(Role::Metadata)).await;
        assert!(matches!(error, Err(TransportError::RefusedByPeer { .. })), "{error:?}");
        assert!(text(error).contains("was not issued by this cluster's authority"));
        // And one whose certificate says another cluster refuses ours, whoever issued it.
        let mixed = mixed_identity(&ours, &theirs);
        let mixed =
            Endpoint::bind("127.0.0.1:0".parse().unwrap(), mixed, TransportConfig::default()).unwrap();
        let error = text(mixed.connect(server.local_addr(), Expect::role(Role::Metadata)).await);
        assert!(error.contains("its certificate is of cluster 0101"), "{error}");
        while server.stats().refused < 3 {
            tokio::task::yield_now().await;
        }
        let told = log.text();
        assert!(told.starts_with("Refused the connection from 127.0.0.1:"), "{told}");
        assert_eq!(told.lines().count(), 1, "one sentence per address and minute: {told}");
        // Nobody else is harmed.
        connect(&ours.endpoint(Role::Client, 1), &server, Expect::role(Role::Metadata)).await;
    });
}

/// Their certificate and key beside our authority's certificate.
fn mixed_identity(ours: &Cluster, theirs: &Cluster) -> Arc<Identity> {
    let (ours, theirs) = (ours.issue(Role::Client, 1), theirs.issue(Role::Client, 1));
    Arc::new(Identity::from_pem(&ours.ca_pem, &theirs.certificate_pem, &theirs.key_pem).unwrap())
}

#[test]
fn roles_and_numbers_are_checked_on_both_sides() {
    run(async {
        let log = Log::default();
        let _guard = log.capture();
        let cluster = Cluster::new(1);
        let config = TransportConfig { accept_roles: Roles::SERVERS, ..TransportConfig::default() };
        let server = cluster.endpoint_with(Role::Data, 2, config);
        let client = cluster.endpoint(Role::Client, 1);
        let peer = cluster.endpoint(Role::Data, 3);

        let error = text(client.connect(server.local_addr(), Expect::role(Role::Data)).await);
        assert!(error.contains("the role client and the role metadata or data is needed here"), "{error}");
        assert!(log.text().contains("the role client and the role metadata or data is needed here"));

        let error = text(peer.connect(server.local_addr(), Expect::role(Role::Metadata)).await);
        assert!(error.contains("the role data and the role metadata is needed here"), "{error}");
        let error = text(peer.connect(server.local_addr(), Expect::server(Role::Data, 5)).await);
        assert!(error.contains("it is data 2 and data 5 is expected at this address"), "{error}");
        connect(&peer, &server, Expect::server(Role::Data, 2)).await;
    });
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    run(async {
        let log = Log::default();
        let _guard = log.capture();
        let cluster = Cluster::new(1);
        let server = cluster.endpoint(Role::Metadata, 1);
        let mut anonymous = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        anonymous.set_default_client_config(trusting_client(b"zabfs/1"));
        let connection = anonymous.connect(server.local_addr(), "zabfs").unwrap().await.unwrap();
        let reason = connection.closed().await.to_string();
        assert!(reason.contains("peer sent no certificates"), "{reason}");
        while server.stats().refused < 1 {
            tokio::task::yield_now().await;
        }
        assert!(log.text().contains("it presented no certificate"), "{}", log.text());

        anonymous.set_default_client_config(trusting_client(b"http/1"));
        let refused = anonymous.connect(server.local_addr(), "zabfs").unwrap().await;
        assert!(refused.is_err());
        while server.stats().refused < 2 {
            tokio::task::yield_now().await;
        }
        connect(&cluster.endpoint(Role::Client, 1), &server, Expect::role(Role::Metadata)).await;
    });
}

#[test]
fn datagrams_of_garbage_harm_nobody() {
    run(async {
        let cluster = Cluster::new(1);
        let server = cluster.endpoint(Role::Metadata, 1);
        let client = cluster.endpoint(Role::Client, 1);
        let (before, _kept) = connect(&client, &server, Expect::role(Role::Metadata)).await;
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut noise = 0x1234_5678_9abc_def0_u64;
        for length in (0..1500).step_by(7) {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    noise =
                        noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (noise >> 33) as u8
                })
                .collect();
            socket.send_to(&bytes, server.local_addr()).unwrap();
            tokio::task::yield_now().await;
        }
        connect(&client, &server, Expect::role(Role::Metadata)).await;
        assert!(!before.is_closed());
    });
}

#[test]
fn a_client_accepts_nobody_and_an_unused_port_does_not_answer() {
    run(async {
        let cluster = Cluster::new(1);
        let config =
            TransportConfig { handshake_timeout: Duration::from_millis(200), ..TransportConfig::default() };
        let client = cluster.endpoint_with(Role::Client, 1, config);
        assert!(client.accept().await.is_none());
        let unused = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = client.connect(unused.local_addr().unwrap(), Expect::role(Role::Metadata)).await;
        assert!(matches!(error, Err(TransportError::Unanswered { .. })), "{error:?}");
    });
}

#[test]
fn limits_of_a_client_reach_the_server() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), ClusterId([3; 16])).unwrap();
        let hour = Duration::from_secs(3600);
        let load = |issued: protocol::identity::Issued| {
            Arc::new(Identity::from_pem(&issued.ca_pem, &issued.certificate_pem, &issued.key_pem).unwrap())
        };
        let limits = Limits { read_only: true, subtree: Some("/home/a b".to_owned()), root_squash: true };
        let server = load(authority.issue(Role::Metadata, "m", 1, &Limits::NONE, hour).unwrap());
        let client = load(authority.issue(Role::Client, "c", 1, &limits, hour).unwrap());
        let bind = |identity| {
            Endpoint::bind("127.0.0.1:0".parse().unwrap(), identity, TransportConfig::default()).unwrap()
        };
        let (server, client) = (bind(server), bind(client));
        let (_, accepted) = connect(&client, &server, Expect::role(Role::Metadata)).await;
        assert_eq!(accepted.peer().limits, limits);
    });
}

/// A client without a certificate that believes everybody.
fn trusting_client(alpn: &[u8]) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    quinn::ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap()))
}

#[derive(Debug)]
struct Trusting;

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &rustls::pki_types::CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &rustls::pki_types::CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
