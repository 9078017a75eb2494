//! The task behind a producer: takes batches that are ready, seals and sends them, settles acks,
//! reconnects. Decisions are in `shard_queue` and `routing`; this carries them out.
//!
//! Everything it waits for, it waits for in one place ([`Driver::happening`]), calls to the broker
//! included, so that no shard waits for another's trouble.

mod errand;
mod give_up;
mod line;
mod reroute;

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use flumen_record::{Batch, ProducerId, ProducerSequence, StreamIncarnation, StreamName};
use tokio::time::{Instant, sleep_until};

use errand::{Done, Errand};
use give_up::failure;
use line::Line;

use super::delivery::{Outcome, StoredBatch};
use super::intake::{BatchTag, Intake, OpenBatch};
use super::shard_queue::{Answer, Step};
use super::shared::Shared;
use super::verdict::verdict;
use crate::append::{Ack, AckReceiver, Acks, AppendSender};
use crate::retry::{Backoff, RetryPolicy, random_seed};
use crate::{Client, Error, ProducerConfig};

/// A batch as it is sent.
#[derive(Debug)]
struct Sealed {
    batch: Batch,
    tag: BatchTag,
    /// It is among the batches in flight of the statistics.
    counted: bool,
}

impl Sealed {
    /// Answers it and counts it; gives the memory it held.
    fn settle(self, outcome: Outcome, intake: &mut Intake) -> usize {
        let Self { tag, counted, .. } = self;
        if counted {
            intake.stats.batches_in_flight -= 1;
            intake.stats.records_in_flight -= u64::from(tag.records);
        }
        tag.settle(outcome, intake)
    }
}

#[derive(Debug)]
struct Session {
    sender: AppendSender,
    acks: AckReceiver,
}

#[derive(Debug)]
pub(crate) struct Driver {
    client: Client,
    stream: StreamName,
    /// Which of that name: sequences, routes and what is not answered belong to it alone.
    incarnation: StreamIncarnation,
    config: ProducerConfig,
    shared: Arc<Shared>,
    /// For shards that have not sent yet.
    producer: ProducerId,
    /// By place in the routing table.
    lines: Vec<Line>,
    /// Places where something may be taken or sent.
    ready: VecDeque<usize>,
    /// Places whose queue needs more than to send.
    troubled: Vec<usize>,
    session: Option<Session>,
    /// The one call to the broker that is under way.
    errand: Option<Errand>,
    /// No errand before this.
    errand_at: Instant,
    backoff: Backoff,
    /// Since when there is no session though there is work.
    outage_since: Option<Instant>,
    last_error: Option<Error>,
    /// Next look for what has waited too long.
    sweep_at: Instant,
    /// Batches sealed and not settled, over all shards.
    unsettled: usize,
    opened_once: bool,
}

/// What the driver woke up for.
enum Happening {
    Acks(Result<Option<Acks>, Error>),
    Done(Done),
    Tick,
}

impl Driver {
    pub(crate) fn new(
        client: Client,
        (stream, incarnation): (StreamName, StreamIncarnation),
        config: ProducerConfig,
        shared: Arc<Shared>,
        producer: ProducerId,
    ) -> Self {
        let now = Instant::now();
        Self {
            client,
            stream,
            incarnation,
            config,
            shared,
            producer,
            lines: Vec::new(),
            ready: VecDeque::new(),
            troubled: Vec::new(),
            session: None,
            errand: None,
            errand_at: now,
            backoff: Backoff::new(RetryPolicy::default(), random_seed()),
            outage_since: None,
            last_error: None,
            sweep_at: now,
            unsettled: 0,
            opened_once: false,
        }
    }

    /// Runs until the producer is closed and everything is answered.
    pub(crate) async fn run(mut self) {
        loop {
            // One time for all of it: what is not due by then is what the next deadline looks at.
            let now = Instant::now();
            self.sweep(now);
            self.pump();
            while self.turn_lines(now) {
                self.pump();
            }
            if self.is_done() {
                return;
            }
            self.start_errand(now);
            match self.happening(now).await {
                Happening::Acks(Ok(Some(acks))) => self.settle(acks),
                Happening::Acks(Ok(None)) => {
                    self.lost(Error::session_ended(self.client.endpoint()));
                }
                Happening::Acks(Err(error)) => self.lost(error),
                Happening::Done(done) => self.finish_errand(done),
                Happening::Tick => {}
            }
        }
    }

