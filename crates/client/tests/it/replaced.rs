//! A stream that is deleted and made anew while who uses it is away. Under the same name is another
//! stream then: a position of the old one is a place in the middle of the new one (501 of 800 records
//! were skipped in silence), and a producer's numbers mean nothing in it. Everybody who had to do with
//! the old one is told `STREAM_REPLACED`, and stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flumen_api::v1;
use flumen_client::{
    AppendSession, Client, ClientConfig, Code, ConsumeError, Consumer, ConsumerConfig, Error,
    GroupBatch, GroupConfig, GroupConsumer, HandlerError, NewStream, Producer, ProducerConfig,
    ReadBudget, ReadUntil, SendError, StartPosition, StreamIncarnation, StreamName, reason,
};
use flumen_record::{Record, SequenceNumber, ShardIndex};
use tokio::time::timeout;

use crate::node::{Node, Proxy};

/// Nothing here takes longer, unless it never happens.
const SOON: Duration = Duration::from_secs(30);
const SHARD: ShardIndex = ShardIndex::new(0);

fn stream() -> StreamName {
    "readings".parse().unwrap()
}

fn record(n: u64) -> Record {
    Record {
        partition_key: "k".into(),
        explicit_hash_key: None,
        data: n.to_string().into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

async fn put(client: &Client, records: std::ops::Range<u64>) {
    let outcomes = client
        .put(&stream(), records.map(record).collect())
        .await
        .unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
}

/// A node, a client of its own, and one that comes through a proxy which can be cut.
struct Stage {
    node: Node,
    proxy: Proxy,
    operator: Client,
    away: Client,
    directory: tempfile::TempDir,
}

impl Stage {
    async fn set() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let node = Node::start(directory.path()).await;
        let proxy = Proxy::start(node.address).await;
        let operator = node.client();
        let config = ClientConfig::new(format!("http://{}", proxy.address));
        let stage = Self {
            away: Client::connect(config).unwrap(),
            node,
            proxy,
            operator,
            directory,
        };
        stage.create().await;
        stage
    }

    async fn create(&self) -> StreamIncarnation {
        let new = NewStream::new(stream());
        self.operator.create_stream(new).await.unwrap().incarnation
    }

    /// Under the same name is another stream, which has records of its own.
    async fn replace(&self, records: u64) {
        let before = self.operator.describe_stream(&stream()).await.unwrap();
        self.operator.delete_stream(&stream()).await.unwrap();
        let now = self.create().await;
        assert_ne!(now, before.incarnation);
        put(&self.operator, 1_000..1_000 + records).await;
    }

    /// How many records the stream has now.
    async fn stored(&self) -> u64 {
        let described = self.operator.describe_stream(&stream()).await.unwrap();
        described.shards[0].durable_end.value()
    }
}

fn assert_replaced(error: &Error) {
    assert_eq!(
        (error.code(), error.reason()),
        (Code::FailedPrecondition, reason::STREAM_REPLACED),
        "{error}"
    );
    let named = |name| error.metadata(name).map(str::to_owned);
    assert_eq!(named("stream").as_deref(), Some("readings"));
    assert_ne!(named("expected"), named("found"));
    assert!(!error.is_retryable());
}

fn assert_stopped(error: &ConsumeError) {
    match error {
        ConsumeError::Refused(error) => assert_replaced(error),
        other => panic!("{other}"),
    }
}

async fn take(consumer: &mut Consumer, records: u64) {
    let mut taken = 0;
    while taken < records {
        let batch = timeout(SOON, consumer.next()).await.unwrap().unwrap();
        taken += u64::from(batch.expect("it goes on").count());
    }
}

/// The trace of the issue: a consumer that follows, with its connection cut while the stream is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_follows_stops() {
    let stage = Stage::set().await;
    put(&stage.operator, 0..500).await;
    let config = ConsumerConfig::default();
    let mut consumer = Consumer::open(&stage.away, &stream(), config)
        .await
        .unwrap();
    take(&mut consumer, 500).await;
    // It does not hear that the stream is gone.
    stage.proxy.swallow_answers();
    stage.replace(800).await;
    stage.proxy.cut();
    let error = timeout(SOON, consumer.next()).await.unwrap().unwrap_err();
    assert_stopped(&error);
    // Asked again, it does not go on either.
    let error = timeout(SOON, consumer.next()).await.unwrap().unwrap_err();
    assert_stopped(&error);
    assert_eq!(consumer.stats().records, 500);
}

