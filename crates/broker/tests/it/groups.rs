//! Consumer groups from outside: lists and lag of very many of them.

use std::time::Duration;

use flumen_broker::{
    Broker, Checkpoint, Error, Expired, GroupStatus, InitialPosition, JoinGroup, MemberLease,
    MemberWord, Membership, Reshard, SaveCheckpoint, StartPosition, StreamSettings,
};
use flumen_log::MemoryStorage;
use flumen_record::{GroupName, StreamName};
use tokio::time::Instant;

use crate::fixture::*;

/// A group comes into being where it is put.
async fn groups(broker: &Broker, stream: &StreamName, names: &[GroupName]) {
    for name in names {
        let oldest = StartPosition::TrimHorizon;
        let reset = broker.reset_group(stream, name, vec![shard(0)], oldest, false, false);
        reset.await.unwrap();
    }
}

fn named(from: usize, to: usize) -> Vec<GroupName> {
    let names = (from..to).map(|n| format!("g{n:05}"));
    names.map(|name| name.parse().unwrap()).collect()
}

async fn pages(broker: &Broker, limit: usize) -> Vec<GroupStatus> {
    let mut found: Vec<GroupStatus> = Vec::new();
    loop {
        let after = found
            .last()
            .map(|last| (last.stream.clone(), last.group.clone()));
        let (page, more) = broker.list_groups(None, after, limit).await.unwrap();
        assert!(page.len() == limit || !more, "{}", page.len());
        found.extend(page);
        if !more {
            return found;
        }
    }
}

#[tokio::test]
async fn a_list_goes_through_all_streams_by_name_and_over_those_that_are_gone() {
    let broker = open(&MemoryStorage::new()).await;
    // Created in another order than that of their names.
    let mut streams = Vec::new();
    for stream in ["c", "a", "e", "b", "d"] {
        streams.push(create(&broker, stream, 2, Default::default()).await);
    }
    for stream in &streams {
        if stream.as_str() != "d" {
            groups(&broker, stream, &named(0, 3)).await;
        }
    }
    let shown = |groups: &[GroupStatus]| {
        let each = groups.iter();
        each.map(|group| format!("{}/{}", group.stream, group.group))
            .collect::<Vec<_>>()
    };
    let of = |streams: &[&str]| {
        let each = streams.iter();
        each.flat_map(|stream| (0..3).map(move |n| format!("{stream}/g{n:05}")))
            .collect::<Vec<_>>()
    };
    for limit in [1, 2, 3, 4, 100] {
        assert_eq!(
            shown(&pages(&broker, limit).await),
            of(&["a", "b", "c", "e"])
        );
    }
    let after = Some((name("b"), named(1, 2).remove(0)));
    broker.delete_stream(&name("b")).await.unwrap();
    let (rest, more) = broker.list_groups(None, after, 4).await.unwrap();
    assert_eq!(shown(&rest), of(&["c", "e"])[..4]);
    assert!(more);
    let (one, more) = broker
        .list_groups(Some((&name("e")).into()), None, 100)
        .await
        .unwrap();
    assert_eq!((shown(&one), more), (of(&["e"]), false));
    broker.shutdown().await.unwrap();
}

/// What a page of metrics costs does not grow with what it leaves out, and is paid once a second.
#[tokio::test]
async fn lag_of_ten_thousand_groups_is_bounded_and_kept_for_a_second() {
    let clock = clock();
    let storage = std::sync::Arc::new(MemoryStorage::new());
    let broker = open_with(storage, config(), clock.clone()).await;
    let stream = create(&broker, "readings", 4, Default::default()).await;
    let records = (0..40u32).map(|n| record_for(n % 4, 4, n.to_string()));
    broker.put(&stream, records.collect()).await.unwrap();
    groups(&broker, &stream, &named(0, 10_000)).await;
    let begun = Instant::now();
    let lags = broker.group_lags(1_000).await.unwrap();
    println!("lag of 1,000 groups of 10,000 in {:?}", begun.elapsed());
    assert_eq!((lags.groups.len(), lags.left_out), (1_000, 9_000));
    let all =
        |groups: &[GroupStatus], records| groups.iter().all(|group| group.lag.records == records);
    assert!(all(&lags.groups, 40));
    // More is written: told a second later.
    let records = (0..4u32).map(|n| record_for(n, 4, "more"));
    broker.put(&stream, records.collect()).await.unwrap();
    assert!(all(&broker.group_lags(1_000).await.unwrap().groups, 40));
    clock.advance(Duration::from_millis(1_001));
    assert!(all(&broker.group_lags(1_000).await.unwrap().groups, 44));
    // The list of them all is whole.
    assert_eq!(pages(&broker, 1_000).await.len(), 10_000);
    broker.shutdown().await.unwrap();
}

