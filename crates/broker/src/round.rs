//! Which waiting batches form the next round: how much of what waits, and, as it is not everything,
//! whose: shards take turns by bytes. Pure.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// A shard takes about this much per turn.
const TURN_BYTES: u64 = 16 << 10;
/// A round below this is not worth splitting: half of it would take the disk about as long.
const WHOLE_ROUND_BYTES: u64 = 48 << 10;
/// A queue that has emptied gives back its memory beyond this many places.
const KEPT_PLACES: usize = 1024;

/// How much of the bytes that wait the next round takes at most.
///
/// A client with a bounded window sends again when it is answered: were a round to take all that
/// waits, the disk would be idle while clients work, and clients while the disk works. Half of it
/// keeps both busy. When everybody waits for the disk, what waits grows, and rounds with it.
pub(crate) fn share_of_waiting(waiting_bytes: u64) -> u64 {
    (waiting_bytes / 2).max(WHOLE_ROUND_BYTES)
}

/// Something that waits for a round.
pub(crate) trait Weigh {
    /// Bytes it adds to the round.
    fn bytes(&self) -> u64;
}

/// What waits, by shard. A shard is known by a small dense number, its slot in the lane.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    queues: Vec<Queue<T>>,
    /// Slots with something waiting, in the order in which they came.
    active: Vec<u32>,
    waiting_bytes: u64,
    /// Where shards that come anew start, so that having been idle is no advantage.
    served_floor: u64,
}

#[derive(Debug)]
struct Queue<T> {
    items: VecDeque<T>,
    /// Bytes of this shard in rounds so far, while it always had something waiting.
    served: u64,
    /// How many items the round that is being planned takes.
    planned: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            served: 0,
            planned: 0,
        }
    }
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            queues: Vec::new(),
            active: Vec::new(),
            waiting_bytes: 0,
            served_floor: 0,
        }
    }
}