/// One that reads to the end and comes back later with its positions, as a program that keeps them does.
#[tokio::test(flavor = "multi_thread")]
async fn positions_that_were_kept_are_not_used_in_another_stream() {
    let stage = Stage::set().await;
    put(&stage.operator, 0..501).await;
    let to_end = ConsumerConfig {
        until: ReadUntil::CurrentEnd,
        ..ConsumerConfig::default()
    };
    let name = stream();
    let opened = Consumer::open(&stage.operator, &name, to_end.clone());
    let mut consumer = opened.await.unwrap();
    take(&mut consumer, 501).await;
    let kept = ConsumerConfig {
        positions: consumer.positions(),
        incarnation: Some(consumer.incarnation()),
        ..to_end
    };
    put(&stage.operator, 501..502).await;
    let opened = Consumer::open(&stage.operator, &name, kept.clone());
    take(&mut opened.await.unwrap(), 1).await;
    stage.replace(800).await;
    let error = Consumer::open(&stage.operator, &stream(), kept).await;
    assert_stopped(&error.unwrap_err());
}

/// Page by page, without a session.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_pages_is_refused() {
    let stage = Stage::set().await;
    put(&stage.operator, 0..5).await;
    let read = |known, at| {
        let (client, stream) = (&stage.operator, stream());
        async move {
            let at = StartPosition::At(SequenceNumber::new(at));
            let budget = ReadBudget::default();
            client.read_known(&stream, known, SHARD, at, budget).await
        }
    };
    let first = read(StreamIncarnation::default(), 0).await.unwrap();
    assert_eq!(read(first.stream, 5).await.unwrap().stream, first.stream);
    stage.replace(8).await;
    assert_replaced(&read(first.stream, 5).await.unwrap_err());
    // Who does not say which gets whichever has the name, and is told which it is.
    let other = read(StreamIncarnation::default(), 5).await.unwrap();
    assert_ne!(other.stream, first.stream);
}

/// A subscription of its own making, whose shards and starts come from the old stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_refused() {
    let stage = Stage::set().await;
    put(&stage.operator, 0..5).await;
    let known = stage.operator.describe_stream(&stream()).await.unwrap();
    stage.replace(8).await;
    let endpoint = format!("http://{}", stage.node.address);
    let mut consumer = v1::consumer_client::ConsumerClient::connect(endpoint)
        .await
        .unwrap();
    let request = |stream_incarnation| v1::SubscribeRequest {
        stream: stream().to_string(),
        shards: vec![v1::ShardStart {
            shard: 0,
            start: Some(v1::StartPosition {
                position: Some(v1::start_position::Position::AtSequenceNumber(5)),
            }),
            lease: None,
        }],
        start: None,
        max_bytes: 0,
        stream_incarnation,
    };
    let refused = consumer
        .subscribe(request(known.incarnation.value()))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let mut answers = consumer.subscribe(request(0)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert_ne!(answer.stream_incarnation, known.incarnation.value());
}

/// Idempotent, with several batches on their way, and at-least-once.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_stops_and_stores_nothing_in_the_other_stream() {
    for idempotent in [true, false] {
        let stage = Stage::set().await;
        let config = ProducerConfig {
            idempotent,
            linger: Duration::ZERO,
            batch_records: 1,
            ..ProducerConfig::default()
        };
        let producer = Producer::open(&stage.away, &stream(), config)
            .await
            .unwrap();
        producer
            .send(record(0))
            .await
            .unwrap()
            .wait()
            .await
            .unwrap();
        // What it sends from here on is stored in the old stream, and it does not hear of it.
        stage.proxy.swallow_answers();
        let mut sent = Vec::new();
        for n in 1..6 {
            sent.push(producer.send(record(n)).await.unwrap());
        }
        timeout(SOON, async {
            while stage.stored().await < 6 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        stage.replace(8).await;
        stage.proxy.cut();
        for delivery in sent {
            let refused = timeout(SOON, delivery.wait()).await.unwrap().unwrap_err();
            match refused {
                // They were in the old stream, whose answer never came.
                SendError::OutcomeUnknown { last, .. } => assert_replaced(&last),
                SendError::Refused(error) => assert_replaced(&error),
                other => panic!("{other}"),
            }
        }
        let later = producer.send(record(6)).await.unwrap();
        match timeout(SOON, later.wait()).await.unwrap().unwrap_err() {
            SendError::Refused(error) => assert_replaced(&error),
            other => panic!("{other}"),
        }
        assert_eq!(stage.stored().await, 8, "nothing of the old producer");
    }
}

/// The same for a session of encoded batches.
#[tokio::test(flavor = "multi_thread")]
async fn an_append_session_is_opened_on_the_stream_that_is_meant() {
    let stage = Stage::set().await;
    let known = stage.operator.describe_stream(&stream()).await.unwrap();
    let open = |known| {
        let client = stage.operator.clone();
        async move { AppendSession::open_known(&client, &stream(), known).await }
    };
    open(known.incarnation).await.unwrap();
    stage.replace(0).await;
    assert_replaced(&open(known.incarnation).await.unwrap_err());
    open(StreamIncarnation::default()).await.unwrap();
}

fn counting(
    seen: &Arc<AtomicU64>,
) -> impl Fn(GroupBatch) -> std::future::Ready<Result<(), HandlerError>> + Send + Sync + 'static {
    let seen = Arc::clone(seen);
    move |batch| {
        seen.fetch_add(batch.records.len() as u64, Ordering::SeqCst);
        std::future::ready(Ok(()))
    }
}

