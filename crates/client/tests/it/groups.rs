//! Members of a consumer group against a real node on a real directory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flumen_api::v1;
use flumen_client::{
    Client, ConsumeError, FailurePolicy, GiveUp, GroupBatch, GroupConfig, GroupConsumer,
    GroupEvent, GroupName, HandlerError, NewStream, Record, ResetScope, RetryPolicy, ShardLease,
    ShardProgress, StartPosition, StreamDescription, StreamName,
};
use flumen_record::ShardIndex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::fake::{Fake, Server};
use crate::node::{Node, Proxy};

/// Nothing here takes longer, unless it never happens.
const SOON: Duration = Duration::from_secs(20);

fn stream() -> StreamName {
    "readings".parse().unwrap()
}

fn group() -> GroupName {
    "analytics".parse().unwrap()
}

fn config(member: &str) -> GroupConfig {
    GroupConfig {
        member: Some(member.parse().unwrap()),
        session_timeout: Duration::from_secs(1),
        margin: Duration::from_millis(200),
        checkpoint_interval: Duration::from_millis(20),
        ..GroupConfig::new(group())
    }
}

/// One that a busy machine does not take for gone.
fn patient(member: &str) -> GroupConfig {
    GroupConfig {
        session_timeout: Duration::from_secs(10),
        ..config(member)
    }
}

async fn create(client: &Client, shards: u32) {
    let new = NewStream {
        shards,
        ..NewStream::new(stream())
    };
    client.create_stream(new).await.unwrap();
}

fn record(key: &str, data: &str) -> Record {
    Record {
        partition_key: key.to_owned().into(),
        explicit_hash_key: None,
        data: data.to_owned().into(),
        client_timestamp: None,
        headers: Vec::new(),
    }
}

/// `count` records of each of these keys, from `first` on.
async fn put(client: &Client, keys: u32, first: u32, count: u32) {
    for n in first..first + count {
        let records = (0..keys).map(|key| record(&format!("k{key}"), &format!("k{key}:{n}")));
        let outcomes = client.put(&stream(), records.collect()).await.unwrap();
        assert!(outcomes.iter().all(Result::is_ok));
    }
}

/// What handlers have processed, in their order, by key.
#[derive(Clone, Default)]
struct Seen {
    by_key: Arc<Mutex<BTreeMap<String, Vec<u32>>>>,
    changed: Arc<Notify>,
}

impl Seen {
    fn take(&self, batch: &GroupBatch) {
        let mut by_key = self.by_key.lock().unwrap();
        for record in batch.records.iter() {
            let text = std::str::from_utf8(&record.data).unwrap();
            let (key, n) = text.split_once(':').unwrap();
            let numbers = by_key.entry(key.to_owned()).or_default();
            numbers.push(n.parse().unwrap());
        }
        self.changed.notify_waiters();
    }

    fn distinct(&self) -> usize {
        let by_key = self.by_key.lock().unwrap();
        by_key
            .values()
            .map(|numbers| numbers.iter().collect::<BTreeSet<_>>().len())
            .sum()
    }

    async fn until(&self, records: usize) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.distinct() >= records {
                    return;
                }
                changed.await;
            }
        };
        let distinct = || self.distinct();
        timeout(SOON, wait)
            .await
            .unwrap_or_else(|_| panic!("{} of {records} records came", distinct()));
    }

    /// Each key's numbers, from 0, each once, in order.
    fn assert_once_in_order(&self, keys: usize, count: u32) {
        let by_key = self.by_key.lock().unwrap();
        assert_eq!(by_key.len(), keys);
        for (key, numbers) in by_key.iter() {
            assert_eq!(*numbers, (0..count).collect::<Vec<_>>(), "{key}");
        }
    }

    fn handler(
        &self,
    ) -> impl Fn(GroupBatch) -> std::future::Ready<Result<(), HandlerError>> + Send + Sync + 'static
    {
        let seen = self.clone();
        move |batch| {
            seen.take(&batch);
            std::future::ready(Ok(()))
        }
    }
}

async fn join(client: &Client, config: GroupConfig, seen: &Seen) -> GroupConsumer {
    GroupConsumer::join(client, &stream(), config, seen.handler())
        .await
        .unwrap()
}