    fn is_done(&self) -> bool {
        let intake = self.shared.lock();
        self.unsettled == 0 && intake.closed && intake.is_empty()
    }

    fn has_work(&self) -> bool {
        self.unsettled > 0 || !self.shared.lock().is_empty()
    }

    /// Waits for the next thing to do.
    async fn happening(&mut self, now: Instant) -> Happening {
        let deadline = self.next_deadline(now);
        let errand = &mut self.errand;
        let (sender, acks) = match &mut self.session {
            Some(session) => (Some(&session.sender), Some(&mut session.acks)),
            None => (None, None),
        };
        let acks = async {
            match acks {
                Some(acks) => acks.next().await,
                None => pending().await,
            }
        };
        let room = async {
            match sender {
                Some(sender) if sender.gathered_bytes() > 0 => sender.room().await,
                _ => pending().await,
            }
        };
        let done = async {
            match errand {
                Some(errand) => errand.done().await,
                None => pending().await,
            }
        };
        let timer = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            acks = acks => Happening::Acks(acks),
            done = done => Happening::Done(done),
            () = self.shared.work() => Happening::Tick,
            () = room => Happening::Tick,
            () = timer => Happening::Tick,
        }
    }

    /// When something is to be done though nothing happens.
    fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let (due, empty) = {
            let intake = self.shared.lock();
            (intake.next_due(), intake.is_empty())
        };
        if empty && self.unsettled == 0 {
            return None;
        }
        let mut deadline = self.sweep_at;
        if self.errand.is_none() {
            // Past when nothing is to be called: then it is no deadline either.
            let calling = self.errand_at > now;
            deadline = if calling {
                deadline.min(self.errand_at)
            } else {
                deadline
            };
        }
        if self.session.is_some() {
            deadline = due.map_or(deadline, |due| deadline.min(due));
            let resumes = self
                .troubled
                .iter()
                .filter_map(|place| self.lines.get(*place)?.resume_at);
            deadline = resumes.filter(|at| *at > now).fold(deadline, Instant::min);
        }
        Some(deadline)
    }

    /// Takes, seals and sends everything that may leave now.
    fn pump(&mut self) {
        if self.session.is_none() {
            return;
        }
        let now = {
            let mut intake = self.shared.lock();
            // Read behind the lock: what was opened before is due by now if it does not linger.
            let now = Instant::now();
            intake.drain_ready(now, &mut self.ready);
            now
        };
        while let Some(session) = &mut self.session {
            if !session.sender.try_flush() {
                break;
            }
            let Some(place) = self.ready.pop_front() else {
                break;
            };
            self.pump_place(place, now);
        }
    }

    fn pump_place(&mut self, place: usize, now: Instant) {
        let window = self.config.max_in_flight_batches;
        self.line(place).listed = false;
        let room = window.saturating_sub(self.line(place).queue.unsettled());
        let mut open = Vec::new();
        let starved = {
            let mut intake = self.shared.lock();
            open.extend(std::iter::from_fn(|| intake.take(place, now)).take(room));
            intake.is_announced(place)
        };
        self.line(place).starved = starved;
        for batch in open {
            self.seal(place, batch, now);
        }
        self.send(place);
    }

    fn seal(&mut self, place: usize, open: OpenBatch, now: Instant) {
        let OpenBatch {
            mut builder, tag, ..
        } = open;
        let compression = self.config.compression;
        let idempotent = self.config.idempotent;
        self.line(place).queue.push(now, |id, sequence| {
            let sequence = if idempotent {
                sequence
            } else {
                ProducerSequence::default()
            };
            Sealed {
                batch: builder.finish(id, sequence, compression),
                tag,
                counted: false,
            }
        });
        self.unsettled += 1;
        self.shared.lock().recycle(builder);
    }

    /// Gathers what a shard may send into the session.
    fn send(&mut self, place: usize) {
        let window = self.config.max_in_flight_batches;
        let Some(session) = &mut self.session else {
            return;
        };
        let Some(line) = self.lines.get_mut(place) else {
            return;
        };
        let (mut batches, mut records, mut resent) = (0, 0, 0);
        while let Some((number, again, sealed)) = line.queue.next_to_send(window) {
            session.sender.push(
                request(place, number),
                line.shard,
                sealed.batch.bytes().clone(),
            );
            resent += u64::from(again);
            if !sealed.counted {
                sealed.counted = true;
                batches += 1;
                records += u64::from(sealed.tag.records);
            }
        }
        if batches > 0 || resent > 0 {
            let stats = &mut self.shared.lock().stats;
            stats.batches_in_flight += batches;
            stats.records_in_flight += records;
            stats.batches_resent += resent;
        }
    }

    /// Takes acks.
    fn settle(&mut self, acks: Acks) {
        let now = Instant::now();
        let shared = Arc::clone(&self.shared);
        let mut intake = shared.lock();
        let mut freed = 0;
        let durability = acks.durability();
        for Ack { request, outcome } in acks {
            let Some((place, number)) = split(request) else {
                continue;
            };
            let Some(line) = self.lines.get_mut(place) else {
                continue;
            };
            let waited = line.waited(now);
            let (answer, facts) = match outcome {
                Ok(stored) => (Answer::Stored, Ok(StoredBatch::new(line.shard, &stored))),
                Err(error) => match verdict(&error) {
                    Answer::Stored => (
                        Answer::Stored,
                        Ok(StoredBatch::forgotten(line.shard, durability)),
                    ),
                    answer @ Answer::Refused(_) => {
                        line.refused(&error);
                        (answer, Err(error))
                    }
                },
            };
            if answer == Answer::Stored {
                line.stored();
                self.backoff.reset();
            }
            if let Some((sealed, fate)) = line.queue.answered(number, answer, now) {
                let outcome = match facts {
                    Ok(batch) => Outcome::Stored(batch),
                    Err(error) => Outcome::Failed(failure(fate, waited, error)),
                };
                self.unsettled -= 1;
                freed += sealed.settle(outcome, &mut intake);
            }
            if line.queue.step() != Step::Flow && !line.troubled {
                line.troubled = true;
                self.troubled.push(place);
            }
            if line.wants_turn() && !line.listed {
                line.listed = true;
                self.ready.push_back(place);
            }
        }
        drop(intake);
        self.free(freed);
    }

    /// Gives back memory of settled batches, and tells who waits for a flush.
    fn free(&self, bytes: usize) {
        if bytes > 0 {
            self.shared.release(bytes);
            self.shared.answered();
        }
    }

    /// Has a place looked at by the next pump.
    fn list(&mut self, place: usize) {
        if let Some(line) = self.lines.get_mut(place).filter(|line| !line.listed) {
            line.listed = true;
            self.ready.push_back(place);
        }
    }

    /// The session is gone; everything unanswered will be sent again.
    fn lost(&mut self, error: Error) {
        self.session = None;
        for line in &mut self.lines {
            line.queue.disconnected();
        }
        self.failed(error);
    }

    /// The line of a place.
    fn line(&mut self, place: usize) -> &mut Line {
        if place >= self.lines.len() {
            let shards = {
                let intake = self.shared.lock();
                (self.lines.len()..=place)
                    .map(|place| intake.routing.shard(place))
                    .collect::<Vec<_>>()
            };
            let producer = self.producer;
            self.lines
                .extend(shards.into_iter().map(|shard| Line::new(shard, producer)));
        }
        self.lines
            .get_mut(place)
            .expect("BUG: a line for every place of the routing table")
    }
}

/// The number under which a batch travels: its place and its number there.
fn request(place: usize, number: u32) -> u64 {
    (place as u64) << 32 | u64::from(number)
}

/// The place and the number there, of an ack.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half of the number"
)]
fn split(request: u64) -> Option<(usize, u32)> {
    Some((usize::try_from(request >> 32).ok()?, request as u32))
}