/// A member that was away does not join a group of the same name of the other stream, in which it would
/// save checkpoints of the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_group_does_not_join_the_other_streams() {
    let stage = Stage::set().await;
    put(&stage.operator, 0..50).await;
    let seen = Arc::new(AtomicU64::new(0));
    let config = GroupConfig {
        member: Some("m".parse().unwrap()),
        ..GroupConfig::new("g".parse().unwrap())
    };
    let name = stream();
    let member = GroupConsumer::join(&stage.away, &name, config, counting(&seen));
    let member = member.await.unwrap();
    timeout(SOON, async {
        while seen.load(Ordering::SeqCst) < 50 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    stage.proxy.swallow_answers();
    stage.replace(80).await;
    stage.proxy.cut();
    let ended = timeout(SOON, member.ended()).await.unwrap();
    assert_stopped(&ended.unwrap_err());
    assert_eq!(
        seen.load(Ordering::SeqCst),
        50,
        "nothing of the other stream"
    );
    let (groups, _) = stage.operator.list_groups(None, None, 0).await.unwrap();
    assert!(groups.is_empty(), "{groups:?}");
}

/// Pages of a list, changes and resets name the stream that they are about.
#[tokio::test(flavor = "multi_thread")]
async fn lists_and_changes_of_the_old_stream_are_refused() {
    let stage = Stage::set().await;
    let known = stage.operator.describe_stream(&stream()).await.unwrap();
    stage.replace(8).await;
    let endpoint = format!("http://{}", stage.node.address);
    let mut admin = v1::admin_client::AdminClient::connect(endpoint)
        .await
        .unwrap();
    let (stream, stream_incarnation) = (stream().to_string(), known.incarnation.value());
    let page = v1::ListGroupsRequest {
        stream: stream.clone(),
        after: format!("{stream}/a"),
        stream_incarnation,
        ..Default::default()
    };
    let reset = v1::ResetGroupRequest {
        stream: stream.clone(),
        group: "g".to_owned(),
        to: Some(v1::StartPosition {
            position: Some(v1::start_position::Position::AtSequenceNumber(5)),
        }),
        stream_incarnation,
        ..Default::default()
    };
    let split = v1::SplitShardRequest {
        stream: stream.clone(),
        stream_incarnation,
        ..Default::default()
    };
    let update = v1::UpdateStreamRequest {
        stream: stream.clone(),
        retention_us: Some(3_600_000_000),
        stream_incarnation,
        ..Default::default()
    };
    let delete = v1::DeleteStreamRequest {
        stream,
        stream_incarnation,
    };
    let refusals = [
        admin.list_groups(page).await.unwrap_err(),
        admin.reset_group(reset).await.unwrap_err(),
        admin.split_shard(split).await.unwrap_err(),
        admin.update_stream(update).await.unwrap_err(),
        admin.delete_stream(delete).await.unwrap_err(),
    ];
    for refused in refusals {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("created anew"), "{refused}");
    }
    assert_eq!(stage.stored().await, 8);
}

/// The broker was restarted in between, and once killed: which stream it is does not change by that, and
/// does by being created anew.
#[tokio::test(flavor = "multi_thread")]
async fn an_incarnation_outlives_restarts_and_not_its_stream() {
    let stage = Stage::set().await;
    put(&stage.operator, 0..5).await;
    let known = stage.operator.describe_stream(&stream()).await.unwrap();
    let Stage {
        node, directory, ..
    } = stage;
    node.stop().await;
    let node = Node::start(directory.path()).await;
    let client = node.client();
    let described = client.describe_stream(&stream()).await.unwrap();
    assert_eq!(described.incarnation, known.incarnation);
    let kept = ConsumerConfig {
        incarnation: Some(known.incarnation),
        positions: vec![(SHARD, StartPosition::At(SequenceNumber::new(3)))],
        until: ReadUntil::CurrentEnd,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::open(&client, &stream(), kept.clone())
        .await
        .unwrap();
    take(&mut consumer, 2).await;
    client.delete_stream(&stream()).await.unwrap();
    client
        .create_stream(NewStream::new(stream()))
        .await
        .unwrap();
    put(&client, 0..9).await;
    node.stop().await;
    let node = Node::start(directory.path()).await;
    let error = Consumer::open(&node.client(), &stream(), kept).await;
    assert_stopped(&error.unwrap_err());
    node.stop().await;
}
