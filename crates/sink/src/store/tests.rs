//! Stores under faults, and what opening refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use flumen_broker::{Destination, StoreGuarantee};
use futures_util::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

use super::*;
use crate::fault::{Conditions, Crash, Fault, FaultPlan, FaultRates, FaultyStore, Outage};

fn tag(cut: &str, body: &[u8]) -> Tag {
    Tag {
        cut: cut.to_owned(),
        crc32: crc32fast::hash(body),
        bytes: body.len() as u64,
        content_type: "application/x-ndjson".to_owned(),
        content_encoding: Some("gzip".to_owned()),
    }
}

async fn create(store: &Store, key: &str, cut: &str, body: &str) -> Result<Stored, StoreError> {
    let body = body.as_bytes();
    let payload = PutPayload::from(Bytes::copy_from_slice(body));
    store.create(key, payload, &tag(cut, body)).await
}

fn faulty(plan: FaultPlan) -> (Store, FaultyStore, Arc<InMemory>) {
    let memory = Arc::new(InMemory::new());
    let (store, faults) = over(Arc::clone(&memory), plan);
    (store, faults, memory)
}

fn over(memory: Arc<InMemory>, plan: FaultPlan) -> (Store, FaultyStore) {
    let faults = FaultyStore::new(memory, plan);
    let store = Store::over(
        Arc::new(faults.clone()),
        "memory://test",
        &ObjectSettings::default(),
        &StoreConfig::default(),
    );
    (store, faults)
}

/// The first operations meet these faults, one each.
fn first(faults: &[Fault]) -> FaultPlan {
    let outage = |(number, fault): (usize, &Fault)| Outage {
        from: number as u64,
        operations: 1,
        fault: *fault,
    };
    FaultPlan {
        outages: faults.iter().enumerate().map(outage).collect(),
        ..FaultPlan::default()
    }
}

#[tokio::test]
async fn an_object_is_created_once_and_keeps_what_is_said_of_it() {
    let object = ObjectSettings {
        metadata: BTreeMap::from([("team".to_owned(), "lake".to_owned())]),
        cache_control: Some("no-cache".to_owned()),
        ..ObjectSettings::default()
    };
    let memory = Arc::new(InMemory::new());
    let objects: Arc<dyn ObjectStore> = memory;
    let store = Store::over(Arc::clone(&objects), "m", &object, &StoreConfig::default());
    let stored = create(&store, "a/b=c/d !.json", "d1-7-1", "body")
        .await
        .unwrap();
    assert_eq!((stored.bytes, stored.was_there), (4, false));
    let again = create(&store, "a/b=c/d !.json", "d1-7-1", "body")
        .await
        .unwrap();
    assert_eq!((again.bytes, again.was_there), (4, true));
    assert_eq!(again.e_tag, stored.e_tag);

    let found = store.look("a/b=c/d !.json").await.unwrap().unwrap();
    assert_eq!(found.cut.as_deref(), Some("d1-7-1"));
    assert_eq!(found.crc32, Some(crc32fast::hash(b"body")));
    assert_eq!(found.content_type.as_deref(), Some("application/x-ndjson"));
    assert_eq!(found.content_encoding.as_deref(), Some("gzip"));
    let got = objects
        .get(&object_path("a/b=c/d !.json").unwrap())
        .await
        .unwrap();
    let team = got.attributes.get(&Attribute::Metadata("team".into()));
    assert_eq!(team.map(|team| team.as_ref()), Some("lake"));
    assert_eq!(
        got.attributes
            .get(&Attribute::CacheControl)
            .map(|value| value.as_ref()),
        Some("no-cache")
    );
    assert_eq!(
        store.read("a/b=c/d !.json", 4).await.unwrap().as_ref(),
        b"body"
    );

    let conflict = create(&store, "a/b=c/d !.json", "d1-8-1", "body")
        .await
        .unwrap_err();
    assert!(conflict.is_permanent());
    assert_eq!(conflict.reason(), "conflict");
    assert!(conflict.to_string().contains("d1-7-1"), "{conflict}");
}

