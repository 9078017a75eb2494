//! Who should have which shard.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::fmt;

use flumen_record::ShardIndex;

/// One shard that can be given to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardLoad {
    /// The shard.
    pub shard: ShardIndex,
    /// What it costs its member, above 0.
    pub weight: u64,
    /// The member that has it, or will have it when it is handed over.
    pub owner: Option<usize>,
}

/// Decides from what is, and from nothing else, who should have which shard.
pub trait Strategy: fmt::Debug + Send {
    /// An owner for each of `shards`, in the same order, out of `members` (at least one), which
    /// are numbered from 0 in the order in which they joined.
    fn assign(&self, shards: &[ShardLoad], members: usize) -> Vec<usize>;
}

/// Brings every member within one average shard of the mean, moving as few as it can. Shards that
/// run are moved for their load alone only when it spreads by more than a tenth of the mean.
#[derive(Debug, Clone, Copy, Default)]
pub struct Balanced;

impl Strategy for Balanced {
    fn assign(&self, shards: &[ShardLoad], members: usize) -> Vec<usize> {
        let mut plan = Plan::new(shards, members);
        plan.place_free(shards);
        plan.even_out();
        plan.owners
    }
}

/// A spread of the load below the mean divided by this is left alone.
const SPREAD_IGNORED: u64 = 10;

struct Plan {
    owners: Vec<usize>,
    /// Per member: its load.
    loads: Vec<u64>,
    /// Per member: (weight, place in `owners`) of its shards, ascending.
    held: Vec<Vec<(u64, usize)>>,
    total: u64,
    /// Shards that weigh the same have nothing but their count to be judged by.
    is_uniform: bool,
}

const NOBODY: usize = usize::MAX;

impl Plan {
    fn new(shards: &[ShardLoad], members: usize) -> Self {
        let mut plan = Self {
            owners: vec![NOBODY; shards.len()],
            loads: vec![0; members],
            held: vec![Vec::new(); members],
            total: shards
                .iter()
                .fold(0, |sum: u64, shard| sum.saturating_add(shard.weight)),
            is_uniform: shards.windows(2).all(|pair| match pair {
                [one, other] => one.weight == other.weight,
                _ => true,
            }),
        };
        for (place, shard) in shards.iter().enumerate() {
            if let Some(owner) = shard.owner.filter(|owner| *owner < members) {
                plan.take(place, shard.weight, owner);
            }
        }
        for held in &mut plan.held {
            held.sort_unstable();
        }
        plan
    }

    /// Without keeping the order of `held`.
    fn take(&mut self, place: usize, weight: u64, member: usize) {
        if let (Some(owner), Some(load), Some(held)) = (
            self.owners.get_mut(place),
            self.loads.get_mut(member),
            self.held.get_mut(member),
        ) {
            *owner = member;
            *load = load.saturating_add(weight);
            held.push((weight, place));
        }
    }

    /// The heaviest first, each to whom has least.
    fn place_free(&mut self, shards: &[ShardLoad]) {
        let is_free = |(place, shard): (usize, &ShardLoad)| {
            (self.owners.get(place) == Some(&NOBODY)).then_some((Reverse(shard.weight), place))
        };
        let mut free: Vec<_> = shards.iter().enumerate().filter_map(is_free).collect();
        if free.is_empty() {
            return;
        }
        free.sort_unstable();
        let lightest = self.loads.iter().copied().zip(0..).map(Reverse);
        let mut lightest: BinaryHeap<Reverse<(u64, usize)>> = lightest.collect();
        for (Reverse(weight), place) in free {
            let Some(Reverse((load, member))) = lightest.pop() else {
                return;
            };
            self.take(place, weight, member);
            lightest.push(Reverse((load.saturating_add(weight), member)));
        }
        for held in &mut self.held {
            held.sort_unstable();
        }
    }

