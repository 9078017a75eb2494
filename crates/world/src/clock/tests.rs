//! Jumps of the wall clock, and sleeping by a manual one.

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);

fn started() -> (Clock, Timestamp) {
    let start = Timestamp::from_micros(1_800_000_000_000_000);
    (Clock::manual(start), start)
}

#[test]
fn follows_the_wall_clock_and_small_corrections() {
    let (clock, start) = started();
    clock.advance(MINUTE);
    assert_eq!(clock.now(), start.saturating_add(MINUTE));
    clock.jump_to(start.saturating_add(5 * MINUTE));
    assert_eq!(clock.now(), start.saturating_add(5 * MINUTE));
    clock.jump_to(start.saturating_add(MINUTE));
    assert_eq!(clock.now(), start.saturating_add(MINUTE));
    assert!(clock.is_trusted());
}

/// A clock set wrong by 40 days must not expire everything there is.
#[test]
fn does_not_stamp_a_jump_in_either_direction() {
    for wrong in [
        |t: Timestamp| t.saturating_add(40 * DAY),
        |t: Timestamp| t.saturating_sub(40 * DAY),
    ] {
        let (clock, start) = started();
        clock.jump_to(wrong(start));
        clock.advance(MINUTE);
        assert_eq!(clock.now(), start.saturating_add(MINUTE));
        assert!(!clock.is_trusted());
        assert!((clock.jump_seconds().abs() - 40.0 * 86_400.0).abs() < 1.0);
        clock.jump_to(start.saturating_add(2 * MINUTE));
        assert_eq!(clock.now(), start.saturating_add(2 * MINUTE));
        assert!(clock.is_trusted());
    }
}

#[test]
fn believes_a_jump_when_it_is_confirmed_or_lasts() {
    let (clock, start) = started();
    let ahead = start.saturating_add(2 * DAY);
    clock.jump_to(ahead);
    assert_eq!(clock.now(), start);
    clock.confirm();
    assert_eq!(clock.now(), ahead);

    let (clock, start) = started();
    clock.jump_to(start.saturating_add(2 * DAY));
    assert_eq!(clock.now(), start);
    clock.advance(DAY - MINUTE);
    assert_eq!(clock.now(), start.saturating_add(DAY - MINUTE));
    clock.advance(MINUTE);
    assert_eq!(clock.now(), start.saturating_add(3 * DAY));
    assert!(clock.is_trusted());
}

#[test]
fn a_second_jump_starts_the_wait_again() {
    let (clock, start) = started();
    clock.jump_to(start.saturating_add(2 * DAY));
    clock.now();
    clock.advance(DAY - MINUTE);
    clock.now();
    clock.jump_to(start.saturating_add(9 * DAY));
    clock.now();
    clock.advance(MINUTE);
    assert_eq!(clock.now(), start.saturating_add(DAY));
}

/// Monotonic time stands still while a laptop sleeps; waking up must not look like a jump.
#[test]
fn sleep_of_the_machine_is_no_jump() {
    let start = Reading {
        wall: Timestamp::from_micros(1_000_000),
        monotonic: Duration::ZERO,
    };
    let mut guard = Guard::trusting(start, Duration::ZERO);
    let woken = Reading {
        wall: start.wall.saturating_add(DAY),
        monotonic: MINUTE,
    };
    assert_eq!(guard.observe(woken, || DAY - MINUTE), woken.wall);
    assert!(guard.jump.is_none());
}

/// Every lane asks for the time several times a round, for as long as a jump lasts.
#[test]
fn a_jump_does_not_make_the_clock_slow() {
    let start = Reading {
        wall: Timestamp::from_micros(1_800_000_000_000_000),
        monotonic: Duration::ZERO,
    };
    let mut guard = Guard::trusting(start, Duration::ZERO);
    let mut asked = 0;
    let mut observe = |passed: Duration| {
        let reading = Reading {
            wall: start.wall.saturating_add(DAY + passed),
            monotonic: passed,
        };
        let now = guard.observe(reading, || {
            asked += 1;
            Duration::ZERO
        });
        assert_eq!(now, start.wall.saturating_add(passed));
    };
    for millis in 0..3500 {
        observe(Duration::from_millis(millis));
    }
    assert_eq!(asked, 4);
}

/// What it has slept while there was a jump does not add to the jump.
#[test]
fn sleep_during_a_jump_is_seen_at_once() {
    let start = Reading {
        wall: Timestamp::from_micros(1_800_000_000_000_000),
        monotonic: Duration::ZERO,
    };
    let mut guard = Guard::trusting(start, Duration::ZERO);
    let jumped = Reading {
        wall: start.wall.saturating_add(2 * DAY),
        monotonic: Duration::ZERO,
    };
    assert_eq!(guard.observe(jumped, || Duration::ZERO), start.wall);
    let passed = Duration::from_millis(1);
    let woken = Reading {
        wall: start.wall.saturating_add(3 * DAY + passed),
        monotonic: passed,
    };
    let now = start.wall.saturating_add(DAY + passed);
    assert_eq!(guard.observe(woken, || DAY), now);
    let jump = guard.jump.unwrap();
    assert_eq!(jump.since, Duration::ZERO);
}