/// Whoever wrote it has other records under this name, or encoded them otherwise.
#[tokio::test]
async fn the_same_cut_with_other_content_is_a_conflict() {
    let (store, _, memory) = faulty(FaultPlan::default());
    create(&store, "k", "d1-7-1", "body").await.unwrap();
    for other in ["a longer body", "bodi"] {
        let error = create(&store, "k", "d1-7-1", other).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict { ref found, .. } if found.cut.is_some()));
    }
    let kept = memory
        .get(&"k".into())
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(kept.as_ref(), b"body");
}

#[tokio::test]
async fn when_the_look_fails_too_the_first_error_stands() {
    let (store, _, memory) = faulty(first(&[Fault::ResetAfter, Fault::Denied]));
    let error = create(&store, "k", "d1-7-1", "body").await.unwrap_err();
    assert_eq!(error.reason(), "unreachable");
    assert!(!error.is_permanent());
    assert!(memory.head(&"k".into()).await.is_ok());
    assert!(
        create(&store, "k", "d1-7-1", "body")
            .await
            .unwrap()
            .was_there
    );
}

#[tokio::test]
async fn what_is_there_and_may_not_be_looked_at_says_why() {
    let (store, faults, memory) = faulty(FaultPlan::default());
    memory.put(&"k".into(), "body".into()).await.unwrap();
    faults.set_plan(FaultPlan {
        outages: vec![Outage {
            from: 1,
            operations: 1,
            fault: Fault::Denied,
        }],
        ..FaultPlan::default()
    });
    let error = create(&store, "k", "d1-7-1", "body").await.unwrap_err();
    assert_eq!(error.reason(), "denied");
}

#[tokio::test]
async fn a_lost_answer_to_somebody_elses_object_is_a_conflict() {
    let (store, _, memory) = faulty(first(&[Fault::Reset]));
    memory.put(&"k".into(), "else".into()).await.unwrap();
    let error = create(&store, "k", "d1-7-1", "body").await.unwrap_err();
    assert_eq!(error.reason(), "conflict");
}

#[tokio::test]
async fn without_metadata_contents_are_compared() {
    let (store, _, memory) = faulty(FaultPlan::default());
    memory.put(&"same".into(), "body".into()).await.unwrap();
    memory.put(&"other".into(), "bodi".into()).await.unwrap();
    memory
        .put(&"longer".into(), "body and more".into())
        .await
        .unwrap();
    let same = create(&store, "same", "d1-7-1", "body").await.unwrap();
    assert!(same.was_there);
    assert_eq!(same.crc32, Some(crc32fast::hash(b"body")));
    for key in ["other", "longer"] {
        let error = create(&store, key, "d1-7-1", "body").await.unwrap_err();
        assert_eq!(error.reason(), "conflict", "{key}");
    }
}

#[tokio::test]
async fn a_store_that_does_not_know_conditions_is_looked_at_first() {
    let (store, faults, memory) = faulty(FaultPlan {
        conditions: Conditions::Refused,
        ..FaultPlan::default()
    });
    assert!(
        !create(&store, "k", "d1-7-1", "body")
            .await
            .unwrap()
            .was_there
    );
    assert!(
        create(&store, "k", "d1-7-1", "body")
            .await
            .unwrap()
            .was_there
    );
    let error = create(&store, "k", "d1-8-1", "else").await.unwrap_err();
    assert_eq!(error.reason(), "conflict");
    let kept = memory
        .get(&"k".into())
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(kept.as_ref(), b"body");
    // The condition was tried once, and never again.
    assert_eq!(faults.counts().puts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_read_is_whole_or_an_error() {
    let mut quiet_or_not = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let plan = FaultPlan {
            seed,
            ..first(&[Fault::TruncatedRead])
        };
        let (store, _, memory) = faulty(plan);
        memory.put(&"k".into(), "a body".into()).await.unwrap();
        let error = store.read("k", 6).await.unwrap_err();
        assert!(!error.is_permanent(), "{error}");
        quiet_or_not.insert(error.reason());
        assert_eq!(store.read("k", 6).await.unwrap().as_ref(), b"a body");
    }
    assert_eq!(Vec::from_iter(quiet_or_not), ["truncated", "unreachable"]);

    let (store, _, memory) = faulty(first(&[Fault::Silence]));
    memory.put(&"k".into(), "a body".into()).await.unwrap();
    assert_eq!(store.read("k", 6).await.unwrap_err().reason(), "timeout");
    assert_eq!(store.read("k", 5).await.unwrap_err().reason(), "too_large");
    assert_eq!(store.read("none", 5).await.unwrap_err().reason(), "missing");
    assert_eq!(store.look("none").await.unwrap(), None);
}

#[tokio::test]
async fn what_is_too_large_or_no_key_is_not_even_tried() {
    let (_, faults, _) = faulty(FaultPlan::default());
    let config = StoreConfig {
        object_bytes_max: 3,
        ..StoreConfig::default()
    };
    let store = Store::over(
        Arc::new(faults.clone()),
        "m",
        &ObjectSettings::default(),
        &config,
    );
    let error = create(&store, "k", "c", "body").await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::TooLarge {
                bytes: 4,
                bytes_max: 3,
                ..
            }
        ),
        "{error}"
    );
    let long = "k".repeat(1025);
    for key in [
        "", "/k", "k/", "a//b", "a/../b", "..", "a/./b", "a\nb", &long,
    ] {
        let error = create(&store, key, "c", "b").await.unwrap_err();
        assert_eq!(error.reason(), "bad_key", "{key}");
        assert!(error.is_permanent());
    }
    assert_eq!(faults.counts().operations, 0);
}

