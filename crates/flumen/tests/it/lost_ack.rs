//! An ack that is lost on the wire, and the broker that sent it killed: the retry is acknowledged
//! once, as a duplicate, and the record is stored once.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use flumen_client::{Client, ClientConfig, Producer, ProducerConfig, Record};
use flumen_record::SequenceNumber;

use crate::cli::run;
use crate::process::BrokerProcess;

/// Forwards connections to a broker and, when told to, loses what it says.
#[derive(Debug, Default)]
struct Shared {
    swallow: AtomicBool,
    swallowed: AtomicU64,
}

/// Forwards until either side ends. `loses`: this way leads away from the broker.
fn forward(mut from: TcpStream, mut to: TcpStream, loses: Option<Arc<Shared>>) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut piece) {
        if let Some(shared) = loses
            .as_ref()
            .filter(|shared| shared.swallow.load(Ordering::SeqCst))
        {
            shared.swallowed.fetch_add(read as u64, Ordering::SeqCst);
        } else if to.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    // One end of a connection is the end of both: there may be nobody there any more.
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Where the proxy listens.
fn start_proxy(broker: &str, shared: &Arc<Shared>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let broker = broker.trim_start_matches("http://").to_owned();
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let Ok(upstream) = TcpStream::connect(&broker) else {
                continue;
            };
            let (to, from) = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || forward(from, to, None));
            std::thread::spawn(move || forward(upstream, client, Some(shared)));
        }
    });
    format!("http://{address}")
}

fn record(data: String) -> Record {
    Record {
        partition_key: "k".into(),
        explicit_hash_key: None,
        data: data.into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_ack_of_a_killed_broker_is_one_ack_and_one_record() {
    const KILLS: u64 = 5;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut broker = BrokerProcess::start(&data);
    let at = format!("--endpoint {}", broker.endpoint);
    run(dir.path(), &format!("{at} stream create s"), b"").good();
    let shared = Arc::new(Shared::default());
    let proxy = start_proxy(&broker.endpoint, &shared);
    let connect = |endpoint: &str| Client::connect(ClientConfig::new(endpoint)).unwrap();
    let stream = "s".parse().unwrap();
    let config = ProducerConfig {
        linger: Duration::ZERO,
        ..ProducerConfig::default()
    };
    let opened = Producer::open(&connect(&proxy), &stream, config).await;
    let producer = opened.unwrap();
    let first = producer.send(record("0".to_owned())).await.unwrap();
    assert!(!first.wait().await.unwrap().duplicate);
    for n in 1..=KILLS {
        shared.swallowed.store(0, Ordering::SeqCst);
        shared.swallow.store(true, Ordering::SeqCst);
        let delivery = producer.send(record(n.to_string())).await.unwrap();
        // Stored, and its ack on the way: asked past the proxy.
        let direct = connect(&broker.endpoint);
        let ended = SequenceNumber::new(n + 1);
        loop {
            let described = direct.describe_stream(&stream).await.unwrap();
            let stored = described.shards[0].durable_end == ended;
            if stored && shared.swallowed.load(Ordering::SeqCst) > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(delivery.try_wait().is_none(), "its ack was not lost");
        broker.kill();
        shared.swallow.store(false, Ordering::SeqCst);
        broker = BrokerProcess::start_again(&data, &broker.endpoint);
        let delivered = delivery.wait().await.unwrap();
        assert!(delivered.duplicate, "{delivered:?}");
        assert_eq!(delivered.sequence_number, Some(SequenceNumber::new(n)));
    }
    let stats = producer.stats();
    let counted = (
        stats.records_stored,
        stats.records_duplicate,
        stats.records_failed,
    );
    assert_eq!(counted, (KILLS + 1, KILLS, 0));
    producer.close().await.unwrap();
    let stored = run(dir.path(), &format!("{at} consume s"), b"").good();
    assert_eq!(stored, "0\n1\n2\n3\n4\n5\n");
}
