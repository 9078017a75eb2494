//! Pipelines as tables: batches are letters, scripts say what the broker answers.

use super::*;

const WINDOW: usize = 8;

/// Plays both sides. A batch is (name, producer id, sequence) as it was last encoded.
struct Pipeline {
    queue: ShardQueue<(char, u64, u64)>,
    now: Instant,
    out: Vec<(char, Fate)>,
}

impl Pipeline {
    fn new(batches: &str) -> Self {
        let mut pipeline = Self {
            queue: ShardQueue::new(ProducerId::new(1)),
            now: Instant::now(),
            out: Vec::new(),
        };
        pipeline.push(batches);
        pipeline
    }

    fn push(&mut self, batches: &str) {
        for name in batches.chars() {
            self.queue.push(self.now, |id, sequence| {
                (name, id.value(), sequence.value())
            });
        }
    }

    /// Sends what may be sent: names with producer id and sequence, and the request numbers.
    fn send(&mut self) -> (String, Vec<u32>) {
        let (mut names, mut requests) = (Vec::new(), Vec::new());
        while let Some((request, _, &mut (name, id, sequence))) = self.queue.next_to_send(WINDOW) {
            names.push(format!("{name}{id}.{sequence}"));
            requests.push(request);
        }
        (names.join(" "), requests)
    }

    fn answer(&mut self, request: u32, answer: Answer) {
        let settled = self.queue.answered(request, answer, self.now);
        self.out
            .extend(settled.map(|((name, ..), fate)| (name, fate)));
    }

    fn refuse(&mut self, request: u32, refusal: Refusal) {
        self.answer(request, Answer::Refused(refusal));
    }

    fn restart(&mut self, id: u64) {
        self.queue
            .restart(ProducerId::new(id), |batch, id, sequence| {
                (batch.1, batch.2) = (id.value(), sequence.value());
            });
    }

    fn fates(&mut self) -> String {
        let letter = |fate| match fate {
            Fate::Stored => '+',
            Fate::NotStored => '-',
            Fate::Refused => '!',
            Fate::Unknown => '?',
        };
        self.out
            .drain(..)
            .flat_map(|(name, fate)| [name, letter(fate)])
            .collect()
    }
}

const LATER: Refusal = Refusal::Later;

#[test]
fn batches_leave_in_order_within_the_window_and_settle_in_any_order() {
    let mut p = Pipeline::new("abc");
    let mut sent = Vec::new();
    while let Some((request, again, &mut (name, ..))) = p.queue.next_to_send(2) {
        assert!(!again);
        sent.push((request, name));
    }
    assert_eq!(sent, [(0, 'a'), (1, 'b')]);
    p.answer(1, Answer::Stored);
    let (names, _) = p.send();
    assert_eq!(names, "c1.2");
    p.answer(0, Answer::Stored);
    p.answer(2, Answer::Stored);
    assert_eq!(p.fates(), "b+a+c+");
    assert_eq!(
        (p.queue.unsettled(), p.queue.in_flight(), p.queue.step()),
        (0, 0, Step::Flow)
    );
    p.push("d");
    assert_eq!(p.send().0, "d1.3");
}

#[test]
fn a_refusal_in_the_pipeline_is_sent_again_from_there_with_the_same_sequences() {
    for refusal in [LATER, Refusal::Unknown] {
        let mut p = Pipeline::new("abcd");
        p.send();
        p.answer(0, Answer::Stored);
        p.refuse(1, refusal);
        p.refuse(2, Refusal::OutOfSequence);
        p.push("e");
        assert_eq!(p.send().0, "", "nothing is sent while answers are missing");
        assert_eq!(p.queue.step(), Step::Settle);
        p.refuse(3, Refusal::OutOfSequence);
        assert_eq!(p.queue.step(), Step::Resend);
        p.queue.resend();
        assert_eq!(p.send().0, "b1.1", "one goes first");
        p.answer(1, Answer::Stored);
        let (names, requests) = p.send();
        assert_eq!(names, "c1.2 d1.3 e1.4");
        for request in requests {
            p.answer(request, Answer::Stored);
        }
        assert_eq!(p.fates(), "a+b+c+d+e+");
    }
}

#[test]
fn refusals_may_overtake_each_other() {
    let mut p = Pipeline::new("abc");
    p.send();
    p.refuse(2, Refusal::OutOfSequence);
    p.refuse(1, Refusal::OutOfSequence);
    p.refuse(0, LATER);
    assert_eq!(p.queue.step(), Step::Resend);
    p.queue.resend();
    assert_eq!(p.send().0, "a1.0");
    p.answer(0, Answer::Stored);
    assert_eq!(p.send().0, "b1.1 c1.2");
}