#[tokio::test]
async fn the_probe_tells_stores_apart_and_leaves_nothing() {
    let check = async |conditions: Conditions, expected: StoreGuarantee| {
        let (store, _, memory) = faulty(FaultPlan {
            conditions,
            ..FaultPlan::default()
        });
        let guarantee = store.probe("some/prefix/", 77).await.unwrap();
        assert_eq!(guarantee, expected, "{conditions:?}");
        let left: Vec<_> = memory.list(None).try_collect().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    };
    check(Conditions::Kept, StoreGuarantee::CreateIfAbsent).await;
    check(Conditions::Raced, StoreGuarantee::ManifestsOnly).await;
    check(Conditions::Ignored, StoreGuarantee::ManifestsOnly).await;
    check(Conditions::Refused, StoreGuarantee::ManifestsOnly).await;
}

#[tokio::test]
async fn a_probe_that_meets_a_fault_says_nothing_about_the_store() {
    let (store, _, memory) = faulty(first(&[Fault::SlowDown]));
    let error = store.probe("", 77).await.unwrap_err();
    assert_eq!(error.reason(), "slow_down");
    let left: Vec<_> = memory.list(None).try_collect().await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    let guarantee = store.probe("", 77).await.unwrap();
    assert_eq!(guarantee, StoreGuarantee::CreateIfAbsent);
}

#[tokio::test]
async fn a_race_that_several_won_is_unfair_whatever_became_of_the_rest() {
    let (store, _, _) = faulty(FaultPlan {
        conditions: Conditions::Raced,
        ..first(&[Fault::Reset])
    });
    let guarantee = store.probe("", 77).await.unwrap();
    assert_eq!(guarantee, StoreGuarantee::ManifestsOnly);
}

/// Everything that goes wrong, in any order: an object is there at last, once, and whole.
#[tokio::test(start_paused = true)]
async fn whatever_happens_an_object_is_there_at_last() {
    const ATTEMPTS_MAX: usize = 200;
    let run = async |seed: u64| {
        let (store, faults, memory) = faulty(FaultPlan {
            seed,
            rates: FaultRates {
                slow_down: 150,
                reset_after: 200,
                silence_after: 100,
                ..FaultRates::rough()
            },
            ..FaultPlan::default()
        });
        for number in 0..5 {
            let (key, body) = (format!("k{number}"), format!("body {number}"));
            let mut attempts = 0;
            loop {
                attempts += 1;
                assert!(attempts < ATTEMPTS_MAX, "seed {seed}");
                match create(&store, &key, "d1-7-1", &body).await {
                    Ok(_) => break,
                    Err(error) => assert!(!error.is_permanent(), "seed {seed}: {error}"),
                }
            }
            let stored = memory.get(&key.as_str().into()).await.unwrap();
            assert_eq!(stored.bytes().await.unwrap(), body, "seed {seed}");
        }
        faults.counts()
    };
    let mut faults = BTreeMap::new();
    for seed in 0..100 {
        let counts = run(seed).await;
        for (fault, times) in &counts.faults {
            *faults.entry(*fault).or_insert(0) += times;
        }
        if seed % 10 == 0 {
            assert_eq!(run(seed).await, counts, "seed {seed} is not the same twice");
        }
    }
    // All but truncated reads and what only outages make.
    assert_eq!(faults.len(), 10, "{faults:?}");
}

