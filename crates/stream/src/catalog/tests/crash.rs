//! Power cuts at every operation: what was answered is there, what was deleted stays deleted.

use flumen_log::Grain;

use super::*;

/// One step of a catalog's life, the same in every run.
fn step(catalog: &mut Catalog, number: u32) -> Result<(), CatalogError> {
    let stream = |number: u32| name(&format!("s{}", number % 4));
    match number % 10 {
        0 | 3 => {
            let new = new(stream(number).as_str(), 1 + number % 3);
            catalog.create(new, NOW).map(drop)
        }
        1 => catalog.issue_producer(NOW).map(drop),
        2 => {
            let update = to(if number.is_multiple_of(2) {
                Durability::Memory
            } else {
                Durability::Disk
            });
            let from: Vec<_> = (0..90).map(|index| (index, u64::from(number))).collect();
            catalog
                .update(&stream(number), &update, &moves(&from), NOW)
                .map(drop)
        }
        4 => {
            let old = catalog.streams().flat_map(|stream| &stream.shards);
            let old = old
                .map(|shard| shard.stays.first().id(shard.id))
                .collect::<Vec<_>>();
            catalog.drop_stays(&old, NOW)
        }
        5 => catalog.delete(&stream(number), NOW).map(drop),
        7 | 8 => reshard(catalog, &stream(number), number),
        9 => {
            let all: Vec<_> = (0..90).map(ShardIndex::new).collect();
            catalog.expire_shards(&stream(number), &all, NOW).map(drop)
        }
        _ => {
            let update = StreamUpdate {
                retention_bytes: Some(Some(u64::from(number))),
                ..StreamUpdate::default()
            };
            catalog.update(&stream(number), &update, &[], NOW).map(drop)
        }
    }
}

/// Splits the lowest open shard, or merges the lowest two.
fn reshard(catalog: &mut Catalog, name: &StreamName, number: u32) -> Result<(), CatalogError> {
    let Some(stream) = catalog.stream(name) else {
        return Err(CatalogError::NotFound { name: name.clone() });
    };
    let mut open: Vec<_> = stream.open_shards().collect();
    open.sort_unstable_by_key(|shard| shard.range.start);
    let open: Vec<_> = open.iter().map(|shard| shard.id.index()).collect();
    let step = match open[..] {
        [shard, adjacent, ..] if number % 10 == 8 => Reshard::Merge { shard, adjacent },
        _ => Reshard::Split {
            shard: open[0],
            at: None,
        },
    };
    let ends: Vec<_> = step
        .parents()
        .map(|shard| (shard, SequenceNumber::new(u64::from(number))))
        .collect();
    catalog.reshard(name, &[step], &ends, NOW).map(drop)
}

const STEPS: u32 = 100;

fn is_refusal(error: &CatalogError) -> bool {
    matches!(
        error,
        CatalogError::NotFound { .. }
            | CatalogError::AlreadyExists { .. }
            | CatalogError::Reshard { .. }
    )
}

/// What can be seen of a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    streams: Vec<Arc<StreamInfo>>,
    producers: ProducerId,
}

fn seen(catalog: &Catalog) -> Seen {
    Seen {
        streams: catalog.streams().cloned().collect(),
        producers: catalog.producers_issued(),
    }
}

/// Runs the steps until one fails; what was there after each that did not.
fn run(catalog: &mut Catalog) -> Vec<Seen> {
    let mut after = vec![seen(catalog)];
    for number in 0..STEPS {
        match step(catalog, number) {
            Err(error) if !is_refusal(&error) => break,
            _ => after.push(seen(catalog)),
        }
    }
    after
}

/// The image of a crash opens to what was answered, or that and the change under way.
fn check(storage: &MemoryStorage, answered: usize, reference: &[Seen]) -> Catalog {
    let mut catalog = open(storage);
    let found = seen(&catalog);
    let possible = &reference[answered..(answered + 2).min(reference.len())];
    let same = possible
        .iter()
        .any(|possible| possible.streams == found.streams);
    assert!(same, "found {found:#?}\nexpected one of {possible:#?}");
    assert!(found.producers >= possible[0].producers);
    // It goes on, with new numbers.
    let known = reference[..=answered].iter().flat_map(|seen| &seen.streams);
    let highest = known.map(|stream| stream.id).max();
    let created = catalog.create(new("afterwards", 1), NOW).unwrap();
    assert!(Some(created.id) > highest);
    assert!(catalog.issue_producer(NOW).unwrap() > possible[0].producers);
    catalog
}

#[test]
fn a_crash_at_any_operation_keeps_what_was_answered() {
    let reference = run(&mut open(&MemoryStorage::new()));
    assert_eq!(reference.len(), STEPS as usize + 1);
    let (mut crashes, mut operation) = (0, 0);
    loop {
        operation += 1;
        let storage = MemoryStorage::new();
        let mut catalog = open(&storage);
        storage.crash_after(operation);
        let answered = run(&mut catalog).len() - 1;
        if !storage.is_dead() {
            break;
        }
        drop(catalog);
        let images = [
            storage.crash_keeping(Grain::Page, 0),
            storage.crash_keeping(Grain::Page, u64::MAX),
            storage.crash_seeded(Grain::Sector, operation),
            storage.kill(),
        ];
        for image in images {
            crashes += 1;
            // Recovery itself is cut off, too.
            let second = image.duplicate();
            second.crash_after(1 + operation % 5);
            let opened = Catalog::open(Arc::new(second.clone()), config(), NOW);
            if second.is_dead() {
                drop(opened);
                check(
                    &second.crash_seeded(Grain::Sector, operation),
                    answered,
                    &reference,
                );
            }
            check(&image, answered, &reference);
        }
    }
    assert!(crashes > 200, "{crashes} crashes");
}

#[test]
fn generations_of_crashes_add_up() {
    let mut storage = MemoryStorage::new();
    let mut streams = Vec::new();
    let mut highest = StreamId::new(0);
    for seed in 0..60 {
        let mut catalog = open(&storage);
        let found: Vec<_> = catalog.streams().cloned().collect();
        assert_eq!(found, streams, "before crash {seed}");
        if seed % 3 == 2 {
            let first = streams.remove(0);
            catalog.delete(&first.name, NOW).unwrap();
        }
        let created = catalog
            .create(new(&format!("s{:03}", seed), 1), NOW)
            .unwrap();
        assert!(created.id > highest);
        highest = created.id;
        streams.push(created);
        if seed % 7 == 6 {
            catalog.close(NOW).unwrap();
        } else {
            drop(catalog);
        }
        storage = storage.crash_seeded(Grain::Page, seed);
    }
}

/// The suite can fail: without syncs it does.
#[test]
fn without_syncs_answered_changes_are_lost() {
    let storage = MemoryStorage::new();
    storage.set_without_sync(true);
    let mut catalog = open(&storage);
    catalog.create(new("a", 1), NOW).unwrap();
    let image = storage.crash_keeping(Grain::Page, 0);
    image.set_without_sync(false);
    let reopened = Catalog::open(Arc::new(image), config(), NOW);
    assert!(reopened.is_err() || reopened.unwrap().0.streams().next().is_none());
}
