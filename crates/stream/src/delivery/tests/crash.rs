//! Power cuts at every operation: what was answered is there.

use super::*;

const STEPS: u64 = 90;

type Image = (DeliveryId, Vec<(DeliveryId, StoredDelivery)>);

/// One step, the same in every run.
fn step(log: &mut DeliveryLog, number: u64) -> Result<(), DeliveryLogError> {
    change(log, number.wrapping_mul(0x9e37_79b9) >> 3)
}

/// Runs the steps until one fails; what was there after each that did not.
fn run(log: &mut DeliveryLog) -> Vec<Image> {
    let mut after = vec![image(log)];
    for number in 0..STEPS {
        match step(log, number) {
            Err(error) if !error.is_refusal() => break,
            Err(DeliveryLogError::Write(_)) => break,
            _ => after.push(image(log)),
        }
    }
    after
}

/// The image of a crash opens to what was answered, or that and the change under way.
fn check(storage: &MemoryStorage, answered: usize, reference: &[Image]) {
    let mut log = open(storage);
    let found = image(&log);
    let possible = &reference[answered..(answered + 2).min(reference.len())];
    assert!(
        possible.contains(&found),
        "found {found:#?}\nexpected one of {possible:#?}"
    );
    // It goes on, with new numbers.
    let highest = possible[0].0;
    let created = log.create("afterwards".parse().unwrap(), settings(1), NOW);
    assert!(created.unwrap() > highest);
}

#[test]
fn a_crash_at_any_operation_keeps_what_was_answered() {
    let reference = run(&mut open(&MemoryStorage::new()));
    assert_eq!(reference.len(), small(STEPS) + 1);
    assert!(reference.iter().any(|image| image.1.len() > 4));
    let (mut crashes, mut operation) = (0, 0);
    loop {
        operation += 1;
        let storage = MemoryStorage::new();
        let mut log = open(&storage);
        storage.crash_after(operation);
        let answered = run(&mut log).len() - 1;
        if !storage.is_dead() {
            break;
        }
        drop(log);
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
            let opened = try_open(&second);
            if second.is_dead() {
                drop(opened);
                let again = second.crash_seeded(Grain::Sector, operation);
                check(&again, answered, &reference);
            }
            check(&image, answered, &reference);
        }
    }
    assert!(crashes > 200, "{crashes} crashes");
}

/// The suite can fail: without syncs it does.
#[test]
fn without_syncs_answered_changes_are_lost() {
    let storage = MemoryStorage::new();
    storage.set_without_sync(true);
    let mut log = open(&storage);
    log.create(name(1), settings(1), NOW).unwrap();
    let image = storage.crash_keeping(Grain::Page, 0);
    image.set_without_sync(false);
    let reopened = try_open(&image);
    assert!(reopened.is_err() || reopened.unwrap().deliveries().next().is_none());
}