/// The process dies at every operation in turn, before and after it takes effect; the next one
/// finishes.
#[tokio::test]
async fn a_crash_anywhere_leaves_what_the_next_process_finishes() {
    for at in 0..4 {
        for after_effect in [false, true] {
            let memory = Arc::new(InMemory::new());
            let crash = Some(Crash { at, after_effect });
            let plan = FaultPlan {
                crash,
                ..first(&[Fault::Reset])
            };
            let (store, faults) = over(Arc::clone(&memory), plan);
            let mut done = 0;
            for key in ["a", "b", "c"] {
                while !faults.is_crashed() {
                    if create(&store, key, "d1-7-1", key).await.is_ok() {
                        done += 1;
                        break;
                    }
                }
            }
            faults.crashed().await;
            let there = memory.list(None).count().await;
            let expected = done + usize::from(after_effect && at != 1);
            assert_eq!(there, expected, "{crash:?}: the dead wrote");
            let error = store.look("a").await.unwrap_err();
            assert!(error.to_string().contains("dead"), "{error}");

            let (store, _) = over(memory, FaultPlan::default());
            for (number, key) in ["a", "b", "c"].into_iter().enumerate() {
                let stored = create(&store, key, "d1-7-1", key).await.unwrap();
                assert_eq!(stored.was_there, number < there, "{crash:?} {key}");
            }
        }
    }
}

#[tokio::test]
async fn memories_of_one_name_are_one() {
    let destinations = RealDestinations::new(|_| None);
    let open = |name: &str| {
        let destination = Destination::Memory {
            name: name.to_owned(),
        };
        destinations
            .open(
                &destination,
                &ObjectSettings::default(),
                &StoreConfig::default(),
            )
            .unwrap()
    };
    create(&open("one"), "k", "d1-7-1", "body").await.unwrap();
    assert!(open("one").look("k").await.unwrap().is_some());
    assert!(open("two").look("k").await.unwrap().is_none());
    assert_eq!(open("one").describe(), "memory://one");
}

#[test]
fn settings_that_cannot_become_headers_are_refused() {
    let check = |object: ObjectSettings, setting: Option<&str>| {
        let destinations = RealDestinations::new(|_| None);
        let memory = Destination::Memory {
            name: "m".to_owned(),
        };
        let opened = destinations.open(&memory, &object, &StoreConfig::default());
        let refused = opened.err().map(|refused| refused.setting);
        assert_eq!(refused, setting, "{object:?}");
    };
    let metadata = |name: &str, value: &str| ObjectSettings {
        metadata: BTreeMap::from([(name.to_owned(), value.to_owned())]),
        ..ObjectSettings::default()
    };
    check(metadata("team-1", "The lake"), None);
    check(metadata("flumen-cut", "x"), Some("object.metadata"));
    check(metadata("Team", "x"), Some("object.metadata"));
    check(metadata("", "x"), Some("object.metadata"));
    check(metadata("a b", "x"), Some("object.metadata"));
    check(
        metadata("a", "x\r\nx-amz-acl: public-read"),
        Some("object.metadata"),
    );
    check(metadata("a", "ä"), Some("object.metadata"));
    check(metadata("a", &"x".repeat(2048)), Some("object.metadata"));
    let class = |class: &str| ObjectSettings {
        storage_class: Some(class.to_owned()),
        ..ObjectSettings::default()
    };
    check(class("STANDARD_IA"), None);
    check(class(" "), Some("object.storage_class"));
    let content_type = ObjectSettings {
        content_type: Some("text/plain\n".to_owned()),
        ..ObjectSettings::default()
    };
    check(content_type, Some("object.content_type"));
}

#[test]
fn patience_grows_with_the_body() {
    let config = StoreConfig {
        request_timeout_ms: 1_000,
        slowest_bytes_per_s: 1_000,
        ..StoreConfig::default()
    };
    assert_eq!(config.patience(0), Duration::from_secs(1));
    assert_eq!(config.patience(5_000), Duration::from_secs(6));
    assert!(config.patience(u64::MAX) > Duration::from_secs(1 << 40));
}