/// The next word of a member.
async fn word(member: &mut Membership) -> MemberWord {
    let word = std::future::poll_fn(|cx| member.poll_word(cx));
    tokio::time::timeout(WAIT, word).await.expect("a word")
}

fn member(name: &str) -> JoinGroup {
    JoinGroup {
        group: "g".parse().unwrap(),
        member: name.parse().unwrap(),
        instance: 1,
        session_timeout: None,
        start: InitialPosition::TrimHorizon,
    }
}

/// Forced resets filled what it had not read, its session was dropped, and it was never told: its
/// heartbeats went on, none was answered, and the group had no such member any more.
#[tokio::test]
async fn a_member_that_did_not_read_for_a_moment_hears_its_end() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 1_000, Default::default()).await;
    let group: GroupName = "g".parse().unwrap();
    let mut behind = broker.join_group(&stream, member("m")).await.unwrap();
    assert!(matches!(word(&mut behind).await, MemberWord::Joined { .. }));
    // Each ends 1,000 leases and grants them again.
    while behind.heartbeat(1).is_ok() {
        let oldest = StartPosition::TrimHorizon;
        let reset = broker.reset_group(&stream, &group, Vec::new(), oldest, true, false);
        reset.await.unwrap();
    }
    assert_eq!(behind.heartbeat(1), Err(Error::MemberUnread));
    for _ in 0..2 {
        let end = word(&mut behind).await;
        assert!(
            matches!(end, MemberWord::Ended(Error::MemberUnread)),
            "{end:?}"
        );
    }
    // It comes back within its session timeout, and has kept everything.
    let mut back = broker.join_group(&stream, member("m")).await.unwrap();
    let joined = word(&mut back).await;
    assert!(
        matches!(&joined, MemberWord::Joined { kept, .. } if kept.len() == 1_000),
        "{joined:?}"
    );
    back.heartbeat(2).unwrap();
    assert!(matches!(word(&mut back).await, MemberWord::Heartbeat(2)));
    broker.shutdown().await.unwrap();
}

/// The leases that a member is given, as soon as it has so many, by shard.
async fn leases(member: &mut Membership, many: usize) -> Vec<MemberLease> {
    let mut leases = Vec::new();
    while leases.len() < many {
        if let MemberWord::Assigned(lease) = word(member).await {
            leases.push(lease);
        }
    }
    leases.sort_by_key(|lease| lease.shard);
    leases
}

async fn save(member: &mut Membership, save: SaveCheckpoint) -> Result<(), Error> {
    member.save(1, vec![save]).unwrap();
    loop {
        if let MemberWord::Saved { mut outcomes, .. } = word(member).await {
            return outcomes.remove(0).outcome;
        }
    }
}

async fn leave(mut member: Membership) {
    member.leave().unwrap();
    while !matches!(word(&mut member).await, MemberWord::Left) {}
}

async fn put(broker: &Broker, stream: &StreamName, index: u32, of: u32, many: u32) {
    let records = (0..many).map(|n| record_for(index, of, n.to_string()));
    let put = broker.put(stream, records.collect()).await.unwrap();
    assert!(put.iter().all(Result::is_ok));
}

fn hour() -> StreamSettings {
    StreamSettings {
        retention: Duration::from_secs(3600),
        ..StreamSettings::default()
    }
}

const TWO_HOURS: Duration = Duration::from_secs(7200);

