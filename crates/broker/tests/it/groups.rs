//! Consumer groups from outside: lists and lag of very many of them.

use std::time::Duration;

use flumen_broker::{GroupStatus, StartPosition};
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
        .list_groups(Some(&name("e")), None, 100)
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
