//! The process's UDP socket: opening and accepting connections.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::connection::{Connection, welcome};
use super::refusals::Refusals;
use super::socket::QuietRuntime;
use super::verify::{Verifier, sentence};
use super::{ALPN, TransportConfig, TransportError, close_code, link};
use crate::identity::{Identity, PROVIDER, PeerIdentity, Role, Roles};

mod tokens;

/// Accepted connections that wait for [`Endpoint::accept`]; further handshakes wait before they count as done.
const ACCEPTED_MAX: usize = 128;

/// Who must be at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    pub roles: Roles,
    /// The server's number, where the caller knows it.
    pub id: Option<u32>,
}

impl Expect {
    /// Any holder of this role.
    pub fn role(role: Role) -> Expect {
        Expect { roles: role.into(), id: None }
    }

    /// Exactly this server.
    pub fn server(role: Role, id: u32) -> Expect {
        Expect { roles: role.into(), id: Some(id) }
    }
}

/// Counters of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStats {
    /// Connections refused since the start: certificates, roles, versions, too many at once.
    pub refused: u64,
    /// Connections closed since the start because the peer sent what is malformed, too long, or of another cluster.
    pub misbehaved: u64,
    /// Connections open now, in both directions.
    pub open: usize,
}

/// One UDP socket, client and server at once. Cheap to clone; when the last clone is dropped the socket closes once
/// its connections are gone.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    quic: quinn::Endpoint,
    identity: Arc<Identity>,
    config: Arc<TransportConfig>,
    local: SocketAddr,
    accepted: Mutex<mpsc::Receiver<Connection>>,
    refusals: Arc<Refusals>,
    accepting: Option<AbortHandle>,
}