/// A group is there, 700 records arrive, 571 expire, a member joins: it was told "expired 0".
#[tokio::test]
async fn what_expires_before_the_first_member_is_told_and_shown() {
    let clock = clock();
    let storage = MemoryStorage::new();
    let opened = std::sync::Arc::new(storage.clone());
    let broker = open_with(opened, config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, hour()).await;
    groups(&broker, &stream, &named(0, 1)).await;
    put(&broker, &stream, 0, 1, 571).await;
    clock.advance(TWO_HOURS);
    put(&broker, &stream, 0, 1, 129).await;
    broker.apply_retention().await.unwrap();

    let group = named(0, 1).remove(0);
    let join = JoinGroup {
        group: group.clone(),
        ..member("m")
    };
    let shown = |broker: &Broker| {
        let (broker, stream, group) = (broker.clone(), stream.clone(), group.clone());
        async move {
            let described = broker.describe_group(&stream, &group).await.unwrap();
            let listed = broker
                .list_groups(None, None, 10)
                .await
                .unwrap()
                .0
                .remove(0);
            assert_eq!(listed.expired, described.status.expired);
            assert_eq!(
                described.status.expired.exactly(),
                described.shards[0].expired_records
            );
            (described.shards[0].expired_records, listed.lag.records)
        }
    };
    // Also before anybody has been told.
    assert_eq!(shown(&broker).await, (Some(571), 129));
    let mut first = broker.join_group(&stream, join.clone()).await.unwrap();
    let lease = leases(&mut first, 1).await.remove(0);
    assert_eq!(lease.start, StartPosition::At(number(571)));
    assert_eq!(lease.expired_records, Some(571));
    leave(first).await;
    broker.shutdown().await.unwrap();
    drop(broker);
    let opened = std::sync::Arc::new(storage.kill());
    let broker = open_with(opened, config(), clock.clone()).await;
    let mut second = broker.join_group(&stream, join).await.unwrap();
    let lease = leases(&mut second, 1).await.remove(0);
    assert_eq!(lease.expired_records, Some(0), "it is told once");
    assert_eq!(shown(&broker).await, (Some(571), 129));
    broker.shutdown().await.unwrap();
}

/// Of children that nobody held it was not known either, nor of whole shards that went.
#[tokio::test]
async fn what_expires_in_children_and_with_whole_shards_is_counted() {
    let clock = clock();
    let storage = std::sync::Arc::new(MemoryStorage::new());
    let broker = open_with(storage, config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, hour()).await;
    groups(&broker, &stream, &named(0, 1)).await;
    put(&broker, &stream, 0, 1, 30).await;
    let split = Reshard::Split {
        shard: shard(0),
        at: None,
    };
    broker.reshard(&stream, split).await.unwrap();
    put(&broker, &stream, 0, 2, 20).await;
    clock.advance(TWO_HOURS);
    put(&broker, &stream, 0, 2, 5).await;
    broker.apply_retention().await.unwrap();
    let described = broker.describe_stream(&stream).unwrap();
    assert_eq!(described.shards.len(), 2, "the parent has gone");
    let group = named(0, 1).remove(0);
    let shown = broker.describe_group(&stream, &group).await.unwrap();
    assert_eq!(shown.status.expired, Expired::from(Some(50)));
    let join = JoinGroup {
        group,
        ..member("m")
    };
    let mut member = broker.join_group(&stream, join).await.unwrap();
    let leases = leases(&mut member, 2).await;
    let told: Vec<_> = leases.iter().map(|lease| lease.expired_records).collect();
    assert_eq!(told, [Some(20), Some(0)]);
    broker.shutdown().await.unwrap();
}

/// Lag counted all of every child for a group that began at the end or at a time: 95 for 9.
#[tokio::test]
async fn lag_begins_where_leases_do() {
    let clock = clock();
    let storage = std::sync::Arc::new(MemoryStorage::new());
    let broker = open_with(storage, config(), clock.clone()).await;
    let stream = create(&broker, "readings", 1, Default::default()).await;
    let split = Reshard::Split {
        shard: shard(0),
        at: None,
    };
    put(&broker, &stream, 0, 1, 3).await;
    broker.reshard(&stream, split).await.unwrap();
    put(&broker, &stream, 0, 2, 86).await;
    clock.advance(Duration::from_secs(1));
    let starts = [
        InitialPosition::Latest,
        InitialPosition::AtTimestamp(clock.now()),
        InitialPosition::TrimHorizon,
    ];
    let mut members = Vec::new();
    for (start, name) in starts.into_iter().zip(named(0, 3)) {
        let join = JoinGroup {
            group: name,
            start,
            ..member("m")
        };
        let mut member = broker.join_group(&stream, join).await.unwrap();
        assert!(matches!(word(&mut member).await, MemberWord::Joined { .. }));
        members.push(member);
    }
    put(&broker, &stream, 0, 2, 9).await;
    let (listed, _) = broker.list_groups(None, None, 10).await.unwrap();
    let lag: Vec<_> = listed.iter().map(|group| group.lag.records).collect();
    assert_eq!(lag, [9, 9, 98]);
    for (group, expected) in named(0, 3).iter().zip(lag) {
        let described = broker.describe_group(&stream, group).await.unwrap();
        assert_eq!(described.status.lag.records, expected, "{group}");
    }
    broker.shutdown().await.unwrap();
}

