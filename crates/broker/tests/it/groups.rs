//! Consumer groups from outside: lists and lag of very many of them.

use std::time::Duration;

use flumen_broker::{
    Error, GroupStatus, InitialPosition, JoinGroup, MemberWord, Membership, StartPosition,
};
use flumen_log::MemoryStorage;
use flumen_record::{GroupName, StreamName};
use tokio::time::Instant;

use crate::fixture::*;

/// A group comes into being where it is put.
async fn groups(broker: &flumen_broker::Broker, stream: &StreamName, names: &[GroupName]) {
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

async fn pages(broker: &flumen_broker::Broker, limit: usize) -> Vec<GroupStatus> {
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
    let mut behind = broker.join_group(&stream, member("m")).unwrap();
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
    let mut back = broker.join_group(&stream, member("m")).unwrap();
    let joined = word(&mut back).await;
    assert!(
        matches!(&joined, MemberWord::Joined { kept, .. } if kept.len() == 1_000),
        "{joined:?}"
    );
    back.heartbeat(2).unwrap();
    assert!(matches!(word(&mut back).await, MemberWord::Heartbeat(2)));
    broker.shutdown().await.unwrap();
}
