//! What a store promises about racing creates, found out by racing.
//!
//! A store that looks first and writes then lets several racers win, if they come at the same time; on
//! a busy machine they do not, so the ends of their bodies are held back until all have begun. One
//! that ignores conditions lets all of them win. So some races show it, and no number of them proves the
//! opposite: what a store gets here is trust, and the manifests stay correct without.

use bytes::Bytes;
use flumen_broker::StoreGuarantee;
use futures_util::future::join_all;
use object_store::path::Path as ObjectPath;

use super::answer::{Gate, Racer};
use super::{Put, Store, StoreError, Tag, object_path};

/// Racers of a race.
const RACERS: usize = 8;
/// Races. One shows a store that looks first and writes when it has the body; further ones are for
/// stores whose window is smaller.
const RACES: usize = 3;
/// Bytes of a body, about.
const BODY_BYTES: usize = 4096;

/// What was seen of one race.
#[derive(Debug, PartialEq, Eq)]
enum Race {
    /// One won, its body is what is stored, and who came later was refused.
    Fair,
    /// Anything else.
    Unfair(&'static str),
}

impl Store {
    /// Races creates under `<prefix>_probe/` and says what the store promises. `unique` keeps
    /// probes apart. What it wrote is removed; if that fails, it is logged.
    pub async fn probe(&self, prefix: &str, unique: u128) -> Result<StoreGuarantee, StoreError> {
        let mut seen = Ok(Race::Fair);
        for number in 0..RACES {
            let key = object_path(&format!("{prefix}_probe/{unique:032x}-{number}"))?;
            seen = self.race(&key).await;
            // A store that could not be asked does not have it, or says so the next time.
            if let Err(error) = self.remove(&key).await
                && seen.is_ok()
            {
                tracing::warn!(store = %self.describe(), %key, %error, "cannot remove a probe");
            }
            if !matches!(seen, Ok(Race::Fair)) {
                break;
            }
        }
        let store = self.describe();
        match seen? {
            Race::Fair => {
                tracing::info!(%store, "of racing creates one wins: objects are written once");
                Ok(StoreGuarantee::CreateIfAbsent)
            }
            Race::Unfair(why) => {
                tracing::warn!(
                    %store,
                    why,
                    "this store does not keep creates apart: each record is once in what the \
                     manifests name, as long as nobody else writes under this prefix"
                );
                Ok(StoreGuarantee::ManifestsOnly)
            }
        }
    }

    async fn race(&self, key: &ObjectPath) -> Result<Race, StoreError> {
        let bodies: Vec<Bytes> = (0..=RACERS)
            .map(|racer| {
                let line = format!("racer {racer}\n");
                let lines = BODY_BYTES / line.len();
                // Of different sizes: a mix of two would show.
                Bytes::from(line.repeat(lines + racer))
            })
            .collect();
        let (late, racers) = bodies.split_last().expect("BUG: there are racers");
        let gate = Gate::new(RACERS);
        let results = join_all(racers.iter().map(|body| {
            let (gate, body) = (gate.clone(), body.clone());
            self.put_probe(key, body.clone(), Some(Racer { gate, body }))
        }))
        .await;
        let mut winners = Vec::new();
        let mut failed = None;
        for (body, result) in racers.iter().zip(results) {
            match result {
                Ok(Put::Stored { .. }) => winners.push(body),
                Ok(Put::There) => {}
                Ok(Put::Unsupported) => return Ok(Race::Unfair("it cannot create")),
                Err(error) => failed = Some(error),
            }
        }
        if self.is_unconditional() {
            return Ok(Race::Unfair("it does not know conditions"));
        }
        if winners.len() > 1 {
            return Ok(Race::Unfair("of racing creates several won"));
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let Some(winner) = winners.first() else {
            let key = key.to_string();
            return Err(StoreError::Contended { key });
        };
        match self.put_probe(key, late.clone(), None).await? {
            Put::There => {}
            Put::Stored { .. } | Put::Unsupported => {
                return Ok(Race::Unfair("a second create replaced the first"));
            }
        }
        let stored = self.read(key.as_ref(), late.len() as u64).await?;
        if stored != **winner {
            return Ok(Race::Unfair("what is stored is not what won"));
        }
        let found = self.look(key.as_ref()).await?;
        if found.is_none_or(|found| found.cut.is_none()) {
            tracing::warn!(
                store = %self.describe(),
                "this store keeps no metadata: after a lost answer, contents are compared"
            );
        }
        Ok(Race::Fair)
    }

    async fn put_probe(
        &self,
        key: &ObjectPath,
        body: Bytes,
        racer: Option<Racer>,
    ) -> Result<Put, StoreError> {
        let tag = Tag {
            cut: "probe".to_owned(),
            crc32: crc32fast::hash(&body),
            bytes: body.len() as u64,
            content_type: "text/plain".to_owned(),
            content_encoding: None,
        };
        self.put(key, body.into(), &tag, racer).await
    }
}