    /// Moves shards from who has most to who has least until both are near the mean.
    fn even_out(&mut self) {
        let mut by_load: BTreeSet<(u64, usize)> = self.loads.iter().copied().zip(0..).collect();
        // Of the members that are looked at.
        let (mut total, mut shards) = (self.total, self.owners.len() as u64);
        let mut is_moving = self.is_uniform;
        // Every move narrows the gap it is made for; the bound only cuts long tails of small ones.
        let mut moves = self.owners.len().saturating_mul(2);
        while moves > 0 {
            let (Some((low, to)), Some((high, from))) =
                (by_load.first().copied(), by_load.last().copied())
            else {
                return;
            };
            let mean = total / by_load.len().max(1) as u64;
            let (excess, deficit) = (high.saturating_sub(mean), mean.saturating_sub(low));
            let mean_weight = (total / shards.max(1)).max(1);
            if excess < mean_weight && deficit < mean_weight {
                return;
            }
            if !is_moving && high - low <= mean / SPREAD_IGNORED {
                return;
            }
            is_moving = true;
            let ideal = excess.min(deficit);
            let ideal = if ideal < mean_weight {
                (high - low) / 2
            } else {
                ideal
            };
            let Some((weight, place)) = self.pick(from, ideal, high - low) else {
                // It cannot give anything without having too little itself: that is as good as it
                // gets for this one.
                by_load.remove(&(high, from));
                total = total.saturating_sub(high);
                shards = shards.saturating_sub(self.held.get(from).map_or(0, Vec::len) as u64);
                continue;
            };
            by_load.remove(&(high, from));
            by_load.remove(&(low, to));
            by_load.insert((high - weight, from));
            by_load.insert((low.saturating_add(weight), to));
            self.put(place, weight, to);
            moves -= 1;
        }
    }

    /// Takes from a member the shard that weighs nearest to `ideal` and less than `below`.
    fn pick(&mut self, member: usize, ideal: u64, below: u64) -> Option<(u64, usize)> {
        let held = self.held.get_mut(member)?;
        let above = held.partition_point(|(weight, _)| *weight <= ideal);
        let lighter = above.checked_sub(1);
        // The last of those that weigh the same, so that little moves up in the list.
        let heavier = held.get(above).map(|(weight, _)| *weight);
        let heavier = heavier.filter(|weight| *weight < below);
        let heavier = heavier.map(|found| held.partition_point(|(weight, _)| *weight <= found) - 1);
        let distance = |place: usize| held.get(place).map(|(weight, _)| weight.abs_diff(ideal));
        let nearest = [lighter, heavier].into_iter().flatten();
        let nearest = nearest.min_by_key(|place| distance(*place))?;
        let (weight, _) = held.get(nearest)?;
        (*weight > 0 && *weight < below).then(|| held.remove(nearest))
    }

