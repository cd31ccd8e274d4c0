//! Channels and calls between two endpoints, and how they end.

#![allow(clippy::unwrap_used, reason = "what a test asserts it may unwrap")]

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Cluster, DEADLINE, Log, Pair, connect, run};
use protocol::identity::Role;
use protocol::transport::rpc::{CALLS_MAX, Gate, RpcClient, RpcError, ServeLimits, serve_rpc};
use protocol::transport::{Connection, Expect, Lost, TransportConfig, TransportError};
use tokio::task::spawn_local;

const CALLS: u8 = 3;
const PUSHES: u8 = 4;

type EchoClient = RpcClient<String, String>;

/// Answers each request with itself; "sleep" never, "large" with 1 MiB.
fn serve_echo(connection: Connection, limits: ServeLimits) {
    spawn_local(async move {
        while let Ok((kind, channel)) = connection.accept_channel().await {
            assert_eq!(kind, CALLS);
            spawn_local(serve_rpc(
                channel,
                limits.clone(),
                |_peer, request: String, payload: Bytes| async move {
                    match request.as_str() {
                        "sleep" => std::future::pending().await,
                        "large" => (request, Bytes::from(vec![7; 1 << 20])),
                        _ => (request, payload),
                    }
                },
            ));
        }
    });
}

async fn echo_pair(config: TransportConfig) -> (Pair, EchoClient) {
    let pair = Cluster::new(1).pair(config).await;
    serve_echo(pair.at_server.clone(), ServeLimits::default());
    let client = EchoClient::new(&pair.at_client, CALLS);
    (pair, client)
}

#[test]
fn calls_are_answered_with_small_and_large_payloads_in_both_directions() {
    run(async {
        let (_pair, client) = echo_pair(TransportConfig::default()).await;
        for length in [0, 1, 2047, 2049, 65_536, 65_537, 1 << 20, 8 << 20] {
            let length = length.min((8 << 20) - 64);
            let payload: Bytes = (0..length).map(|index| ((index * 31) >> 3) as u8).collect();
            let (reply, echoed) = client.call(&format!("n{length}"), payload.clone()).await.unwrap();
            assert_eq!(reply, format!("n{length}"));
            assert!(echoed == payload, "payload of {length} bytes came back changed");
        }
        let too_large = client.call(&String::new(), Bytes::from(vec![0; 8 << 20])).await;
        assert!(matches!(too_large, Err(RpcError::Unsendable(_))));
        assert_eq!(client.in_flight(), 0);
    });
}

