//! Consumer groups: what a rebalance, a second of checkpoints and a snapshot cost.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use flumen_log::MemoryStorage;
use flumen_record::{SequenceNumber, ShardIndex, StreamId, Timestamp};
use flumen_stream::group::{
    Balanced, BoundsOf, Checkpoint, CheckpointItem, Coordinator, Event, GroupConfig, GroupLog,
    GroupName, InitialPosition, InstanceId, Join, Request, RequestId, SessionId, ShardBounds,
    ShardFacts, ShardLoad, Step, Strategy,
};

const STREAM: StreamId = StreamId::new(1);
const NOW: Timestamp = Timestamp::from_micros(1_000_000);

fn shards(count: u32) -> Event {
    let facts = |index| ShardFacts {
        shard: ShardIndex::new(index),
        parents: Vec::new(),
        end: None,
    };
    Event::ShardsChanged {
        stream: STREAM,
        shards: (0..count).map(facts).collect(),
    }
}

/// Shards that have everything.
#[derive(Debug)]
struct Endless;

impl BoundsOf for Endless {
    fn bounds(&self, _: StreamId, _: ShardIndex) -> Option<ShardBounds> {
        Some(ShardBounds {
            horizon: SequenceNumber::ZERO,
            end: SequenceNumber::MAX,
        })
    }
}

fn group(number: u32) -> GroupName {
    let name = format!("group-{number}").parse();
    name.expect("a name")
}

fn join(session: u64) -> Event {
    Event::Join(Join {
        session: SessionId::new(session),
        stream: STREAM,
        group: group(0),
        member: format!("member-{session}").parse().expect("a name"),
        instance: InstanceId::new(session),
        session_timeout: None,
        start: InitialPosition::TrimHorizon,
        begins: None,
    })
}

/// Loads that differ; the last member has nothing yet.
fn loads(shards: u32, members: usize) -> Vec<ShardLoad> {
    let load = |index: u32| ShardLoad {
        shard: ShardIndex::new(index),
        weight: 65_536 + u64::from(index.wrapping_mul(2_654_435_761) % 1_000_000),
        owner: Some(index as usize % (members - 1)),
    };
    (0..shards).map(load).collect()
}

fn balance(criterion: &mut Criterion) {
    for (shard_count, members) in [(1_000, 10), (10_000, 1_000)] {
        let input = loads(shard_count, members);
        criterion.bench_function(&format!("strategy/{shard_count}x{members}"), |bench| {
            bench.iter(|| Balanced.assign(black_box(&input), members));
        });
    }
    // A member joins nine that have everything: decided, changed, told.
    let with_nine = || {
        let coordinator = Coordinator::new(GroupConfig::default());
        let mut coordinator = coordinator.with_bounds(Arc::new(Endless));
        coordinator.step(Duration::ZERO, NOW, [shards(1_000)]);
        coordinator.step(Duration::ZERO, NOW, (1..10).map(join));
        coordinator
    };
    criterion.bench_function("coordinator/tenth member of 1000 shards joins", |bench| {
        bench.iter_batched(
            with_nine,
            |mut coordinator| {
                let step = coordinator.step(Duration::from_secs(1), NOW, [join(10)]);
                (coordinator, step)
            },
            BatchSize::LargeInput,
        );
    });
    criterion.bench_function("coordinator/one of nine with 1000 shards leaves", |bench| {
        bench.iter_batched(
            with_nine,
            |mut coordinator| {
                let leave = Event::Leave {
                    session: SessionId::new(9),
                };
                let step = coordinator.step(Duration::from_secs(1), NOW, [leave]);
                (coordinator, step)
            },
            BatchSize::LargeInput,
        );
    });
}

/// One checkpoint of each of these groups.
fn checkpoints(groups: std::ops::Range<u32>, shard: u32, to: u64) -> Vec<Event> {
    let checkpoint = |number: u32| Event::Request {
        id: RequestId(u64::from(number)),
        stream: STREAM,
        group: group(number),
        request: Request::Checkpoint {
            session: None,
            items: vec![CheckpointItem {
                shard: ShardIndex::new(shard),
                generation: None,
                checkpoint: Checkpoint::at(SequenceNumber::new(to)),
                skipped: Vec::new(),
            }],
        },
    };
    groups.map(checkpoint).collect()
}

const GROUPS: u32 = 10_000;

fn with_groups(config: GroupConfig) -> (GroupLog, Coordinator) {
    let storage = Arc::new(MemoryStorage::new());
    let opened = GroupLog::open(storage, config, NOW, Duration::ZERO);
    let (mut log, coordinator, _) = opened.expect("an empty log opens");
    let mut coordinator = coordinator.with_bounds(Arc::new(Endless));
    let mut events = vec![shards(4)];
    for shard in 0..4 {
        events.extend(checkpoints(0..GROUPS, shard, 1));
    }
    let step = coordinator.step(Duration::ZERO, NOW, events);
    log.commit(&step, &coordinator, NOW).expect("it is written");
    (log, coordinator)
}

fn changed_bytes(step: &Step) -> Vec<u8> {
    let mut bytes = Vec::new();
    for change in &step.changes {
        change.encode(&mut bytes);
    }
    bytes
}

fn checkpointing(criterion: &mut Criterion) {
    let (_, mut coordinator) = with_groups(GroupConfig::default());
    let mut to = 1 << 30;
    criterion.bench_function(
        "coordinator/10000 checkpoints decided and encoded",
        |bench| {
            bench.iter_batched(
                || {
                    to += 1;
                    checkpoints(0..GROUPS, 0, to)
                },
                |events| changed_bytes(&coordinator.step(Duration::from_secs(1), NOW, events)),
                BatchSize::LargeInput,
            );
        },
    );
    // As it comes in a second: a hundred steps, each with its commit (to memory), snapshots
    // included.
    let (mut log, mut coordinator) = with_groups(GroupConfig::default());
    criterion.bench_function("log/10000 checkpoints in 100 commits", |bench| {
        bench.iter_batched(
            || {
                to += 1;
                let hundredth = |step: u32| checkpoints(step * 100..(step + 1) * 100, 0, to);
                (0..100).map(hundredth).collect::<Vec<_>>()
            },
            |steps| {
                for events in steps {
                    let step = coordinator.step(Duration::from_secs(1), NOW, events);
                    log.commit(&step, &coordinator, NOW).expect("it is written");
                }
            },
            BatchSize::LargeInput,
        );
    });
    // What a commit takes longer for when a piece of a snapshot goes with it, and what the pieces
    // spare it: everything at once.
    let default = GroupConfig::default().snapshot_piece_bytes;
    for (name, piece) in [("a piece of a", default), ("a whole", u64::MAX)] {
        let (mut log, mut coordinator) = with_groups(GroupConfig {
            snapshot_bytes_min: 1,
            snapshot_growth: 0,
            snapshot_piece_bytes: piece,
            ..GroupConfig::default()
        });
        let name = format!("log/commit with {name} snapshot of 10000 groups of 4 shards");
        criterion.bench_function(&name, |bench| {
            bench.iter_batched(
                || {
                    to += 1;
                    checkpoints(0..1, 0, to)
                },
                |events| {
                    let step = coordinator.step(Duration::from_secs(1), NOW, events);
                    log.commit(&step, &coordinator, NOW).expect("it is written");
                },
                BatchSize::PerIteration,
            );
        });
    }
}

criterion_group!(benches, balance, checkpointing);
criterion_main!(benches);
