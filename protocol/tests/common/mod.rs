//! A cluster's certificates and endpoints on loopback.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "what a test asserts it may unwrap")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::identity::{Authority, ClusterId, Identity, Issued, Limits, Role};
use protocol::transport::{Connection, Endpoint, Expect, TransportConfig};

/// Nothing on loopback takes this long; a test that waits longer has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct Cluster {
    authority: Authority,
    _dir: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn new(id: u8) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), ClusterId([id; 16])).unwrap();
        Cluster { authority, _dir: dir }
    }

    pub(crate) fn issue(&self, role: Role, id: u32) -> Issued {
        self.authority.issue(role, &format!("{role}-{id}"), id, &Limits::NONE, HOUR).unwrap()
    }

    pub(crate) fn identity(&self, role: Role, id: u32) -> Arc<Identity> {
        let issued = self.issue(role, id);
        Arc::new(Identity::from_pem(&issued.ca_pem, &issued.certificate_pem, &issued.key_pem).unwrap())
    }

    pub(crate) fn endpoint(&self, role: Role, id: u32) -> Endpoint {
        self.endpoint_with(role, id, TransportConfig::default())
    }

    pub(crate) fn endpoint_with(&self, role: Role, id: u32, config: TransportConfig) -> Endpoint {
        Endpoint::bind("127.0.0.1:0".parse().unwrap(), self.identity(role, id), config).unwrap()
    }

    /// A data server and a client connected to it.
    pub(crate) async fn pair(&self, config: TransportConfig) -> Pair {
        let server = self.endpoint_with(Role::Data, 1, config.clone());
        let client = self.endpoint_with(Role::Client, 7, config);
        let (at_client, at_server) = connect(&client, &server, Expect::server(Role::Data, 1)).await;
        Pair { server, client, at_client, at_server }
    }
}

pub(crate) struct Pair {
    pub(crate) server: Endpoint,
    pub(crate) client: Endpoint,
    pub(crate) at_client: Connection,
    pub(crate) at_server: Connection,
}

pub(crate) async fn connect(from: &Endpoint, to: &Endpoint, expect: Expect) -> (Connection, Connection) {
    let (opened, accepted) = tokio::join!(from.connect(to.local_addr(), expect), to.accept());
    (opened.unwrap(), accepted.unwrap())
}

/// Runs a test body on one thread with local tasks, and fails instead of hanging.
pub(crate) fn run(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(DEADLINE, body).await.expect("the test hangs") });
}

/// Collects what is logged on this thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<String>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn capture(&self) -> tracing::subscriber::DefaultGuard {
        tracing::subscriber::set_default(self.clone())
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN && metadata.target().starts_with("protocol")
    }

    fn new_span(&self, _span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message<'a>(&'a mut String);
        impl tracing::field::Visit for Message<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0.push_str(&format!("{value:?}\n"));
                }
            }
        }
        event.record(&mut Message(&mut self.0.lock().unwrap()));
    }

    fn enter(&self, _span: &tracing::span::Id) {}

    fn exit(&self, _span: &tracing::span::Id) {}
}