/// Waits for an event.
async fn event(member: &mut GroupConsumer, wanted: impl Fn(&GroupEvent) -> bool) -> GroupEvent {
    let wait = async {
        loop {
            let event = member.event().await.expect("the member has ended");
            if wanted(&event) {
                return event;
            }
        }
    };
    timeout(SOON, wait).await.expect("the event did not come")
}

async fn assigned(member: &mut GroupConsumer, count: usize) -> Vec<ShardIndex> {
    let mut shards = Vec::new();
    while shards.len() < count {
        let is_assigned = |event: &GroupEvent| matches!(event, GroupEvent::Assigned { .. });
        if let GroupEvent::Assigned { shard, .. } = event(member, is_assigned).await {
            shards.push(shard);
        }
    }
    shards
}

/// Who holds how many shards.
async fn holders(client: &Client) -> BTreeMap<String, usize> {
    let described = client.describe_group(&stream(), &group()).await.unwrap();
    let mut holders = BTreeMap::new();
    for shard in described.shards {
        if let ShardLease::Held(member) = shard.lease {
            *holders.entry(member).or_default() += 1;
        }
    }
    holders
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_reads_everything_in_order_and_resumes_after_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let client = node.client();
    create(&client, 4).await;
    put(&client, 8, 0, 50).await;
    let seen = Seen::default();
    let member = join(&client, config("one"), &seen).await;
    seen.until(400).await;
    seen.assert_once_in_order(8, 50);
    let stats = member.leave().await.unwrap();
    assert_eq!((stats.records, stats.lost, stats.failures), (400, 0, 0));
    assert!(stats.checkpoints >= 4);
    let described = client.describe_group(&stream(), &group()).await.unwrap();
    assert_eq!(described.summary.lag.records, 0);
    assert_eq!((described.members.len(), described.forced), (0, 0));
    // Another one goes on from there.
    put(&client, 8, 50, 10).await;
    let described = client.describe_group(&stream(), &group()).await.unwrap();
    let lag = described.summary.lag;
    assert_eq!(lag.records, 80);
    assert!(lag.bytes > 80 * 5 && lag.age > Duration::ZERO, "{lag:?}");
    let member = join(&client, config("two"), &seen).await;
    seen.until(480).await;
    seen.assert_once_in_order(8, 60);
    member.leave().await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_are_shared_and_a_leaving_member_hands_over_without_a_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let client = node.client();
    create(&client, 6).await;
    let seen = Seen::default();
    let mut one = join(&client, config("one"), &seen).await;
    assigned(&mut one, 6).await;
    put(&client, 12, 0, 20).await;
    let mut two = join(&client, config("two"), &seen).await;
    let moved = assigned(&mut two, 3).await;
    assert_eq!(
        holders(&client).await,
        BTreeMap::from([("one".to_owned(), 3), ("two".to_owned(), 3)])
    );
    put(&client, 12, 20, 20).await;
    seen.until(480).await;
    let begun = Instant::now();
    two.leave().await.unwrap();
    let back = assigned(&mut one, 3).await;
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        back.iter().collect::<BTreeSet<_>>(),
        moved.iter().collect::<BTreeSet<_>>()
    );
    put(&client, 12, 40, 20).await;
    seen.until(720).await;
    seen.assert_once_in_order(12, 60);
    one.leave().await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_vanishes_is_replaced_within_its_session_timeout_and_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let client = node.client();
    create(&client, 4).await;
    let seen = Seen::default();
    let mut one = join(&client, config("one"), &seen).await;
    assigned(&mut one, 4).await;
    // The second one speaks through a proxy that goes silent: its process is alive and its handler
    // would go on.
    let proxy = Proxy::start(node.address).await;
    let far = Client::connect(flumen_client::ClientConfig::new(format!(
        "http://{}",
        proxy.address
    )));
    let far = far.unwrap();
    let mut two = join(&far, config("two"), &seen).await;
    assigned(&mut two, 2).await;
    put(&client, 8, 0, 20).await;
    seen.until(160).await;
    let begun = Instant::now();
    drop(proxy);
    drop(two);
    assigned(&mut one, 2).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    put(&client, 8, 20, 20).await;
    seen.until(320).await;
    one.leave().await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_broker_finds_members_and_checkpoints_where_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path()).await;
    let address = node.address;
    let client = node.client();
    create(&client, 4).await;
    let seen = Seen::default();
    let mut one = join(&client, patient("one"), &seen).await;
    let mut two = join(&client, patient("two"), &seen).await;
    assigned(&mut two, 2).await;
    let before = holders(&client).await;
    let mut count = 0;
    for killed in [true, false] {
        put(&client, 8, count, 20).await;
        count += 20;
        seen.until(8 * count as usize).await;
        if killed {
            node.kill();
        } else {
            node.stop().await;
        }
        node = Node::start_at(dir.path(), address).await;
        for member in [&mut one, &mut two] {
            let joined = event(member, |event| matches!(event, GroupEvent::Joined { .. })).await;
            let mut kept = joined;
            // The first word of this member may still be waiting.
            while matches!(kept, GroupEvent::Joined { kept: 0, .. }) {
                kept = event(member, |event| matches!(event, GroupEvent::Joined { .. })).await;
            }
            assert!(
                matches!(kept, GroupEvent::Joined { kept: 2, .. }),
                "{kept:?}"
            );
        }
        assert_eq!(holders(&client).await, before);
    }
    put(&client, 8, count, 20).await;
    seen.until(8 * (count as usize + 20)).await;
    one.leave().await.unwrap();
    two.leave().await.unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_instance_under_the_same_name_takes_the_members_place() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let client = node.client();
    create(&client, 2).await;
    let seen = Seen::default();
    let mut first = join(&client, config("one"), &seen).await;
    assigned(&mut first, 2).await;
    let mut second = join(&client, config("one"), &seen).await;
    assigned(&mut second, 2).await;
    let ended = timeout(SOON, first.ended()).await.unwrap();
    let Err(ConsumeError::Refused(error)) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(error.reason(), "MEMBER_REPLACED");
    put(&client, 4, 0, 10).await;
    seen.until(40).await;
    seen.assert_once_in_order(4, 10);
    second.leave().await.unwrap();
    node.stop().await;
}