#[test]
fn a_gate_bounds_the_requests_of_all_channels_together() {
    run(async {
        let pair = Cluster::new(1).pair(TransportConfig::default()).await;
        let (running, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let limits = ServeLimits { gate: Some(Gate::new(3)), ..ServeLimits::default() };
        let (server, now, peak) = (pair.at_server.clone(), running.clone(), most.clone());
        spawn_local(async move {
            while let Ok((_, channel)) = server.accept_channel().await {
                let (now, peak) = (now.clone(), peak.clone());
                spawn_local(serve_rpc(channel, limits.clone(), move |_peer, request: String, payload| {
                    let (now, peak) = (now.clone(), peak.clone());
                    async move {
                        now.set(now.get() + 1);
                        peak.set(now.get().max(peak.get()));
                        tokio::task::yield_now().await;
                        now.set(now.get() - 1);
                        (request, payload)
                    }
                }));
            }
        });
        let clients = [(); 4].map(|()| EchoClient::new(&pair.at_client, CALLS));
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..200 {
            let client = clients[number % clients.len()].clone();
            calls.spawn_local(async move { client.call(&number.to_string(), Bytes::new()).await.unwrap() });
        }
        while let Some(answered) = calls.join_next().await {
            answered.unwrap();
        }
        assert_eq!((running.get(), most.get()), (0, 3));
    });
}

#[test]
fn thousands_of_calls_share_the_connection_and_the_bound_holds() {
    run(async {
        let (_pair, client) = echo_pair(TransportConfig::default()).await;
        let done = Rc::new(Cell::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..2 * CALLS_MAX {
            let (client, done) = (client.clone(), done.clone());
            tasks.spawn_local(async move {
                let payload = Bytes::from(vec![number as u8; if number % 64 == 0 { 100_000 } else { 10 }]);
                let (reply, echoed) = client.call(&number.to_string(), payload.clone()).await.unwrap();
                assert_eq!(reply, number.to_string());
                assert!(echoed == payload);
                assert!(client.in_flight() <= CALLS_MAX);
                done.set(done.get() + 1);
            });
        }
        while let Some(result) = tasks.join_next().await {
            result.unwrap();
        }
        assert_eq!(done.get(), 2 * CALLS_MAX);
    });
}

#[test]
fn a_server_serves_a_bounded_number_at_once() {
    run(async {
        let pair = Cluster::new(1).pair(TransportConfig::default()).await;
        let (now, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (server, counters) = (pair.at_server.clone(), (now.clone(), most.clone()));
        spawn_local(async move {
            let (_, channel) = server.accept_channel().await.unwrap();
            let limits = ServeLimits { requests_max: 16, ..ServeLimits::default() };
            serve_rpc(channel, limits, move |_peer, request: String, _payload| {
                let (now, most) = counters.clone();
                async move {
                    now.set(now.get() + 1);
                    most.set(most.get().max(now.get()));
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    now.set(now.get() - 1);
                    (request, Bytes::new())
                }
            })
            .await
        });
        let client = EchoClient::new(&pair.at_client, CALLS);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..200 {
            let client = client.clone();
            tasks.spawn_local(async move { client.call(&number.to_string(), Bytes::new()).await.unwrap() });
        }
        while let Some(result) = tasks.join_next().await {
            result.unwrap();
        }
        assert!((8..=16).contains(&most.get()), "{} at once", most.get());
    });
}

#[test]
fn a_dropped_call_discards_its_reply_and_disturbs_no_other() {
    run(async {
        let (_pair, client) = echo_pair(TransportConfig::default()).await;
        for _ in 0..20 {
            let request = "large".to_owned();
            let call = client.call(&request, Bytes::new());
            let _ = tokio::time::timeout(Duration::from_micros(50), call).await;
            assert_eq!(client.call(&"x".to_owned(), Bytes::new()).await.unwrap().0, "x");
        }
        wait_until(|| client.in_flight() == 0).await;
    });
}

#[test]
fn a_lost_connection_wakes_every_caller() {
    run(async {
        let (pair, client) = echo_pair(TransportConfig::default()).await;
        let mut callers = tokio::task::JoinSet::new();
        // More than the bound, so that some wait for their turn.
        for _ in 0..CALLS_MAX + 10 {
            let client = client.clone();
            callers.spawn_local(async move { client.call(&"sleep".to_owned(), Bytes::new()).await });
        }
        wait_until(|| client.in_flight() == CALLS_MAX).await;
        pair.at_server.close("the server goes down for maintenance");
        while let Some(result) = callers.join_next().await {
            let Err(RpcError::Disconnected(Lost::ClosedByPeer { why })) = result.unwrap() else {
                panic!("the caller was not told");
            };
            assert_eq!(why, "the server goes down for maintenance");
        }
        let later = client.call(&"x".to_owned(), Bytes::new()).await;
        assert!(matches!(later, Err(RpcError::Disconnected(_))));
        assert!(pair.at_client.is_closed());
    });
}

#[test]
fn a_silent_peer_is_lost_within_the_idle_timeout() {
    run(async {
        let cluster = Cluster::new(1);
        let config = TransportConfig {
            idle_timeout: Duration::from_millis(600),
            keep_alive: Duration::from_millis(150),
            ..TransportConfig::default()
        };
        // The server lives on a thread of its own, which falls silent but keeps its port.
        let (address, addresses) = std::sync::mpsc::channel();
        let (silence, silenced) = std::sync::mpsc::channel::<()>();
        let (identity, server_config) = (cluster.identity(Role::Data, 1), config.clone());
        let server = std::thread::spawn(move || {
            run(async {
                let any = "127.0.0.1:0".parse().unwrap();
                let server = protocol::transport::Endpoint::bind(any, identity, server_config).unwrap();
                address.send(server.local_addr()).unwrap();
                let connection = server.accept().await.unwrap();
                let (_, channel) = connection.accept_channel().await.unwrap();
                let _ =
                    serve_rpc(channel, ServeLimits::default(), |_peer, request: String, _payload| async {
                        if request == "sleep" {
                            std::future::pending::<()>().await
                        }
                        (request, Bytes::new())
                    })
                    .race(async {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        silenced.recv().unwrap();
                    })
                    .await;
            });
        });
        let client = cluster.endpoint_with(Role::Client, 1, config);
        let connection =
            client.connect(addresses.recv().unwrap(), Expect::server(Role::Data, 1)).await.unwrap();
        let calls = EchoClient::new(&connection, CALLS);
        assert_eq!(calls.call(&"x".to_owned(), Bytes::new()).await.unwrap().0, "x");
        let start = Instant::now();
        let error = calls.call(&"sleep".to_owned(), Bytes::new()).await;
        assert!(matches!(error, Err(RpcError::Disconnected(Lost::Silent))), "{error:?}");
        assert!(start.elapsed() < DEADLINE / 3, "it took {:?}", start.elapsed());
        silence.send(()).unwrap();
        server.join().unwrap();
    });
}

/// The first of two futures to finish ends both.
trait Race: Future + Sized {
    async fn race(self, other: impl Future) {
        tokio::select! {
            _ = self => {}
            _ = other => {}
        }
    }
}

impl<F: Future> Race for F {}

#[test]
fn a_server_whose_port_closed_is_noticed_long_before_the_idle_timeout() {
    run(async {
        let cluster = Cluster::new(1);
        let client = cluster.endpoint(Role::Client, 1);
        let (address, addresses) = std::sync::mpsc::channel();
        let identity = cluster.identity(Role::Data, 1);
        // The runtime is dropped without a word to anybody, as if the process had been killed.
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let kept = runtime.block_on(async {
                let any = "127.0.0.1:0".parse().unwrap();
                let server =
                    protocol::transport::Endpoint::bind(any, identity, TransportConfig::default()).unwrap();
                address.send(server.local_addr()).unwrap();
                let connection = server.accept().await.unwrap();
                let _ = connection.accept_channel().await;
                (server, connection)
            });
            drop(runtime);
            drop(kept);
        });
        let connection =
            client.connect(addresses.recv().unwrap(), Expect::server(Role::Data, 1)).await.unwrap();
        let _channel = connection.open_channel(PUSHES).await.unwrap();
        let start = Instant::now();
        tokio::task::spawn_blocking(|| server.join().unwrap()).await.unwrap();
        let lost = connection.closed().await;
        assert!(matches!(&lost, Lost::ClosedHere { why } if why.contains("process is gone")), "{lost:?}");
        assert!(start.elapsed() < Duration::from_millis(2500), "it took {:?}", start.elapsed());
    });
}

#[test]
fn a_restarted_server_tells_its_old_peers() {
    run(async {
        let cluster = Cluster::new(1);
        let config = TransportConfig { probe_interval: None, ..TransportConfig::default() };
        let client = cluster.endpoint_with(Role::Client, 1, config.clone());
        let identity = cluster.identity(Role::Data, 1);
        let (first_identity, first_config) = (identity.clone(), config.clone());
        let (address, addresses) = std::sync::mpsc::channel();
        let first = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let kept = runtime.block_on(async {
                let any = "127.0.0.1:0".parse().unwrap();
                let server = protocol::transport::Endpoint::bind(any, first_identity, first_config).unwrap();
                address.send(server.local_addr()).unwrap();
                let connection = server.accept().await.unwrap();
                let _ = connection.accept_channel().await;
                (server, connection)
            });
            drop(runtime);
            drop(kept);
        });
        let at = addresses.recv().unwrap();
        let connection = client.connect(at, Expect::server(Role::Data, 1)).await.unwrap();
        let (mut sender, _receiver) = connection.open_channel(PUSHES).await.unwrap().split();
        tokio::task::spawn_blocking(|| first.join().unwrap()).await.unwrap();
        let _second = protocol::transport::Endpoint::bind(at, identity, config).unwrap();
        let start = Instant::now();
        sender.send(&1u8, Bytes::from(vec![0; 100])).await.unwrap();
        assert_eq!(connection.closed().await, Lost::Restarted);
        assert!(start.elapsed() < Duration::from_millis(2500), "it took {:?}", start.elapsed());
    });
}

