//! Asks data servers to cut objects of truncated and deleted files, as the core says.

use crate::core::{Trim, TrimFailed};
use crate::node::Node;
use bytes::Bytes;
use protocol::data::{DataRequest, DataResponse};
use protocol::identity::Role;
use protocol::transport::rpc::RpcClient;
use protocol::transport::{Endpoint, Expect};
use protocol::{DataServerId, channel_kind};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// One request to a data server.
const TRIM_TIMEOUT: Duration = Duration::from_secs(10);
/// What may wait here: one of this leadership, and what earlier ones left behind.
pub(crate) const WAITING_MAX: usize = 8;

/// Carries out one after the other.
pub async fn run(node: Rc<RefCell<Node>>, endpoint: Endpoint, mut waiting: mpsc::Receiver<Trim>) {
    let mut servers = DataServers { endpoint, clients: BTreeMap::new() };
    while let Some(Trim { number, requests }) = waiting.recv().await {
        let result = servers.ask_all(requests).await;
        node.borrow_mut().trimmed(number, result);
    }
}

/// Connections to data servers, made when needed.
struct DataServers {
    endpoint: Endpoint,
    clients: BTreeMap<DataServerId, (SocketAddr, RpcClient<DataRequest, DataResponse>)>,
}

impl DataServers {
    async fn ask_all(
        &mut self,
        requests: Vec<(DataServerId, SocketAddr, DataRequest)>,
    ) -> Result<(), TrimFailed> {
        for (server, address, request) in requests {
            let answer = self.ask(server, address, &request).await;
            let answer = answer.map_err(|why| TrimFailed { silent: Some(server), why })?;
            answer.map_err(|error| TrimFailed { silent: None, why: error.to_string() })?;
        }
        Ok(())
    }

    async fn ask(
        &mut self,
        server: DataServerId,
        address: SocketAddr,
        request: &DataRequest,
    ) -> Result<DataResponse, String> {
        let asked = async {
            let client = self.client(server, address).await?;
            client.call(request, Bytes::new()).await.map_err(|e| e.to_string())
        };
        match tokio::time::timeout(TRIM_TIMEOUT, asked).await {
            Ok(answer) => answer.map(|(response, _)| response),
            Err(_) => Err(format!("data server {server} does not answer")),
        }
    }

    async fn client(
        &mut self,
        server: DataServerId,
        address: SocketAddr,
    ) -> Result<RpcClient<DataRequest, DataResponse>, String> {
        if let Some((known, client)) = self.clients.get(&server)
            && *known == address
            && !client.connection().is_closed()
        {
            return Ok(client.clone());
        }
        let expect = Expect::server(Role::Data, server.0);
        let connection = self.endpoint.connect(address, expect).await.map_err(|e| e.to_string())?;
        let client = RpcClient::new(&connection, channel_kind::DATA);
        self.clients.insert(server, (address, client.clone()));
        Ok(client)
    }
}