#[test]
fn a_lost_session_sends_everything_unanswered_again() {
    let mut p = Pipeline::new("abcd");
    p.send();
    p.answer(0, Answer::Stored);
    p.refuse(1, LATER);
    p.queue.disconnected();
    assert_eq!(p.queue.step(), Step::Flow);
    let (names, requests) = p.send();
    assert_eq!(names, "b1.1 c1.2 d1.3");
    // c had been stored: the broker says so again.
    for request in requests {
        p.answer(request, Answer::Stored);
    }
    assert_eq!(p.fates(), "a+b+c+d+");
}

#[test]
fn answers_of_nothing_in_flight_are_ignored() {
    let mut p = Pipeline::new("ab");
    p.send();
    p.answer(0, Answer::Stored);
    p.answer(0, Answer::Stored);
    p.answer(7, Answer::Stored);
    p.refuse(u32::MAX, Refusal::Never);
    assert_eq!((p.fates().as_str(), p.queue.in_flight()), ("a+", 1));
}

#[test]
fn a_batch_refused_for_good_leaves_and_the_rest_goes_on_under_a_new_id() {
    let mut p = Pipeline::new("abcd");
    p.send();
    p.answer(0, Answer::Stored);
    p.refuse(1, Refusal::Never);
    p.refuse(2, Refusal::OutOfSequence);
    assert_eq!(p.queue.step(), Step::Settle);
    p.refuse(3, Refusal::OutOfSequence);
    assert_eq!(p.queue.step(), Step::NewProducer);
    p.push("e");
    p.restart(2);
    assert_eq!(p.send().0, "c2.0 d2.1 e2.2");
    assert_eq!(p.fates(), "a+b!");
}

#[test]
fn a_session_lost_before_the_new_id_settles_under_the_old_one_first() {
    let mut p = Pipeline::new("abc");
    p.send();
    p.refuse(0, Refusal::Never);
    p.queue.disconnected();
    assert_eq!(
        p.send().0,
        "b1.1 c1.2",
        "they may be stored under the old id"
    );
    p.refuse(1, Refusal::OutOfSequence);
    p.refuse(2, Refusal::OutOfSequence);
    assert_eq!(p.queue.step(), Step::NewProducer);
    p.restart(2);
    assert_eq!(p.send().0, "b2.0 c2.1");
}

#[test]
fn a_broker_that_lost_acknowledged_batches_is_met_with_a_new_id() {
    let mut p = Pipeline::new("abc");
    p.send();
    p.answer(0, Answer::Stored);
    p.queue.disconnected();
    p.send();
    p.refuse(1, Refusal::OutOfSequence);
    p.refuse(2, Refusal::OutOfSequence);
    assert_eq!(p.queue.step(), Step::NewProducer);
    p.restart(2);
    assert_eq!(p.send().0, "b2.0 c2.1");
}

#[test]
fn lost_producer_state_leaves_uncertain_batches_unknown_and_moves_the_others() {
    let mut p = Pipeline::new("ab");
    p.send();
    p.queue.disconnected();
    p.push("c");
    assert_eq!(p.send().0, "a1.0 b1.1 c1.2");
    for request in 0..3 {
        p.refuse(request, Refusal::StateLost);
    }
    assert_eq!(p.fates(), "a?b?");
    assert_eq!(p.queue.step(), Step::NewProducer);
    p.restart(2);
    assert_eq!(p.send().0, "c2.0");
}

#[test]
fn uncertain_batches_are_settled_before_the_shard_or_the_id_changes() {
    for refusal in [Refusal::Elsewhere, Refusal::Never] {
        let mut p = Pipeline::new("abc");
        p.send();
        p.queue.disconnected();
        p.send();
        p.refuse(0, LATER);
        p.refuse(1, refusal);
        p.refuse(2, Refusal::OutOfSequence);
        assert_eq!(p.queue.step(), Step::Resend, "a may be stored");
        p.queue.resend();
        assert!(p.send().0.starts_with("a1.0"));
        p.answer(0, Answer::Stored);
        assert!(p.fates().ends_with("a+"));
    }
}

