//! Operations on consumer groups.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{Error, InitialPosition, StartPosition};
use flumen_record::Timestamp;
use flumen_world::lock;

use super::Life;
use super::member::{self, MemberPlan};
use super::model::GroupKey;
use crate::random::{Dice, place};

const GROUPS: [&str; 2] = ["g", "h"];
const MEMBERS: [&str; 3] = ["one", "two", "three"];

impl Life {
    fn some_group(&mut self) -> Option<(flumen_record::StreamName, GroupKey)> {
        let (name, id) = self.some_stream()?;
        let group = GROUPS.get(place(self.dice.below(GROUPS.len() as u64)))?;
        Some((name, (id, (*group).to_owned())))
    }

    /// A member joins, and works for a while.
    pub(super) fn join(&mut self) -> Result<(), String> {
        let Some((stream, (id, group))) = self.some_group() else {
            return Ok(());
        };
        let leaves_out_nonsense = self.leaves_out("nonsense");
        let dice = &mut self.dice;
        let at = place(dice.below(MEMBERS.len() as u64));
        let name = MEMBERS.get(at).map_or("", |name| *name).to_owned();
        let start = match dice.below(4) {
            0 => InitialPosition::Latest,
            1 => {
                let ago = Duration::from_secs(dice.below(48 * 3600));
                let now = super::START.saturating_add(lock(&self.shared).now);
                InitialPosition::AtTimestamp(now.saturating_sub(ago).max(Timestamp::ZERO))
            }
            _ => InitialPosition::TrimHorizon,
        };
        let plan = MemberPlan {
            stream,
            id,
            group,
            name,
            instance: dice.next(),
            start,
            lives: Duration::from_secs(dice.between(30, 1_800)),
            dies: dice.once_in(3),
            talks_nonsense: dice.once_in(6) && !leaves_out_nonsense,
        };
        let dice = Dice::new(dice.next());
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        let clock = self.driver.clock().clone();
        self.driver
            .spawn("member", member::work(broker, clock, shared, plan, dice));
        Ok(())
    }

    /// Describes a group, and compares when nothing else goes on.
    pub(super) fn look_at_groups(&mut self) -> Result<(), String> {
        let Some((stream, key)) = self.some_group() else {
            return Ok(());
        };
        if !lock(&self.shared).groups.contains_key(&key) {
            return Ok(());
        }
        let Ok(group) = key.1.parse() else {
            return Ok(());
        };
        let broker = self.broker()?;
        let described = async move { broker.describe_group(&stream, &group).await };
        let described = self.wait("describing a group", described)?;
        let mut model = lock(&self.shared);
        model.count("looks at groups");
        match described {
            Ok(_) => Ok(()),
            Err(Error::GroupNotFound { .. } | Error::StreamNotFound { .. }) => Ok(()),
            Err(error) if model.allows(&error) || model.is_damaged => Ok(()),
            Err(error) => Err(format!("group {key:?} is not described: {error:?}")),
        }
    }

    pub(super) fn reset_group(&mut self) -> Result<(), String> {
        let Some((stream, key)) = self.some_group() else {
            return Ok(());
        };
        let Ok(group) = key.1.parse() else {
            return Ok(());
        };
        let to = match self.dice.below(3) {
            0 => StartPosition::TrimHorizon,
            1 => StartPosition::Latest,
            _ => {
                let ago = Duration::from_secs(self.dice.below(48 * 3600));
                let now = super::START.saturating_add(lock(&self.shared).now);
                StartPosition::AtTimestamp(now.saturating_sub(ago))
            }
        };
        let force = self.dice.once_in(2);
        if let Some(known) = lock(&self.shared).groups.get_mut(&key) {
            // Whether it happens is not known before the answer, and maybe not then.
            for held in known.shards.values_mut() {
                (held.is_reset, held.saved, held.covered) = (true, None, None);
            }
        }
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        self.driver.spawn("reset", async move {
            let answer = broker
                .reset_group(&stream, &group, Vec::new(), to, force, false)
                .await;
            let mut model = lock(&shared);
            model.count("resets");
            model.say(|| format!("reset of {key:?} to {to:?}: {answer:?}"));
            if let Err(error) = answer {
                let legal = matches!(
                    error,
                    Error::GroupNotFound { .. }
                        | Error::GroupInUse(_)
                        | Error::StreamNotFound { .. }
                        | Error::ShardNotFound { .. }
                        | Error::DataLoss { .. }
                ) || model.allows(&error);
                if !legal {
                    model.check(Err(format!("a reset of {key:?} was refused: {error:?}")));
                }
            }
            if let Some(known) = model.groups.get_mut(&key) {
                for held in known.shards.values_mut() {
                    (held.is_reset, held.saved, held.covered) = (true, None, None);
                }
            }
        });
        Ok(())
    }

    pub(super) fn delete_group(&mut self) -> Result<(), String> {
        let Some((stream, key)) = self.some_group() else {
            return Ok(());
        };
        let Ok(group) = key.1.parse() else {
            return Ok(());
        };
        if let Some(known) = lock(&self.shared).groups.get_mut(&key) {
            known.is_unsure = true;
        }
        let force = self.dice.once_in(2);
        let (broker, shared) = (self.broker()?, Arc::clone(&self.shared));
        self.driver.spawn("delete group", async move {
            let answer = broker.delete_group(&stream, &group, force).await;
            let mut model = lock(&shared);
            model.count("deleted groups");
            model.say(|| format!("delete of {key:?}: {answer:?}"));
            match answer {
                Ok(()) => {
                    model.groups.remove(&key);
                }
                Err(
                    Error::GroupNotFound { .. }
                    | Error::GroupInUse(_)
                    | Error::StreamNotFound { .. },
                ) => {}
                Err(error) if model.allows(&error) => {}
                Err(error) => {
                    model.check(Err(format!("{key:?} was not deleted: {error:?}")));
                }
            }
        });
        Ok(())
    }
}