    fn put(&mut self, place: usize, weight: u64, member: usize) {
        if let (Some(owner), Some(held)) = (self.owners.get_mut(place), self.held.get_mut(member)) {
            *owner = member;
            let at = held.partition_point(|other| *other <= (weight, place));
            held.insert(at, (weight, place));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn shards(owned: &[(u64, Option<usize>)]) -> Vec<ShardLoad> {
        let load = |(&(weight, owner), index): (&(u64, Option<usize>), u32)| ShardLoad {
            shard: ShardIndex::new(index),
            weight,
            owner,
        };
        owned.iter().zip(0..).map(load).collect()
    }

    fn loads(shards: &[ShardLoad], owners: &[usize], members: usize) -> Vec<u64> {
        let mut loads = vec![0; members];
        for (shard, owner) in shards.iter().zip(owners) {
            loads[*owner] += shard.weight;
        }
        loads
    }

    fn moved(shards: &[ShardLoad], owners: &[usize]) -> usize {
        let pairs = shards.iter().zip(owners);
        pairs
            .filter(|(shard, owner)| shard.owner.is_some_and(|before| before != **owner))
            .count()
    }

    /// Idle shards: how many each member has before, and afterwards, and how many move.
    #[track_caller]
    fn check_idle(before: &[usize], free: usize, after: &[usize], moves: usize) {
        let owned = before
            .iter()
            .zip(0..)
            .flat_map(|(count, member)| vec![(1, Some(member)); *count]);
        let owned: Vec<_> = owned.chain(vec![(1, None); free]).collect();
        let shards = shards(&owned);
        let owners = Balanced.assign(&shards, before.len());
        let mut counts = loads(&shards, &owners, before.len());
        counts.sort_unstable();
        assert_eq!(
            counts,
            after.iter().map(|count| *count as u64).collect::<Vec<_>>()
        );
        assert_eq!(moved(&shards, &owners), moves);
    }

    #[test]
    fn idle_shards_are_spread_by_count_with_the_fewest_moves() {
        check_idle(&[0], 4, &[4], 0);
        check_idle(&[2, 0], 0, &[1, 1], 1);
        check_idle(&[1, 0], 0, &[0, 1], 0);
        check_idle(&[4, 0], 0, &[2, 2], 2);
        check_idle(&[4, 2], 0, &[3, 3], 1);
        check_idle(&[2, 1], 0, &[1, 2], 0);
        check_idle(&[4, 4, 0], 0, &[2, 3, 3], 2);
        check_idle(&[3, 3, 0], 4, &[3, 3, 4], 0);
        check_idle(&[0, 0, 0], 10, &[3, 3, 4], 0);
        check_idle(&[111, 111, 111, 0], 0, &[83, 83, 83, 84], 84 - 1);
        check_idle(&[1, 0, 0, 0], 0, &[0, 0, 0, 1], 0);
    }

    #[test]
    fn a_hot_shard_has_a_member_of_its_own() {
        let shards = shards(&[(100, Some(0)), (1, Some(0)), (1, Some(0)), (1, Some(1))]);
        let owners = Balanced.assign(&shards, 2);
        assert_eq!(owners[0], 0);
        assert!(moved(&shards, &owners) <= 2);
        // A third member takes from the second, although the first is the heaviest.
        let hot = (100, Some(0));
        let idle = vec![(1, Some(1)); 10];
        let all: Vec<_> = std::iter::once(hot).chain(idle).collect();
        let shards = self::shards(&all);
        let owners = Balanced.assign(&shards, 3);
        assert_eq!(loads(&shards, &owners, 3), [100, 5, 5]);
    }

    #[test]
    fn a_small_spread_of_load_moves_nothing() {
        let check = |spread: u64, moves: bool| {
            let mut owned = vec![(10, Some(0)); 50];
            owned.extend(vec![(10, Some(1)); 50]);
            owned.extend(vec![(spread / 4, Some(0)); 4]);
            let shards = shards(&owned);
            assert_eq!(moved(&shards, &Balanced.assign(&shards, 2)) > 0, moves);
        };
        check(48, false);
        check(80, true);
    }

    proptest! {
        #[test]
        fn what_it_decides_is_near_the_mean_and_stays(
            owned in prop::collection::vec((1_u64..1000, prop::option::of(0_usize..8)), 0..60),
            members in 1_usize..8,
        ) {
            let owned: Vec<_> = owned
                .into_iter()
                .map(|(weight, owner)| (weight, owner.filter(|owner| *owner < members)))
                .collect();
            let mut shards = shards(&owned);
            let owners = Balanced.assign(&shards, members);
            prop_assert_eq!(owners.len(), shards.len());
            prop_assert!(owners.iter().all(|owner| *owner < members));
            for (shard, owner) in shards.iter_mut().zip(&owners) {
                shard.owner = Some(*owner);
            }
            // Decided once, it does not decide otherwise.
            let again = Balanced.assign(&shards, members);
            prop_assert!(moved(&shards, &again) <= shards.len() / 10, "{:?} {:?}", owners, again);
        }

        #[test]
        fn idle_shards_end_within_one_of_each_other(
            owned in prop::collection::vec(prop::option::of(0_usize..8), 0..60),
            members in 1_usize..8,
        ) {
            let owned: Vec<_> = owned
                .into_iter()
                .map(|owner| (5, owner.filter(|owner| *owner < members)))
                .collect();
            let shards = shards(&owned);
            let owners = Balanced.assign(&shards, members);
            let counts = loads(&shards, &owners, members);
            let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
            prop_assert!(spread <= 5, "{:?}", counts);
            // The fewest: what is above the rounded-up mean, or what is missing below it.
            let before = loads(&shards, &owned.iter().map(|(_, owner)| owner.unwrap_or(0)).collect::<Vec<_>>(), members);
            if owned.iter().all(|(_, owner)| owner.is_some()) {
                let mut sorted = before.iter().map(|load| load / 5).collect::<Vec<_>>();
                sorted.sort_unstable_by_key(|count| Reverse(*count));
                let (each, more) = (owned.len() / members, owned.len() % members);
                let needed: u64 = sorted
                    .iter()
                    .enumerate()
                    .map(|(place, count)| count.saturating_sub((each + usize::from(place < more)) as u64))
                    .sum();
                prop_assert_eq!(moved(&shards, &owners) as u64, needed);
            }
        }
    }
}