/// What sleeps by a manual clock is woken by its being moved, and by nothing else.
#[tokio::test]
async fn a_manual_clock_is_all_there_is_to_wait_for() {
    let (clock, start) = started();
    let mut sleep = pin!(clock.sleep(MINUTE));
    let mut cx = std::task::Context::from_waker(Waker::noop());
    assert!(sleep.as_mut().poll(&mut cx).is_pending());
    assert_eq!(clock.next_timer(), Some(MINUTE));
    clock.advance(MINUTE / 2);
    assert!(sleep.as_mut().poll(&mut cx).is_pending());
    clock.advance(MINUTE / 2);
    assert!(sleep.as_mut().poll(&mut cx).is_ready());
    assert_eq!(clock.next_timer(), None);
    let now = Now {
        wall: start.saturating_add(MINUTE),
        monotonic: MINUTE,
    };
    assert_eq!(clock.both(), now);
    // What is given up is forgotten.
    let mut timing = Box::pin(clock.timeout(MINUTE, std::future::pending::<()>()));
    assert!(timing.as_mut().poll(&mut cx).is_pending());
    assert_eq!(clock.next_timer(), Some(2 * MINUTE));
    drop(timing);
    assert_eq!(clock.next_timer(), None);
    let ready = clock.timeout(Duration::ZERO, std::future::ready(1));
    assert_eq!(ready.await, Ok(1));
}

#[test]
fn sleepers_are_woken_in_the_order_of_their_deadlines() {
    struct Say(u32, Arc<Mutex<Vec<u32>>>);
    impl std::task::Wake for Say {
        fn wake(self: Arc<Self>) {
            lock(&self.1).push(self.0);
        }
    }
    let (clock, _) = started();
    let woken = Arc::new(Mutex::new(Vec::new()));
    let mut sleeps = Vec::new();
    for (name, seconds) in [(1, 3), (2, 1), (3, 2), (4, 1), (5, 9)] {
        let waker = Waker::from(Arc::new(Say(name, Arc::clone(&woken))));
        let mut sleep = Box::pin(clock.sleep(Duration::from_secs(seconds)));
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(sleep.as_mut().poll(&mut cx).is_pending());
        sleeps.push(sleep);
    }
    clock.advance(Duration::from_secs(4));
    assert_eq!(*lock(&woken), [2, 4, 3, 1]);
}

/// A start under a wrong wall clock expired everything within seconds, and stamped ahead for ever.
#[test]
fn a_start_under_a_wrong_clock_is_a_jump() {
    for (days, ahead) in [(1, true), (40, true), (1, false), (40, false)] {
        let (before, start) = started();
        before.advance(DAY);
        let remembered = before.remember();
        let (last, off) = (before.now(), MINUTE);
        let wrong = if ahead {
            last.saturating_add(off + days * DAY)
        } else {
            last.saturating_sub(days * DAY)
        };
        for (remembered, written) in [
            (Some(remembered), start),
            (None, last),
            (
                Some(Remembered {
                    wall: start,
                    ..remembered
                }),
                last,
            ),
        ] {
            let clock = Clock::manual(wrong);
            assert!(!clock.resume(remembered, written));
            assert!(!clock.is_trusted());
            assert_eq!(clock.now(), last);
            clock.advance(MINUTE);
            assert_eq!(clock.now(), last.saturating_add(MINUTE));
            // Time that passes confirms it, or the operator, or the kernel.
            clock.advance(DAY - 2 * MINUTE);
            assert!(!clock.is_trusted());
            assert!(!clock.ask_kernel());
            clock.advance(MINUTE);
            assert_eq!(clock.now(), wrong.saturating_add(DAY));
            let clock = Clock::manual(wrong);
            clock.resume(remembered, written);
            clock.set_synchronised(true);
            assert!(clock.ask_kernel());
            assert_eq!(clock.now(), wrong);
            // Or it is set right.
            let clock = Clock::manual(wrong);
            clock.resume(remembered, written);
            clock.jump_to(last.saturating_add(MINUTE));
            assert!(clock.is_trusted());
            assert_eq!(clock.now(), last.saturating_add(MINUTE));
        }
    }
}

/// Simply off for a week, with a right clock.
#[test]
fn a_start_after_a_long_time_is_believed_when_something_says_so() {
    let (before, _) = started();
    before.advance(DAY);
    let remembered = Some(before.remember());
    let later = before.now().saturating_add(7 * DAY);
    let clock = Clock::manual(later);
    clock.set_synchronised(true);
    assert!(clock.resume(remembered, Timestamp::ZERO));
    assert_eq!(clock.now(), later);
    // The machine has stayed on: it knows how much time has passed.
    before.advance(7 * DAY);
    assert!(before.resume(remembered, Timestamp::ZERO));
    assert_eq!(before.now(), later);
    before.jump_to(later.saturating_add(DAY));
    assert!(!before.resume(remembered, Timestamp::ZERO));
    assert_eq!(before.now(), later);
    // A short stop, or a new data directory, is nothing to doubt.
    let clock = Clock::manual(later);
    let short = Remembered {
        wall: later.saturating_sub(14 * MINUTE),
        boot: 7,
        uptime: DAY,
    };
    assert!(clock.resume(Some(short), Timestamp::ZERO));
    assert!(clock.resume(None, Timestamp::ZERO));
    assert_eq!(clock.now(), later);
}