#[test]
fn either_side_pushes_frames_in_order() {
    run(async {
        let pair = Cluster::new(1).pair(TransportConfig::default()).await;
        for (from, to) in [(&pair.at_client, &pair.at_server), (&pair.at_server, &pair.at_client)] {
            let (mut sender, _) = from.open_channel(PUSHES).await.unwrap().split();
            let (kind, channel) = to.accept_channel().await.unwrap();
            assert_eq!((kind, channel.kind()), (PUSHES, PUSHES));
            let (_, mut receiver) = channel.split();
            for number in 0..100u32 {
                sender.queue(&number, Bytes::from(vec![number as u8; number as usize * 50])).unwrap();
            }
            assert!(sender.queued_bytes() > 0);
            sender.finish().await.unwrap();
            for number in 0..100u32 {
                let (header, payload) = receiver.recv::<u32>().await.unwrap().unwrap();
                assert_eq!((header, payload.len()), (number, number as usize * 50));
            }
            assert!(receiver.recv::<u32>().await.unwrap().is_none(), "the end is an end");
        }
    });
}

#[test]
fn a_cancelled_send_leaves_whole_frames_only() {
    run(async {
        let pair = Cluster::new(1).pair(TransportConfig::default()).await;
        let (mut sender, _) = pair.at_client.open_channel(PUSHES).await.unwrap().split();
        let (_, channel) = pair.at_server.accept_channel().await.unwrap();
        let (_, mut receiver) = channel.split();
        // Nobody reads, so the windows fill and a send has to wait.
        let mut sent = 0u32;
        loop {
            let number = sent;
            let send = sender.send(&number, Bytes::from(vec![number as u8; 4 << 20]));
            sent += 1;
            if tokio::time::timeout(Duration::from_millis(300), send).await.is_err() {
                break;
            }
        }
        let reader = spawn_local(async move {
            let mut received = 0u32;
            while let Some((number, payload)) = receiver.recv::<u32>().await.unwrap() {
                assert_eq!((number, payload.len()), (received, 4 << 20));
                assert!(payload.iter().all(|byte| *byte == received as u8));
                received += 1;
            }
            received
        });
        sender.finish().await.unwrap();
        assert_eq!(reader.await.unwrap(), sent);
    });
}

