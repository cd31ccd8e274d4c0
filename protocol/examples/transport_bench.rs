//! Throughput and latency of calls between two threads of this machine, each with a runtime of its own.
//!
//! ```text
//! cargo run --release -p protocol --example transport_bench
//! ```

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run may stop anywhere")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::identity::{Authority, ClusterId, Identity, Limits, Role};
use protocol::transport::rpc::{RpcClient, ServeLimits, serve_rpc};
use protocol::transport::{Endpoint, Expect, TransportConfig};
use tokio::task::{JoinSet, LocalSet};

const CALLS: u8 = 1;
const MESSAGE_BYTES: usize = 1 << 20;
const MESSAGES: usize = 4096;
const IN_FLIGHT: usize = 16;
const ROUND_TRIPS: usize = 20_000;

type Client = RpcClient<u32, u32>;

fn main() {
    let dir = std::env::temp_dir().join(format!("zabfs-transport-bench-{}", std::process::id()));
    let authority = Authority::create(&dir, ClusterId([1; 16])).unwrap();
    let identity = |role| {
        let issued = authority.issue(role, "bench", 1, &Limits::NONE, Duration::from_secs(3600)).unwrap();
        Arc::new(Identity::from_pem(&issued.ca_pem, &issued.certificate_pem, &issued.key_pem).unwrap())
    };
    let (server, client) = (identity(Role::Data), identity(Role::Client));
    std::fs::remove_dir_all(&dir).unwrap();
    let (address, addresses) = std::sync::mpsc::channel();
    std::thread::spawn(move || run(serve(server, address)));
    let address = addresses.recv().unwrap();
    run(measure(client, address));
}

fn run(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, body);
}

async fn serve(identity: Arc<Identity>, address: std::sync::mpsc::Sender<SocketAddr>) {
    let endpoint =
        Endpoint::bind("127.0.0.1:0".parse().unwrap(), identity, TransportConfig::default()).unwrap();
    address.send(endpoint.local_addr()).unwrap();
    let connection = endpoint.accept().await.unwrap();
    let large = Bytes::from(vec![3; MESSAGE_BYTES]);
    while let Ok((_, channel)) = connection.accept_channel().await {
        let large = large.clone();
        let handler = move |_peer, wanted: u32, _payload: Bytes| {
            let reply = large.slice(..wanted as usize);
            async move { (wanted, reply) }
        };
        tokio::task::spawn_local(serve_rpc(channel, ServeLimits::default(), handler));
    }
}

async fn measure(identity: Arc<Identity>, address: SocketAddr) {
    let endpoint =
        Endpoint::bind("127.0.0.1:0".parse().unwrap(), identity, TransportConfig::default()).unwrap();
    let connection = endpoint.connect(address, Expect::role(Role::Data)).await.unwrap();
    let client = Client::new(&connection, CALLS);
    let large = Bytes::from(vec![5; MESSAGE_BYTES]);
    // Let MTU discovery and the congestion window settle.
    throughput(&client, 256, &large, 0).await;

    let cpu = cpu_seconds();
    let up = throughput(&client, MESSAGES, &large, 0).await;
    let down = throughput(&client, MESSAGES, &Bytes::new(), MESSAGE_BYTES as u32).await;
    let gigabytes = 2.0 * (MESSAGES * MESSAGE_BYTES) as f64 / 1e9;
    println!("datagrams of {} bytes", connection.mtu());
    println!("1 MiB messages, {IN_FLIGHT} in flight: up {up:.0} MB/s, down {down:.0} MB/s");
    println!("CPU, both ends: {:.2} s/GB", (cpu_seconds() - cpu) / gigabytes);

    let mut times: Vec<Duration> = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let start = Instant::now();
        client.call(&0, Bytes::new()).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort();
    let at = |share: f64| times[(share * (ROUND_TRIPS - 1) as f64) as usize].as_secs_f64() * 1e6;
    println!("round trip: p50 {:.0} µs, p99 {:.0} µs", at(0.5), at(0.99));
    println!("small calls, 32 in flight: {:.0} k/s", small_calls(&client, 200_000, 32).await / 1e3);
}

/// MB/s of `count` calls that send `payload` and ask for `wanted` bytes.
async fn throughput(client: &Client, count: usize, payload: &Bytes, wanted: u32) -> f64 {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..IN_FLIGHT {
        let (client, payload) = (client.clone(), payload.clone());
        let share = count / IN_FLIGHT + usize::from(task < count % IN_FLIGHT);
        tasks.spawn_local(async move {
            for _ in 0..share {
                let (_, reply) = client.call(&wanted, payload.clone()).await.unwrap();
                assert_eq!(reply.len(), wanted as usize);
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    (count * MESSAGE_BYTES) as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// Calls per second.
async fn small_calls(client: &Client, count: usize, in_flight: usize) -> f64 {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..in_flight {
        let client = client.clone();
        tasks.spawn_local(async move {
            for _ in 0..count / in_flight {
                client.call(&0, Bytes::new()).await.unwrap();
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    count as f64 / start.elapsed().as_secs_f64()
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    // utime and stime, in ticks of which Linux reports 100 per second.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