impl Endpoint {
    /// Binds `address` (port 0: any free one). Must be called within a tokio runtime, on which everything of this
    /// endpoint then runs. Servers accept connections from now on; clients and administrators accept none.
    ///
    /// # Errors
    /// The address is taken or foreign, or the configuration contradicts itself.
    pub fn bind(
        address: SocketAddr,
        identity: Arc<Identity>,
        config: TransportConfig,
    ) -> Result<Endpoint, TransportError> {
        config.validate()?;
        let failed = |error: std::io::Error| TransportError::Bind { address, why: error.to_string() };
        let socket = link::bind(address, config.socket_buffer_bytes)?;
        let local = socket.local_addr().map_err(failed)?;
        let serves = identity.me().role.is_server();
        let acceptor = Acceptor {
            identity: identity.clone(),
            config: Arc::new(config),
            refusals: Arc::new(Refusals::default()),
        };
        let server_config = if serves {
            Some(acceptor.server_config(local).map_err(|why| TransportError::Config(why.to_string()))?)
        } else {
            None
        };
        let quic = quinn::Endpoint::new(
            tokens::endpoint_config(&identity)?,
            server_config,
            socket,
            Arc::new(QuietRuntime),
        )
        .map_err(failed)?;
        let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
        let (config, refusals) = (acceptor.config.clone(), acceptor.refusals.clone());
        let accepting = serves.then(|| tokio::spawn(acceptor.run(quic.clone(), sender)).abort_handle());
        let accepted = Mutex::new(accepted);
        let inner = Inner { quic, identity, config, local, accepted, refusals, accepting };
        Ok(Endpoint { inner: Arc::new(inner) })
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// Who this process is.
    pub fn me(&self) -> &PeerIdentity {
        self.inner.identity.me()
    }

    pub fn stats(&self) -> EndpointStats {
        EndpointStats {
            refused: self.inner.refusals.count(),
            misbehaved: self.inner.refusals.misbehaved(),
            open: self.inner.quic.open_connections(),
        }
    }

    /// Opens a connection to the server at `address` and returns once both sides accepted each other.
    ///
    /// # Errors
    /// Nobody answers within the handshake timeout, or either side refuses the other; the error says why.
    pub async fn connect(&self, address: SocketAddr, expect: Expect) -> Result<Connection, TransportError> {
        let config = self.inner.client_config(address, expect)?;
        let waited = self.inner.config.handshake_timeout;
        match tokio::time::timeout(waited, self.inner.open(address, config)).await {
            Ok(result) => result,
            Err(_) => Err(TransportError::Unanswered { address, waited }),
        }
    }

    /// The next connection that somebody opened to this endpoint, its certificate already verified. `None` when the
    /// endpoint was closed, or accepts nobody because of its own role. Cancelling loses nothing.
    ///
    /// Refused connections do not show here: they are counted, and logged once per address and minute.
    pub async fn accept(&self) -> Option<Connection> {
        self.inner.accepted.lock().await.recv().await
    }

    /// Closes every connection, and stops accepting.
    pub fn close(&self, why: &str) {
        if let Some(accepting) = &self.inner.accepting {
            accepting.abort();
        }
        self.inner.quic.close(close_code::DONE.into(), why.as_bytes());
    }

    /// Waits until all closed connections have told their peers.
    pub async fn wait_idle(&self) {
        self.inner.quic.wait_idle().await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

impl Inner {
    async fn open(
        &self,
        address: SocketAddr,
        config: quinn::ClientConfig,
    ) -> Result<Connection, TransportError> {
        let connecting = self
            .quic
            .connect_with(config, address, "zabfs")
            .map_err(|error| TransportError::Connect { address, why: error.to_string() })?;
        let quic = connecting.await.map_err(|error| open_error(address, error, &self.config))?;
        let peer = verified_peer(&quic).map_err(|why| TransportError::Refused { address, why })?;
        welcome::receive(&quic, self.identity.me().cluster).await.map_err(|error| match error {
            welcome::Failure::Lost(lost) => open_error(address, lost, &self.config),
            welcome::Failure::Incompatible(why) => TransportError::Refused { address, why },
        })?;
        let refusals = self.refusals.clone();
        Ok(Connection::new(quic, peer, self.identity.me().cluster, self.config.probe_interval, refusals))
    }

    fn client_config(
        &self,
        address: SocketAddr,
        expect: Expect,
    ) -> Result<quinn::ClientConfig, TransportError> {
        let verifier = Verifier::new(&self.identity, expect)?;
        let mut tls = rustls::ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TransportError::Config(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(self.identity.certified().clone());
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection proves both certificates anew.
        tls.resumption = rustls::client::Resumption::disabled();
        let crypto =
            QuicClientConfig::try_from(tls).map_err(|error| TransportError::Config(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.config.for_link(link::route_mtu(address))?);
        Ok(config)
    }
}

/// The accepting side: turns handshakes into connections, many at a time.
#[derive(Clone)]
struct Acceptor {
    identity: Arc<Identity>,
    config: Arc<TransportConfig>,
    refusals: Arc<Refusals>,
}

impl Acceptor {
    async fn run(self, quic: quinn::Endpoint, accepted: mpsc::Sender<Connection>) {
        let handshakes = Arc::new(Semaphore::new(self.config.handshakes_max));
        while let Some(incoming) = quic.accept().await {
            let peer = incoming.remote_address();
            match handshakes.clone().try_acquire_owned() {
                Ok(permit) => {
                    tokio::spawn(self.clone().shake_hands(incoming, accepted.clone(), permit));
                }
                Err(_) => {
                    incoming.refuse();
                    self.refusals.record(peer, "too many handshakes are in progress; it may try again");
                }
            }
        }
    }

    async fn shake_hands(
        self,
        incoming: quinn::Incoming,
        accepted: mpsc::Sender<Connection>,
        _permit: OwnedSemaphorePermit,
    ) {
        let peer = incoming.remote_address();
        match tokio::time::timeout(self.config.handshake_timeout, self.verify(incoming)).await {
            // An error means that the endpoint was closed meanwhile, which closes the connection too.
            Ok(Ok(connection)) => drop(accepted.send(connection).await),
            Ok(Err(Unverified::Refused(why))) => self.refusals.record(peer, &why),
            Ok(Err(Unverified::GaveUp(why))) => tracing::debug!("{peer} began a handshake: {why}."),
            Err(_) => tracing::debug!("{peer} began a handshake and did not finish it in time."),
        }
    }

    async fn verify(&self, incoming: quinn::Incoming) -> Result<Connection, Unverified> {
        let config = self.server_config(incoming.remote_address()).map_err(|error| error.to_string())?;
        let connecting = incoming.accept_with(Arc::new(config)).map_err(|error| error.to_string())?;
        let quic = connecting.await.map_err(|error| Unverified::of(&error))?;
        let peer = verified_peer(&quic)?;
        let cluster = self.identity.me().cluster;
        welcome::send(&quic, cluster).await.map_err(|error| error.to_string())?;
        // The other end listens too if it is a server: only then does a closed port mean that it is gone.
        let probe_interval = self.config.probe_interval.filter(|_| peer.role.is_server());
        Ok(Connection::new(quic, peer, cluster, probe_interval, self.refusals.clone()))
    }

    fn server_config(&self, peer: SocketAddr) -> Result<quinn::ServerConfig, TransportError> {
        let verifier = Verifier::new(&self.identity, Expect { roles: self.config.accept_roles, id: None })?;
        let mut tls = rustls::ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TransportError::Config(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.identity.certified().clone());
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        let crypto =
            QuicServerConfig::try_from(tls).map_err(|error| TransportError::Config(error.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(self.config.for_link(link::route_mtu(peer))?)
            .max_incoming(self.config.handshakes_max);
        Ok(config)
    }
}

fn verified_peer(quic: &quinn::Connection) -> Result<PeerIdentity, String> {
    let certificates = quic
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok())
        .ok_or("it presented no certificate")?;
    let certificate = certificates.first().ok_or("it presented no certificate")?;
    PeerIdentity::from_certificate(certificate).map_err(|error| error.to_string())
}

/// Why a handshake came to nothing.
enum Unverified {
    /// The peer is not, or does not show, what it must be; or it refuses us.
    Refused(String),
    /// It went away in the middle: it died, or had found another server meanwhile.
    GaveUp(String),
}

impl From<String> for Unverified {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

impl Unverified {
    fn of(error: &quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::TransportError(error) => Self::Refused(sentence(&error.reason)),
            // What an application says before the end of the handshake arrives without its words (RFC 9000, 10.2.3).
            quinn::ConnectionError::ConnectionClosed(close) if close.reason.is_empty() => {
                Self::GaveUp("it closed the connection".to_owned())
            }
            quinn::ConnectionError::ConnectionClosed(close) => {
                let reason = sentence(&String::from_utf8_lossy(&close.reason));
                Self::Refused(format!("it refused this server: {reason}"))
            }
            quinn::ConnectionError::ApplicationClosed(close) => {
                Self::GaveUp(format!("it gave up: {}", String::from_utf8_lossy(&close.reason)))
            }
            quinn::ConnectionError::TimedOut => Self::GaveUp("it fell silent".to_owned()),
            other => Self::GaveUp(other.to_string()),
        }
    }
}

fn open_error(
    address: SocketAddr,
    error: quinn::ConnectionError,
    config: &TransportConfig,
) -> TransportError {
    match error {
        quinn::ConnectionError::TransportError(error) => {
            TransportError::Refused { address, why: sentence(&error.reason) }
        }
        quinn::ConnectionError::ConnectionClosed(close) => {
            let why = sentence(&String::from_utf8_lossy(&close.reason));
            let why = if why.is_empty() { close.error_code.to_string() } else { why };
            TransportError::RefusedByPeer { address, why }
        }
        quinn::ConnectionError::ApplicationClosed(close) => TransportError::RefusedByPeer {
            address,
            why: String::from_utf8_lossy(&close.reason).into_owned(),
        },
        quinn::ConnectionError::TimedOut => {
            TransportError::Unanswered { address, waited: config.idle_timeout }
        }
        other => TransportError::Connect { address, why: other.to_string() },
    }
}