/// A handler that fails at some records.
fn failing(
    seen: &Seen,
    bad: &'static [&'static str],
) -> impl Fn(GroupBatch) -> std::future::Ready<Result<(), HandlerError>> + Send + Sync + 'static {
    let seen = seen.clone();
    move |batch| {
        let is_bad = |data: &[u8]| bad.iter().any(|bad| bad.as_bytes() == data);
        let found = batch.records.iter().find(|record| is_bad(&record.data));
        std::future::ready(match found {
            Some(record) => {
                let text = String::from_utf8_lossy(&record.data).into_owned();
                Err(format!("cannot digest {text}").into())
            }
            None => {
                seen.take(&batch);
                Ok(())
            }
        })
    }
}

fn policy(attempts: u32, bisect: bool, then: GiveUp) -> FailurePolicy {
    FailurePolicy {
        attempts,
        bisect,
        then,
        backoff: RetryPolicy {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(5),
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_handler_stops_its_shard_and_says_so_and_nothing_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let client = node.client();
    create(&client, 1).await;
    put(&client, 1, 0, 10).await;
    let seen = Seen::default();
    let config = GroupConfig {
        on_failure: policy(3, true, GiveUp::Stop),
        ..config("one")
    };
    let joined = GroupConsumer::join(&client, &stream(), config, failing(&seen, &["k0:6"])).await;
    let mut member = joined.unwrap();
    let stopped = event(&mut member, |event| {
        matches!(event, GroupEvent::Stopped { .. })
    })
    .await;
    let GroupEvent::Stopped { at, reason, .. } = stopped else {
        unreachable!();
    };
    assert_eq!((at.value(), reason.as_str()), (6, "cannot digest k0:6"));
    // Bisecting has saved what came before the one that fails.
    seen.assert_once_in_order(1, 6);
    let stats = member.leave().await.unwrap();
    assert_eq!(stats.records, 6);
    assert!(stats.failures >= 3);
    let described = client.describe_group(&stream(), &group()).await.unwrap();
    assert_eq!(described.summary.lag.records, 4);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_handler_can_process_goes_to_the_dead_letter_stream_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let client = node.client();
    create(&client, 1).await;
    let dead: StreamName = "dead".parse().unwrap();
    client
        .create_stream(NewStream::new(dead.clone()))
        .await
        .unwrap();
    put(&client, 1, 0, 10).await;
    let seen = Seen::default();
    let config = GroupConfig {
        on_failure: policy(2, true, GiveUp::DeadLetter(dead.clone())),
        ..config("one")
    };
    let handler = failing(&seen, &["k0:3", "k0:7"]);
    let member = GroupConsumer::join(&client, &stream(), config, handler).await;
    let member = member.unwrap();
    seen.until(8).await;
    let stats = member.leave().await.unwrap();
    assert_eq!((stats.records, stats.dead_lettered), (8, 2));
    let budget = flumen_client::ReadBudget::default();
    let read = client
        .read(
            &dead,
            ShardIndex::new(0),
            StartPosition::TrimHorizon,
            budget,
        )
        .await;
    let letters: Vec<_> = read
        .unwrap()
        .batches
        .iter()
        .flat_map(|batch| batch.records().map(Result::unwrap))
        .collect();
    assert_eq!(letters.len(), 2);
    for (letter, data) in letters.iter().zip(["k0:3", "k0:7"]) {
        assert_eq!(letter.data, data);
        let header = |name: &str| {
            let found = letter.headers.iter().find(|header| header.name == name);
            String::from_utf8(found.unwrap().value.to_vec()).unwrap()
        };
        assert_eq!(header("flumen-stream"), "readings");
        assert_eq!(header("flumen-group"), "analytics");
        assert_eq!(header("flumen-reason"), format!("cannot digest {data}"));
    }
    let described = client.describe_group(&stream(), &group()).await.unwrap();
    assert_eq!(described.summary.lag.records, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_moves_a_group_and_ends_the_leases_in_its_way_only_when_forced() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let client = node.client();
    create(&client, 2).await;
    put(&client, 4, 0, 10).await;
    let seen = Seen::default();
    let mut member = join(&client, config("one"), &seen).await;
    assigned(&mut member, 2).await;
    seen.until(40).await;
    let reset = |force, dry_run| {
        let client = client.clone();
        async move {
            let to = StartPosition::TrimHorizon;
            client
                .reset_group(&stream(), &group(), &ResetScope::All, to, force, dry_run)
                .await
        }
    };
    assert_eq!(
        reset(false, false).await.unwrap_err().reason(),
        "GROUP_IN_USE"
    );
    let would = reset(true, true).await.unwrap();
    assert_eq!(would.len(), 2);
    assert!(would.iter().all(|reset| reset.after.value() == 0));
    let done = reset(true, false).await.unwrap();
    assert_eq!(done.len(), 2);
    event(&mut member, |event| {
        matches!(event, GroupEvent::Lost { .. })
    })
    .await;
    // Everything comes again.
    let twice = async {
        loop {
            let all = seen
                .by_key
                .lock()
                .unwrap()
                .values()
                .map(Vec::len)
                .sum::<usize>();
            if all >= 80 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, twice).await.unwrap();
    member.leave().await.unwrap();
    client
        .delete_group(&stream(), &group(), false)
        .await
        .unwrap();
    let gone = client.describe_group(&stream(), &group()).await;
    assert_eq!(gone.unwrap_err().reason(), "GROUP_NOT_FOUND");
    node.stop().await;
}

/// Its session breaks and comes back within the timeout: the same leases, and nothing repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_costs_no_lease() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let client = node.client();
    create(&client, 2).await;
    let proxy = Proxy::start(node.address).await;
    let endpoint = format!("http://{}", proxy.address);
    let far = Client::connect(flumen_client::ClientConfig::new(endpoint)).unwrap();
    let seen = Seen::default();
    let mut member = join(&far, patient("one"), &seen).await;
    assigned(&mut member, 2).await;
    for round in 0..3 {
        put(&client, 4, round * 10, 10).await;
        seen.until(40 * (round as usize + 1)).await;
        proxy.cut();
        let kept = |event: &GroupEvent| matches!(event, GroupEvent::Joined { kept: 2, .. });
        event(&mut member, kept).await;
    }
    seen.assert_once_in_order(4, 30);
    let stats = member.leave().await.unwrap();
    assert_eq!(stats.lost, 0);
    node.stop().await;
}

/// The broker has forgotten the session and the connection stands: heartbeats went out for ever, none
/// was answered, and nobody said a word.
#[tokio::test]
async fn a_member_whose_heartbeats_are_not_answered_joins_again() {
    let fake = Fake::new(1);
    let server = Server::start(&fake);
    let client = server.client();
    let seen = Seen::default();
    let mut member = join(&client, config("one"), &seen).await;
    let joined = |event: &GroupEvent| matches!(event, GroupEvent::Joined { .. });
    event(&mut member, joined).await;
    fake.change(|world| world.mute = true);
    event(&mut member, joined).await;
    event(&mut member, joined).await;
    assert!(fake.world().joins >= 3);
    fake.change(|world| world.mute = false);
    member.leave().await.unwrap();
}

/// A lease of shard 0 that begins there.
fn given(start: u64) -> v1::ShardAssigned {
    let position = v1::start_position::Position::AtSequenceNumber(start);
    v1::ShardAssigned {
        generation: 1,
        start: Some(v1::StartPosition {
            position: Some(position),
        }),
        expired_records: Some(0),
        ..Default::default()
    }
}

/// It was read again and again where nothing will ever come, with a lag of 0 and without a word.
#[tokio::test]
async fn a_shard_whose_checkpoint_is_beyond_its_end_stands_still_with_a_word() {
    let fake = Fake::new(1);
    fake.change(|world| world.gives.push(given(1_000)));
    let server = Server::start(&fake);
    let seen = Seen::default();
    let mut member = join(&server.client(), patient("one"), &seen).await;
    let stopped = |event: &GroupEvent| matches!(event, GroupEvent::Stopped { .. });
    match event(&mut member, stopped).await {
        GroupEvent::Stopped { at, reason, .. } => {
            assert_eq!(at.value(), 1_000);
            assert!(reason.contains("reset the group"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    member.leave().await.unwrap();
}

/// What expired between the grant and the first read is passed over under any policy, as what had
/// expired before it, and is said with the checkpoint.
#[tokio::test]
async fn what_expires_between_the_grant_and_the_first_read_is_said_with_the_checkpoint() {
    let fake = Fake::new(1);
    fake.change(|world| {
        world.gives.push(given(0));
        world.shards[0].trim_horizon = 40;
        world.shards[0].next = 40;
        world.shards[0].open = false;
    });
    let server = Server::start(&fake);
    let seen = Seen::default();
    let mut member = join(&server.client(), patient("one"), &seen).await;
    let finished = |event: &GroupEvent| matches!(event, GroupEvent::Finished { .. });
    event(&mut member, finished).await;
    let saved = fake.world().saved.clone();
    assert_eq!(saved.len(), 1, "{saved:?}");
    let expected = [v1::SkippedRange { from: 0, to: 40 }];
    assert_eq!(
        (saved[0].end_of_shard, &saved[0].skipped[..]),
        (true, &expected[..])
    );
    member.leave().await.unwrap();
}

/// Parents are finished before their children begin, whoever holds them: each key stays in order
/// while its shard is split and merged under load and members come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_and_merges_under_load_keep_every_key_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path()).await;
    let client = node.client();
    create(&client, 2).await;
    let seen = Seen::default();
    let one = join(&client, config("one"), &seen).await;
    let mut two = join(&client, config("two"), &seen).await;
    assigned(&mut two, 1).await;
    let writing = tokio::spawn({
        let client = client.clone();
        async move { put(&client, 16, 0, 300).await }
    });
    let open = |described: StreamDescription| {
        let shards = described.shards.into_iter();
        shards
            .filter(|shard| shard.open)
            .map(|shard| shard.index)
            .collect::<Vec<_>>()
    };
    for round in 0..4 {
        let shards = open(client.describe_stream(&stream()).await.unwrap());
        let split = client
            .split_shard(&stream(), shards[0], None)
            .await
            .unwrap();
        let mut ranges: Vec<_> = split.shards.iter().filter(|shard| shard.open).collect();
        ranges.sort_by_key(|shard| shard.range.start);
        let (a, b) = (ranges[1].index, ranges[2].index);
        if round % 2 == 1 {
            client.merge_shards(&stream(), a, b).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writing.await.unwrap();
    seen.until(16 * 300).await;
    two.leave().await.unwrap();
    put(&client, 16, 300, 20).await;
    seen.until(16 * 320).await;
    seen.assert_once_in_order(16, 320);
    let stats = one.leave().await.unwrap();
    assert_eq!(stats.lost, 0);
    let described = client.describe_group(&stream(), &group()).await.unwrap();
    assert_eq!(described.summary.lag.records, 0);
    let unfinished = |shard: &&ShardProgress| shard.lease != ShardLease::Finished;
    let left = described.shards.iter().filter(unfinished).count();
    let now_open = open(client.describe_stream(&stream()).await.unwrap()).len();
    assert_eq!(left, now_open, "{:?}", described.shards);
    node.stop().await;
}