impl<T: Weigh> Turns<T> {
    /// Lines an item up behind the others of its shard.
    pub(crate) fn push(&mut self, slot: u32, item: T) {
        if self.queues.len() <= slot as usize {
            self.queues.resize_with(slot as usize + 1, Queue::default);
        }
        self.waiting_bytes += item.bytes();
        let floor = self.served_floor;
        let queue = self.queue(slot);
        let was_idle = queue.items.is_empty();
        queue.items.push_back(item);
        if was_idle {
            queue.served = queue.served.max(floor);
            self.active.push(slot);
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// Bytes waiting.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Takes one shard's items out of the line.
    pub(crate) fn withdraw(&mut self, slot: u32) -> VecDeque<T> {
        let Some(queue) = self.queues.get_mut(slot as usize) else {
            return VecDeque::new();
        };
        let items = std::mem::take(&mut queue.items);
        self.waiting_bytes -= items.iter().map(Weigh::bytes).sum::<u64>();
        self.active.retain(|&active| active != slot);
        items
    }

    /// Takes what the next round consists of, at most `max_bytes` or one larger item: shard by
    /// shard, in their order within a shard.
    pub(crate) fn take_round(&mut self, max_bytes: u64, mut take: impl FnMut(u32, T)) {
        if self.waiting_bytes <= max_bytes {
            let mut active = std::mem::take(&mut self.active);
            for slot in active.drain(..) {
                let queue = self.queue(slot);
                for item in queue.items.drain(..) {
                    take(slot, item);
                }
                queue.items.shrink_to(KEPT_PLACES);
            }
            self.active = active;
            self.waiting_bytes = 0;
            return;
        }
        self.plan(max_bytes);
        let mut taken_bytes = 0;
        let mut active = std::mem::take(&mut self.active);
        active.retain(|&slot| {
            let queue = self.queue(slot);
            let planned = std::mem::take(&mut queue.planned);
            for item in queue.items.drain(..planned) {
                taken_bytes += item.bytes();
                take(slot, item);
            }
            !queue.items.is_empty()
        });
        self.active = active;
        self.waiting_bytes -= taken_bytes;
    }

    /// Counts per shard what goes into the next round: always the shard that was served least.
    fn plan(&mut self, max_bytes: u64) {
        let mut by_served: BinaryHeap<Reverse<(u64, u32)>> = self
            .active
            .iter()
            .map(|&slot| Reverse((self.served(slot), slot)))
            .collect();
        let mut round_bytes = 0;
        while let Some(Reverse((served, slot))) = by_served.pop() {
            self.served_floor = self.served_floor.max(served);
            let queue = self.queue(slot);
            let mut turn_bytes = 0;
            while let Some(item) = queue.items.get(queue.planned) {
                let bytes = item.bytes();
                if round_bytes > 0 && round_bytes + bytes > max_bytes {
                    return;
                }
                if turn_bytes > 0 && turn_bytes + bytes > TURN_BYTES {
                    break;
                }
                queue.planned += 1;
                queue.served += bytes;
                round_bytes += bytes;
                turn_bytes += bytes;
            }
            if queue.planned < queue.items.len() {
                by_served.push(Reverse((queue.served, slot)));
            }
        }
    }

    fn served(&self, slot: u32) -> u64 {
        self.queues
            .get(slot as usize)
            .map_or(0, |queue| queue.served)
    }

    fn queue(&mut self, slot: u32) -> &mut Queue<T> {
        self.queues
            .get_mut(slot as usize)
            .expect("BUG: a slot that nothing was ever pushed to")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for (u64, u32) {
        fn bytes(&self) -> u64 {
            self.0
        }
    }

    const KIB: u64 = 1 << 10;

    /// `waiting`: (slot, bytes of each, how many). `expected`: the slots of each round, with how
    /// many items of each.
    fn check(max_bytes: u64, waiting: &[(u32, u64, u32)], expected: &[&[(u32, u32)]]) {
        let mut turns = Turns::default();
        for &(slot, bytes, count) in waiting {
            for number in 0..count {
                turns.push(slot, (bytes, number));
            }
        }
        let mut next = [0; 16];
        for (round, expected) in expected.iter().enumerate() {
            let mut found: Vec<(u32, u32)> = Vec::new();
            turns.take_round(max_bytes, |slot, (_, number)| {
                assert_eq!(number, next[slot as usize], "order within shard {slot}");
                next[slot as usize] += 1;
                match found.last_mut() {
                    Some((last, count)) if *last == slot => *count += 1,
                    _ => found.push((slot, 1)),
                }
            });
            assert_eq!(&found, expected, "round {round}");
        }
        assert!(turns.is_empty());
        assert_eq!(turns.waiting_bytes(), 0);
    }

    #[test]
    fn takes_everything_that_fits_grouped_by_shard() {
        check(4096, &[], &[]);
        check(4096, &[(0, 100, 3)], &[&[(0, 3)]]);
        check(4096, &[(1, 100, 2), (0, 100, 1)], &[&[(1, 2), (0, 1)]]);
    }

    #[test]
    fn a_round_takes_half_of_what_waits_unless_that_is_little() {
        for (waiting, share) in [
            (0, 48 * KIB),
            (90 * KIB, 48 * KIB),
            (200 * KIB, 100 * KIB),
            (16 * KIB * KIB, 8 * KIB * KIB),
        ] {
            assert_eq!(share_of_waiting(waiting), share, "{waiting} bytes wait");
        }
    }

    #[test]
    fn a_batch_larger_than_a_round_goes_alone() {
        check(KIB, &[(0, 5 * KIB, 2)], &[&[(0, 1)], &[(0, 1)]]);
        check(KIB, &[(0, 5 * KIB, 1), (1, 10, 1)], &[&[(0, 1)], &[(1, 1)]]);
    }

    #[test]
    fn shards_take_turns_by_bytes() {
        // Four of 256 KiB fit; the one that came second is not starved by the first one's backlog.
        check(
            1024 * KIB,
            &[(0, 256 * KIB, 6), (1, 256 * KIB, 2)],
            &[&[(0, 2), (1, 2)], &[(0, 4)]],
        );
        // A bulk shard does not starve a thousand small batches, nor they it.
        check(
            64 * KIB,
            &[(0, 32 * KIB, 3), (1, KIB, 64)],
            &[&[(0, 1), (1, 32)], &[(0, 1), (1, 32)], &[(0, 1)]],
        );
    }

    #[test]
    fn having_been_idle_is_no_advantage() {
        let mut turns = Turns::default();
        for number in 0..8 {
            turns.push(0, (KIB * 16, number));
        }
        turns.take_round(64 * KIB, |_, _| ());
        for number in 0..8 {
            turns.push(1, (KIB * 16, number));
        }
        let mut found = [0; 2];
        turns.take_round(64 * KIB, |slot, _| found[slot as usize] += 1);
        assert_eq!(found, [2, 2]);
    }

    #[test]
    fn a_withdrawn_shard_leaves_the_others_in_line() {
        let mut turns = Turns::default();
        turns.push(0, (10, 0));
        turns.push(1, (10, 0));
        turns.push(0, (10, 1));
        assert_eq!(turns.withdraw(0), [(10, 0), (10, 1)]);
        assert_eq!(turns.withdraw(7), []);
        assert_eq!(turns.waiting_bytes(), 10);
        let mut found = Vec::new();
        turns.take_round(100, |slot, _| found.push(slot));
        assert_eq!(found, [1]);
    }
}
