use zab::{Body, DataUuid};

use super::*;
use crate::quorum::tests::loopback::{DEADLINE, Loopback};

fn message(number: u64, bytes: usize) -> Message {
    let entry = zab::Entry::txn(Zxid::new(1, number), Bytes::from(vec![1; bytes]));
    let (prev, commit) = (Zxid::ZERO, Zxid::ZERO);
    // The field that a test looks at is the session.
    let body = Body::Leave { session: number, resigned: false };
    if bytes == 0 {
        return Message { uuid: DataUuid(7), body };
    }
    let body = Body::Entries { session: number, epoch: 1, seq: 0, prev, entries: vec![entry], commit };
    Message { uuid: DataUuid(7), body }
}

fn session(event: NetworkEvent) -> Option<u64> {
    match event {
        NetworkEvent::Message { message, .. } => match message.body {
            Body::Leave { session, .. } | Body::Entries { session, .. } => Some(session),
            other => panic!("{other:?}"),
        },
        _ => None,
    }
}

fn network(endpoint: &Endpoint, peers: &[(u32, &Endpoint)]) -> (Network, mpsc::Receiver<NetworkEvent>) {
    let peers = peers.iter().map(|(id, endpoint)| (PeerId(*id), vec![endpoint.local_addr().to_string()]));
    Network::start(endpoint.clone(), PeerId(endpoint.me().id), 1, &peers.collect())
}

/// Hands every channel that `endpoint` gets to `network`.
fn accept_all(endpoint: Endpoint, network: Network) {
    tokio::spawn(async move {
        while let Some(connection) = endpoint.accept().await {
            let network = network.clone();
            tokio::spawn(async move {
                while let Ok((_, channel)) = connection.accept_channel().await {
                    network.accept(channel);
                }
            });
        }
    });
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let reached = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(DEADLINE, reached).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

async fn next(events: &mut mpsc::Receiver<NetworkEvent>) -> NetworkEvent {
    timeout(DEADLINE, events.recv()).await.expect("an event comes").expect("the network lives")
}

#[tokio::test]
async fn messages_arrive_in_order_and_a_lost_peer_is_reported() {
    let loopback = Loopback::new();
    let one = loopback.endpoint(Role::Metadata, 1);
    let two = loopback.endpoint(Role::Metadata, 2);
    let (at_one, mut events_one) = network(&one, &[(2, &two)]);
    let (at_two, mut events_two) = network(&two, &[(1, &one)]);
    accept_all(one.clone(), at_one.clone());
    accept_all(two.clone(), at_two.clone());
    wait_until("the connection", || at_one.connected() == [PeerId(2)]).await;
    for number in 0..500 {
        at_one.send(PeerId(2), &message(number, if number % 100 == 0 { 200_000 } else { 0 }));
    }
    for number in 0..500 {
        assert_eq!(session(next(&mut events_two).await), Some(number));
    }
    two.close("it ends");
    let event = next(&mut events_one).await;
    assert!(matches!(event, NetworkEvent::Disconnected { peer: PeerId(2) }));
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_disconnected_and_memory_stays_bounded() {
    let loopback = Loopback::new();
    let one = loopback.endpoint(Role::Metadata, 1);
    let two = loopback.endpoint(Role::Metadata, 2);
    let (at_one, mut events) = network(&one, &[(2, &two)]);
    // Accepts the connection, reads no channel.
    let held = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Some(connection) = two.accept().await {
            connections.push(connection);
        }
    });
    wait_until("the connection", || at_one.connected() == [PeerId(2)]).await;
    let large = message(1, 1 << 20);
    // The transport takes what its windows hold; then the queue fills.
    let mut sent = 0;
    while at_one.connected() == [PeerId(2)] {
        at_one.send(PeerId(2), &large);
        sent += 1;
        assert!(sent < 1000, "the queue has a bound");
        assert!(at_one.queued_bytes() <= QUEUE_BYTES_MAX);
        tokio::task::yield_now().await;
    }
    let event = next(&mut events).await;
    assert!(matches!(event, NetworkEvent::Disconnected { peer: PeerId(2) }));
    held.abort();
}

#[tokio::test]
async fn only_other_metadata_servers_may_speak() {
    let loopback = Loopback::new();
    let one = loopback.endpoint(Role::Metadata, 1);
    let data = loopback.endpoint(Role::Data, 2);
    let (at_one, _events) = network(&one, &[]);
    accept_all(one.clone(), at_one);
    let connection =
        data.connect(one.local_addr(), Expect::server(Role::Metadata, 1)).await.expect("it connects");
    let channel = connection.open_channel(channel_kind::ZAB).await.expect("it opens");
    timeout(DEADLINE, connection.closed()).await.expect("it is closed");
    drop(channel);
}

#[tokio::test]
async fn what_is_no_message_closes_the_connection() {
    let loopback = Loopback::new();
    let one = loopback.endpoint(Role::Metadata, 1);
    let two = loopback.endpoint(Role::Metadata, 2);
    let (at_one, mut events) = network(&one, &[]);
    accept_all(one.clone(), at_one);
    let connection =
        two.connect(one.local_addr(), Expect::server(Role::Metadata, 1)).await.expect("it connects");
    let (mut sender, _answers) = connection.open_channel(channel_kind::ZAB).await.expect("it opens").split();
    sender.send(&Hello::Messages { incarnation: 1 }, Bytes::new()).await.expect("it is sent");
    sender.send(&(), Bytes::from_static(b"\xff\xff\xff nonsense")).await.expect("it is sent");
    timeout(DEADLINE, connection.closed()).await.expect("it is closed");
    let event = next(&mut events).await;
    assert!(matches!(event, NetworkEvent::Disconnected { peer: PeerId(2) }));
}

/// Who was removed, or is not added yet, knows the others' addresses; they do not know its own.
#[tokio::test]
async fn a_peer_without_a_link_is_answered_over_its_own() {
    let loopback = Loopback::new();
    let one = loopback.endpoint(Role::Metadata, 1);
    let two = loopback.endpoint(Role::Metadata, 2);
    let (at_one, mut events_one) = network(&one, &[]);
    let (at_two, mut events_two) = network(&two, &[(1, &one)]);
    accept_all(one.clone(), at_one.clone());
    wait_until("the connection", || at_two.connected() == [PeerId(1)]).await;
    at_two.send(PeerId(1), &message(5, 0));
    assert_eq!(session(next(&mut events_one).await), Some(5));
    at_one.send(PeerId(2), &message(6, 0));
    assert_eq!(session(next(&mut events_two).await), Some(6));
}

/// The membership's address first, then what was told at the start.
#[tokio::test]
async fn every_known_address_is_tried() {
    let loopback = Loopback::new();
    let one = loopback.endpoint(Role::Metadata, 1);
    let two = loopback.endpoint(Role::Metadata, 2);
    let nobody = loopback.endpoint(Role::Metadata, 3);
    let addresses = vec![nobody.local_addr().to_string(), two.local_addr().to_string()];
    let peers = BTreeMap::from([(PeerId(2), addresses)]);
    let (at_one, _events) = Network::start(one.clone(), PeerId(1), 1, &peers);
    let (at_two, _events_two) = network(&two, &[]);
    accept_all(two.clone(), at_two);
    wait_until("the connection", || at_one.connected() == [PeerId(2)]).await;
}
