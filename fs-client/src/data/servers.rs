//! Connections to data servers.

use protocol::DataServerId;
use protocol::channel_kind;
use protocol::data::{DataRequest, DataResponse};
use protocol::identity::Role;
use protocol::transport::rpc::RpcClient;
use protocol::transport::{Endpoint, Expect, TransportError};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Mutex;

/// Opening a connection is given up after this time, and begun anew by whoever still wants it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) type DataRpc = RpcClient<DataRequest, DataResponse>;

/// Which start of which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerKey {
    pub(super) id: DataServerId,
    pub(super) address: SocketAddr,
    pub(super) incarnation: u64,
}

/// One connection per server, opened when first needed.
pub(super) struct Servers {
    endpoint: Endpoint,
    slots: RefCell<BTreeMap<DataServerId, Rc<Slot>>>,
}

/// The lock makes callers share one handshake.
#[derive(Default)]
struct Slot(Mutex<Option<(ServerKey, DataRpc)>>);

impl Servers {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, slots: RefCell::default() }
    }

    /// The connection to a server; an older start's is closed.
    pub(super) async fn connect(&self, key: ServerKey) -> Result<DataRpc, TransportError> {
        let slot = self.slots.borrow_mut().entry(key.id).or_default().clone();
        let mut held = slot.0.lock().await;
        if let Some((known, rpc)) = held.as_ref() {
            if *known == key && !rpc.connection().is_closed() {
                return Ok(rpc.clone());
            }
            rpc.connection().close("the data server was started anew");
            *held = None;
        }
        let connecting = self.endpoint.connect(key.address, Expect::server(Role::Data, key.id.0));
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected?,
            Err(_) => {
                return Err(TransportError::Unanswered { address: key.address, waited: CONNECT_TIMEOUT });
            }
        };
        let rpc = DataRpc::new(&connection, channel_kind::DATA);
        *held = Some((key, rpc.clone()));
        Ok(rpc)
    }

    /// A call on this connection failed: the next caller opens another.
    pub(super) async fn discard(&self, key: ServerKey) {
        let slot = self.slots.borrow().get(&key.id).cloned();
        let Some(slot) = slot else { return };
        let mut held = slot.0.lock().await;
        if let Some((known, rpc)) = held.as_ref()
            && *known == key
            && rpc.connection().is_closed()
        {
            *held = None;
        }
    }
}