#[test]
fn a_malformed_frame_costs_its_sender_the_connection_and_nobody_else() {
    run(async {
        let log = Log::default();
        let _guard = log.capture();
        let cluster = Cluster::new(1);
        let pair = cluster.pair(TransportConfig::default()).await;
        let other = cluster.endpoint(Role::Client, 8);
        let (other_client, other_server) = connect(&other, &pair.server, Expect::role(Role::Data)).await;
        serve_echo(pair.at_server.clone(), ServeLimits::default());
        serve_echo(other_server, ServeLimits::default());
        // A request whose header is no string.
        let wrong = RpcClient::<(u64, u64, u64), String>::new(&pair.at_client, CALLS);
        let error = wrong.call(&(u64::MAX, 1, 2), Bytes::new()).await;
        let Err(RpcError::Disconnected(Lost::ClosedByPeer { why })) = error else {
            panic!("the sender was not told: {error:?}");
        };
        assert!(why.contains("a frame header does not decode"), "{why}");
        let told = log.text();
        assert!(told.contains("Closed the connection to client-7 (client 7) at 127.0.0.1:"), "{told}");
        assert_eq!(pair.server.stats().misbehaved, 1);
        let echo = EchoClient::new(&other_client, CALLS);
        assert_eq!(echo.call(&"x".to_owned(), Bytes::new()).await.unwrap().0, "x");
    });
}

#[test]
fn a_channel_without_its_second_stream_is_refused_by_the_server_of_calls() {
    run(async {
        let pair = Cluster::new(1).pair(TransportConfig::default()).await;
        serve_echo(pair.at_server.clone(), ServeLimits::default());
        let (mut sender, mut receiver) = pair.at_client.open_channel(CALLS).await.unwrap().split();
        sender.send(&1u8, Bytes::new()).await.unwrap();
        let error = receiver.recv::<u8>().await;
        assert!(matches!(error, Err(TransportError::Lost(Lost::ClosedByPeer { .. }))), "{error:?}");
    });
}

async fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