#[test]
fn a_closed_shard_hands_everything_back_once_it_is_settled() {
    let mut p = Pipeline::new("abcd");
    p.send();
    p.answer(0, Answer::Stored);
    p.refuse(1, Refusal::Elsewhere);
    p.refuse(2, Refusal::Elsewhere);
    assert_eq!(p.queue.step(), Step::Settle);
    p.push("e");
    p.refuse(3, Refusal::OutOfSequence);
    assert_eq!(p.queue.step(), Step::Reroute);
    let names: String = p
        .queue
        .take_all()
        .into_iter()
        .map(|(name, ..)| name)
        .collect();
    assert_eq!(names, "bcde");
    // The same shard again, as after a delete and create: not with sequences that were skipped.
    p.push("f");
    assert_eq!(
        (p.send().0.as_str(), p.queue.step()),
        ("", Step::NewProducer)
    );
    p.restart(9);
    assert_eq!(p.send().0, "f9.0");
}

#[test]
fn giving_up_tells_unknown_from_not_stored() {
    let mut p = Pipeline::new("ab");
    p.send();
    p.queue.disconnected();
    p.push("c");
    p.send();
    p.refuse(0, Refusal::OutOfSequence);
    p.push("d");
    let fates: Vec<_> = p
        .queue
        .give_up()
        .into_iter()
        .map(|((name, ..), fate)| (name, fate))
        .collect();
    let expected = [
        ('a', Fate::NotStored),
        ('b', Fate::Unknown),
        ('c', Fate::Unknown),
        ('d', Fate::NotStored),
    ];
    assert_eq!(fates, expected);
    assert_eq!((p.queue.in_flight(), p.queue.quiet_since()), (0, None));
    p.push("e");
    assert_eq!(p.queue.step(), Step::NewProducer);
}

#[test]
fn quiet_time_runs_from_the_first_wait_and_starts_over_with_every_ack() {
    let mut p = Pipeline::new("");
    assert_eq!(p.queue.quiet_since(), None);
    p.push("ab");
    let begin = p.now;
    p.now += std::time::Duration::from_secs(1);
    p.send();
    p.refuse(0, LATER);
    assert_eq!(
        p.queue.quiet_since(),
        Some(begin),
        "a refusal is no progress"
    );
    p.answer(1, Answer::Stored);
    assert_eq!(p.queue.quiet_since(), Some(p.now));
    p.queue.resend();
    p.send();
    p.answer(0, Answer::Stored);
    assert_eq!(p.queue.quiet_since(), None);
}

/// A broker of one shard that accepts in sequence only, loses sessions and acks and refuses at
/// random: every batch comes out stored once, in order, and is told so.
#[test]
fn random_losses_and_refusals_never_lose_repeat_or_reorder() {
    for seed in 0..500 {
        let mut random = Random(seed);
        let names: String = ('a'..='z').collect();
        let mut p = Pipeline::new(&names);
        let mut stored: Vec<char> = Vec::new();
        let mut ids = 1;
        let mut expected = std::collections::HashMap::from([(1_u64, 0_u64)]);
        let mut steps = 0;
        while p.queue.unsettled() > 0 {
            steps += 1;
            assert!(steps < 10_000, "seed {seed}: no progress");
            match p.queue.step() {
                Step::Resend => p.queue.resend(),
                Step::NewProducer => {
                    ids += 1;
                    expected.insert(ids, 0);
                    p.restart(ids);
                }
                Step::Flow | Step::Settle => {}
                Step::Reroute => unreachable!("no answer asks for it"),
            }
            let mut answers = Vec::new();
            while let Some((request, _, &mut (name, id, sequence))) = p.queue.next_to_send(4) {
                let next = expected.get_mut(&id).unwrap();
                let answer = if sequence < *next {
                    Answer::Stored
                } else if sequence > *next {
                    Answer::Refused(Refusal::OutOfSequence)
                } else if random.one_in(5) {
                    Answer::Refused(if random.one_in(2) {
                        LATER
                    } else {
                        Refusal::Unknown
                    })
                } else {
                    *next += 1;
                    stored.push(name);
                    Answer::Stored
                };
                answers.push((request, answer));
            }
            let answered = if random.one_in(3) {
                random.below(answers.len() + 1)
            } else {
                answers.len()
            };
            let lost = answered < answers.len();
            for (request, answer) in answers.into_iter().take(answered) {
                p.answer(request, answer);
            }
            if lost {
                p.queue.disconnected();
            }
        }
        assert_eq!(stored.iter().collect::<String>(), names, "seed {seed}");
        assert!(
            p.out.iter().all(|(_, fate)| *fate == Fate::Stored),
            "seed {seed}"
        );
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}