/// 1,000 after 5 records was taken, and the group was blind for ever, with lag 0.
#[tokio::test]
async fn a_checkpoint_beyond_the_end_of_an_open_shard_is_refused() {
    let broker = open(&MemoryStorage::new()).await;
    let stream = create(&broker, "readings", 1, Default::default()).await;
    put(&broker, &stream, 0, 1, 5).await;
    let mut member = broker.join_group(&stream, member("m")).await.unwrap();
    let lease = leases(&mut member, 1).await.remove(0);
    let checkpoint = |checkpoint| SaveCheckpoint {
        shard: shard(0),
        generation: lease.generation,
        checkpoint: Some(checkpoint),
        skipped: Vec::new(),
    };
    for beyond in [
        Checkpoint::after(number(5)),
        Checkpoint::at(number(1_000)),
        Checkpoint::at(number(u64::MAX)),
        Checkpoint::after_part(number(5), 0),
    ] {
        let refused = save(&mut member, checkpoint(beyond)).await.unwrap_err();
        assert_eq!(refused.reason(), "CHECKPOINT_BEYOND_END");
        let end = ("end", "5".to_owned());
        assert!(refused.metadata().contains(&end), "{refused:?}");
    }
    save(&mut member, checkpoint(Checkpoint::after(number(4))))
        .await
        .unwrap();
    let to = StartPosition::At(number(6));
    let group = "g".parse().unwrap();
    let refused = broker.reset_group(&stream, &group, vec![shard(0)], to, true, false);
    assert_eq!(refused.await.unwrap_err().reason(), "BEYOND_END");
    broker.shutdown().await.unwrap();
}

/// What a power cut takes of a `memory` shard lies below its end all the same: it goes on far above.
#[tokio::test]
async fn a_checkpoint_of_records_that_a_power_cut_took_is_not_beyond_the_end() {
    let mut storage = MemoryStorage::new();
    let broker = open(&storage).await;
    let settings = level(flumen_record::Durability::Memory);
    let stream = create(&broker, "readings", 1, settings).await;
    put(&broker, &stream, 0, 1, 10).await;
    let mut first = broker.join_group(&stream, member("m")).await.unwrap();
    let lease = leases(&mut first, 1).await.remove(0);
    let checkpoint = |generation, checkpoint| SaveCheckpoint {
        shard: shard(0),
        generation,
        checkpoint: Some(checkpoint),
        skipped: Vec::new(),
    };
    let all = checkpoint(lease.generation, Checkpoint::at(number(10)));
    save(&mut first, all).await.unwrap();
    drop(first);
    drop(broker);
    storage = storage.crash_keeping(flumen_log::Grain::Sector, 0);
    let broker = open(&storage).await;
    let group: GroupName = "g".parse().unwrap();
    let described = broker.describe_group(&stream, &group).await.unwrap();
    assert!(!described.shards[0].is_beyond_end, "{described:?}");
    let mut again = broker.join_group(&stream, member("m")).await.unwrap();
    let kept = match word(&mut again).await {
        MemberWord::Joined { mut kept, .. } => kept.remove(0),
        other => panic!("{other:?}"),
    };
    put(&broker, &stream, 0, 1, 3).await;
    let end = broker.describe_stream(&stream).unwrap().shards[0].durable_end;
    // Over the numbers that are lost, to what came behind them.
    let mut start = kept.start;
    while start != StartPosition::At(end) {
        let budget = flumen_broker::ReadBudget {
            bytes: 1 << 20,
            records: 100,
        };
        let read = broker.read(&stream, shard(0), start, budget, Duration::ZERO);
        start = StartPosition::At(read.await.unwrap().next);
    }
    save(&mut again, checkpoint(kept.generation, Checkpoint::at(end)))
        .await
        .unwrap();
    let described = broker.describe_group(&stream, &group).await.unwrap();
    assert_eq!(described.status.lag.records, 0);
    assert_eq!(described.status.expired, Expired::NONE);
    broker.shutdown().await.unwrap();
}
